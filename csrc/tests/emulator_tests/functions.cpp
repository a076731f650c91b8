// One thread's functions: atomics, bits, conversions.
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "tests.h"

namespace rsn2::test {
namespace {

template <class T>
__global__ void atomics(T* cells) {
  const T mine = static_cast<T>(blockIdx.x * blockDim.x + threadIdx.x + 1);
  atomicAdd(cells, mine);
  if constexpr (!std::is_floating_point_v<T>) {
    atomicOr(cells + 1, mine);
    atomicMin(cells + 2, mine);
    atomicMax(cells + 3, mine);
    T old = atomicAdd(cells + 4, T{0}), seen;
    while ((seen = atomicCAS(cells + 4, old, static_cast<T>(old + 2))) != old) old = seen;
    if (atomicExch(cells + 5, mine) == 0) atomicAdd(cells + 6, T{1});
  }
}

template <class T>
void test_atomics(const std::string& type) {
  std::vector<T> cells{0, 0, 1000, 0, 0, 0, 0};
  launch(atomics<T>, 3, 64, 0, cells.data());
  expect(cells[0] == 192 * 193 / 2, "atomicAdd of " + type);
  if (std::is_floating_point_v<T>) return;
  expect(cells[1] == 255 && cells[2] == 1 && cells[3] == 192 && cells[4] == 384 && cells[6] == 1,
         "atomics of " + type);
}

__global__ void wrapping_counters(unsigned* cells) {
  atomicInc(cells, 9u);
  atomicDec(cells + 1, 9u);
}

void test_wrapping_counters() {
  unsigned cells[2] = {};
  launch(wrapping_counters, 1, 64, 0, cells);
  expect(cells[0] == 4 && cells[1] == 6, "atomicInc and atomicDec wrap after ten steps");
}

void test_bit_functions() {
  expect(__ffs(0) == 0 && __ffs(1) == 1 && __ffs(INT32_MIN) == 32 && __ffsll(1LL << 40) == 41 && __ffsll(0) == 0,
         "__ffs counts from 1, and is 0 of 0");
  expect(__clz(0) == 32 && __clz(1) == 31 && __clz(-1) == 0 && __clzll(1) == 63, "__clz");
  expect(__popc(0xf0f00001u) == 9 && __popcll(0x8000000000000001ull) == 2, "__popc");
  expect(__brev(1u) == 0x80000000u && __brev(0x0000b001u) == 0x800d0000u, "__brev");
  expect(__byte_perm(0x33221100u, 0x77665544u, 0x7041u) == 0x77004411u, "__byte_perm");
  expect(__funnelshift_r(0x11223344u, 0xaabbccddu, 8) == 0xdd112233u && __funnelshift_r(5u, 9u, 32) == 5u,
         "__funnelshift_r");
  expect(__funnelshift_l(0x11223344u, 0xaabbccddu, 8) == 0xbbccdd11u && __funnelshift_l(5u, 9u, 0) == 9u,
         "__funnelshift_l");
  expect(__float_as_uint(1.0f) == 0x3f800000u && __uint_as_float(0xc0000000u) == -2.0f, "__float_as_uint");
  expect(min(-1, 2) == -1 && max(3u, 4u) == 4u && min(2.0f, NAN) == 2.0f && max(-1, 1u) == kAll, "min and max");
}

// `narrowed` must be a nearest neighbour of x among the type's numbers, the even one of two.
template <class Element, class Widen>
bool is_nearest(float x, uint16_t narrowed, Element infinity, float overflow, Widen widen) {
  const uint16_t magnitude = narrowed & 0x7fffu;
  if (std::isnan(x)) return magnitude == 0x7fffu;
  if (std::signbit(x) != (narrowed >> 15 != 0)) return false;
  const double exact = std::fabs(static_cast<double>(x));
  if (exact >= overflow) return magnitude == infinity;
  const auto distance = [&](int bits) {
    return std::fabs(static_cast<double>(widen(static_cast<uint16_t>(bits))) - exact);
  };
  const double mine = distance(magnitude);
  // One step further than the largest number the rounding still looks at as a number.
  const double above = magnitude + 1 < infinity ? distance(magnitude + 1) : std::numeric_limits<double>::infinity();
  const double below = magnitude > 0 ? distance(magnitude - 1) : std::numeric_limits<double>::infinity();
  const bool even = magnitude % 2 == 0;
  return magnitude < infinity && mine <= above && mine <= below && (even || (mine < above && mine < below));
}

void test_conversions() {
  const auto widen_half = [](uint16_t bits) { return __half2float(__ushort_as_half(bits)); };
  const auto widen_bfloat16 = [](uint16_t bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); };
  expect(widen_half(0x3c00) == 1.0f && widen_half(0xc000) == -2.0f && widen_half(1) == 0x1p-24f &&
             widen_half(0x7bff) == 65504.0f && widen_half(0x03ff) == 1023 * 0x1p-24f &&
             std::isinf(widen_half(0xfc00)) && std::isnan(widen_half(0x7c01)),
         "__half2float of known numbers");
  expect(widen_bfloat16(0x3f80) == 1.0f && widen_bfloat16(1) == 0x1p-133f && std::isinf(widen_bfloat16(0x7f80)),
         "__bfloat162float of known numbers");

  bool round_trip = true, nearest = true;
  const auto check = [&](float x) {
    nearest = nearest && is_nearest(x, __half_as_ushort(__float2half_rn(x)), uint16_t{0x7c00}, 65520.0f, widen_half);
    // Half a step above the largest bfloat16 the rounding gives infinity, which is even.
    nearest = nearest && is_nearest(x, __bfloat16_as_ushort(__float2bfloat16_rn(x)), uint16_t{0x7f80},
                                    __uint_as_float(0x7f7f8000u), widen_bfloat16);
  };
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const auto b = static_cast<uint16_t>(bits);
    const float half = widen_half(b), bfloat16 = widen_bfloat16(b);
    round_trip = round_trip && (std::isnan(half) || __half_as_ushort(__float2half_rn(half)) == b);
    round_trip = round_trip && (std::isnan(bfloat16) || __bfloat16_as_ushort(__float2bfloat16_rn(bfloat16)) == b);
    // Half-way between neighbours, and just beside.
    for (const float narrow : {half, bfloat16}) {
      const uint32_t step = narrow == half ? 0x1000u : 0x8000u;
      for (const uint32_t beside : {step - 1, step, step + 1}) check(__uint_as_float(__float_as_uint(narrow) + beside));
    }
  }
  std::mt19937 random(13);
  for (int i = 0; i < 200000; ++i) {
    check(__uint_as_float(static_cast<uint32_t>(random())));
    check(static_cast<float>(random()) * 0x1p-32f * 0x1p-13f);  // around the subnormals of half
  }
  // Ties among the subnormals of half: odd multiples of 2^-25.
  for (int i = 1; i < 4096; i += 2) check(static_cast<float>(i) * 0x1p-25f);
  expect(round_trip, "16 bits survive the way to float and back");
  expect(nearest, "a float is rounded to the nearest, the even one of two");
}

}  // namespace

void run_functions() {
  test_atomics<int>("int");
  test_atomics<unsigned>("unsigned");
  test_atomics<unsigned long long>("unsigned long long");
  test_atomics<float>("float");
  test_wrapping_counters();
  test_bit_functions();
  test_conversions();
}

}  // namespace rsn2::test
