// Warp collectives.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests.h"

namespace rsn2::test {
namespace {

template <class T>
__global__ void shuffles(const T* in, T* out, int operand, int width) {
  const int lane = static_cast<int>(threadIdx.x);
  const T mine = in[lane];
  out[lane] = __shfl_sync(kAll, mine, operand, width);
  out[32 + lane] = __shfl_up_sync(kAll, mine, static_cast<unsigned>(operand), width);
  out[64 + lane] = __shfl_down_sync(kAll, mine, static_cast<unsigned>(operand), width);
  out[96 + lane] = __shfl_xor_sync(kAll, mine, operand, width);
}

template <class T>
void test_shuffles(const std::string& type) {
  std::vector<T> in(32), out(128);
  for (int l = 0; l < 32; ++l) in[l] = static_cast<T>(sizeof(T) == 8 ? 1e15 + 3 * l : 1000 + 3 * l);
  for (int width = 1; width <= 32; width *= 2) {
    for (int operand = 0; operand < 32; ++operand) {
      launch(shuffles<T>, 1, 32, 0, in.data(), out.data(), operand, width);
      bool right = true;
      for (int l = 0; l < 32; ++l) {
        const int segment = l / width, place = l % width;
        const auto within = [&](int p) { return p >= 0 && p < width; };
        right = right && out[l] == in[segment * width + operand % width];
        right = right && out[32 + l] == in[within(place - operand) ? l - operand : l];
        right = right && out[64 + l] == in[within(place + operand) ? l + operand : l];
        // An exclusive or may reach segments before this one, not after.
        right = right && out[96 + l] == in[(l ^ operand) / width <= segment ? l ^ operand : l];
      }
      expect(right, "shuffles of " + type + ", operand " + std::to_string(operand) + ", width " +
                        std::to_string(width));
    }
  }
}

__global__ void shuffle_from_each(const int* sources, int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int value = lane;
  for (int round = 0; round < 50; ++round) value = __shfl_sync(kAll, value, sources[32 * round + lane]);
  out[lane] = value;
}

void test_each_lane_has_its_own_source() {
  std::mt19937 random(7);
  std::vector<int> sources(50 * 32), out(32), expected(32), next(32);
  for (int& s : sources) s = static_cast<int>(random() % 32);
  for (int l = 0; l < 32; ++l) expected[l] = l;
  for (int round = 0; round < 50; ++round) {
    for (int l = 0; l < 32; ++l) next[l] = expected[sources[32 * round + l]];
    expected = next;
  }
  launch(shuffle_from_each, 1, 32, 0, sources.data(), out.data());
  expect(out == expected, "in a shuffle each lane has its own source");
}

struct Votes {
  unsigned ballot, match;
  int any, all, sum, least;
  unsigned greatest, conjunction, disjunction, parity;
};

__device__ Votes vote(unsigned mask, const int* values) {
  const int mine = values[threadIdx.x];
  const unsigned bits = static_cast<unsigned>(mine);
  Votes v;
  v.ballot = __ballot_sync(mask, mine > 0);
  v.match = __match_any_sync(mask, mine);
  v.any = __any_sync(mask, mine > 3);
  v.all = __all_sync(mask, mine > -3);
  v.sum = __reduce_add_sync(mask, mine);
  v.least = __reduce_min_sync(mask, mine);
  v.greatest = __reduce_max_sync(mask, bits);
  v.conjunction = __reduce_and_sync(mask, bits);
  v.disjunction = __reduce_or_sync(mask, bits);
  v.parity = __reduce_xor_sync(mask, bits);
  return v;
}

// The two sides of a branch vote for themselves, and differ in how often they wait.
__global__ void votes(unsigned mask, const int* values, Votes* out) {
  if (mask >> threadIdx.x & 1u) {
    out[threadIdx.x] = vote(mask, values);
  } else {
    __syncwarp(~mask);
    out[threadIdx.x] = vote(~mask, values);
  }
}

void test_votes_in_divergent_branches() {
  std::mt19937 random(11);
  for (int round = 0; round < 100; ++round) {
    const unsigned mask = round == 0 ? kAll : round == 1 ? 0u : static_cast<unsigned>(random());
    std::vector<int> values(32);
    for (int& v : values) v = static_cast<int>(random() % 9) - 4;
    std::vector<Votes> out(32);
    launch(votes, 1, 32, 0, mask, values.data(), out.data());
    bool right = true;
    for (int l = 0; l < 32; ++l) {
      const unsigned side = mask >> l & 1u ? mask : ~mask;
      Votes e{0, 0, 0, 1, 0, 100, 0u, kAll, 0u, 0u};
      for (int o = 0; o < 32; ++o) {
        if ((side >> o & 1u) == 0) continue;
        const int v = values[o];
        const unsigned bits = static_cast<unsigned>(v);
        if (v > 0) e.ballot |= 1u << o;
        if (v == values[l]) e.match |= 1u << o;
        if (v > 3) e.any = 1;
        if (v <= -3) e.all = 0;
        e.sum += v;
        e.least = std::min(e.least, v);
        e.greatest = std::max(e.greatest, bits);
        e.conjunction &= bits;
        e.disjunction |= bits;
        e.parity ^= bits;
      }
      right = right && std::memcmp(&e, &out[l], sizeof(e)) == 0;
    }
    expect(right, "votes and reductions in both branches of a warp");
  }
}

__global__ void shuffle_from_outside(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, static_cast<int>(threadIdx.x) + 1);
}

void test_a_lane_outside_the_mask_gives_garbage() {
  std::vector<float> out(16);
  launch(shuffle_from_outside, 1, 32, 0, out.data());
  bool right = std::isnan(out[15]);
  for (int l = 0; l < 15; ++l) right = right && out[l] == 1.0f;
  expect(right, "a shuffle from a lane outside the mask gives garbage");
}

}  // namespace

void run_warps() {
  test_shuffles<int>("int");
  test_shuffles<unsigned>("unsigned");
  test_shuffles<float>("float");
  test_shuffles<double>("double");
  test_shuffles<unsigned long long>("unsigned long long");
  test_each_lane_has_its_own_source();
  test_votes_in_divergent_branches();
  test_a_lane_outside_the_mask_gives_garbage();
}

}  // namespace rsn2::test
