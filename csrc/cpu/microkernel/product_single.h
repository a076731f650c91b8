// Products on a single position.
#pragma once

#include "../microkernel.h"
#include "vectors.h"

namespace rsn2::cpu::RSN2_ISA {
namespace {

// A row on a single position, from its weight `done` on.
template <class T, class I>
inline __attribute__((always_inline)) void finish_single(const Product<T, I>& p, int64_t r, int64_t done, T sum) {
  for (int64_t k = p.begin[r] + done; k < p.end[r]; ++k) {
    sum = multiply_add(p.values[k], p.panel[p.index[k]], sum);
  }
  p.out[(r - p.row_begin) * p.out_stride] = sum;
}

// Four neighbouring indices in registers, loaded at once where they are that small.
template <class I>
struct FourIndices {
  const I* index;
  explicit FourIndices(const I* index) : index(index) {}
  int64_t operator[](int i) const { return index[i]; }
};
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
template <>
struct FourIndices<uint16_t> {
  uint64_t bits;
  explicit FourIndices(const uint16_t* index) { __builtin_memcpy(&bits, index, sizeof bits); }
  int64_t operator[](int i) const { return static_cast<int64_t>(bits >> 16 * i & 0xFFFF); }
};
#endif

// Rows of a product on a single position, a row in each lane of vectors of four.
//
// Four neighbouring values of four rows are four loads and a transposition instead of sixteen loads. A row's additions
// wait for each other, so that two vectors pass side by side.
template <class T>
struct Quad {
  typedef typename Simd<T, 4 * sizeof(T)>::Vector Vector;

  static inline Vector load(const T* source) {
    return *reinterpret_cast<const typename Simd<T, 4 * sizeof(T)>::Unaligned*>(source);
  }
  template <int... kSource>
  static inline __attribute__((always_inline)) Vector pick(const Vector& a, const Vector& b) {
    return shuffle<T, 4 * sizeof(T), kSource...>(a, b);
  }
  // sum + weights `step` of the four rows times their features.
  template <class I>
  static inline __attribute__((always_inline)) Vector add(const Vector& sum, const Vector& value, const T* panel,
                                                          const FourIndices<I>* index, int step) {
    const Vector feature = {panel[index[0][step]], panel[index[1][step]], panel[index[2][step]], panel[index[3][step]]};
    return multiply_add(value, feature, sum);
  }
};

// The rows order[0], order[1], ... prefetch: the weight from which on memory is asked for what comes later.
template <class T, class I, int kQuads>
__attribute__((noinline)) void multiply_quads(const Product<T, I>& p, const int32_t* order, int64_t& prefetch) {
  using Q = Quad<T>;
  constexpr int kRows = 4 * kQuads;
  const T* const panel = p.panel;
  typename Q::Vector sum[kQuads];
  // Volatile: read again from the cache in every step, because there are not registers for all of them.
  volatile int32_t begin[kRows];
  int64_t common = INT32_MAX;
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    const int32_t r = order[i];
    begin[i] = p.begin[r];
    const int64_t count = p.end[r] - p.begin[r];
    common = count < common ? count : common;
    sum[i / 4][i % 4] = p.bias ? p.bias[r] : T{0};
  }
  common -= common % 4;
  const T* value = p.values;
  const I* index = p.index;
  const T* next_value = value + prefetch;
  const I* next_index = index + prefetch;
  prefetch += kRows * common;
  for (const T* const end = value + common; value != end; value += 4, index += 4) {
    for (int i = 0; i < kRows * 4; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(next_value + i, 0, 2);
    for (int i = 0; i < kRows * 4; i += 64 / static_cast<int>(sizeof(I))) __builtin_prefetch(next_index + i, 0, 2);
    next_value += 4 * kRows;
    next_index += 4 * kRows;
#pragma GCC unroll 8
    for (int i = 0; i < kQuads; ++i) {
      const int64_t row[] = {begin[4 * i], begin[4 * i + 1], begin[4 * i + 2], begin[4 * i + 3]};
      const typename Q::Vector a = Q::load(value + row[0]), b = Q::load(value + row[1]);
      const typename Q::Vector c = Q::load(value + row[2]), d = Q::load(value + row[3]);
      const FourIndices<I> four[] = {FourIndices<I>(index + row[0]), FourIndices<I>(index + row[1]),
                                     FourIndices<I>(index + row[2]), FourIndices<I>(index + row[3])};
      const auto low_ab = Q::template pick<0, 4, 1, 5>(a, b), low_cd = Q::template pick<0, 4, 1, 5>(c, d);
      const auto high_ab = Q::template pick<2, 6, 3, 7>(a, b), high_cd = Q::template pick<2, 6, 3, 7>(c, d);
      sum[i] = Q::add(sum[i], Q::template pick<0, 1, 4, 5>(low_ab, low_cd), panel, four, 0);
      sum[i] = Q::add(sum[i], Q::template pick<2, 3, 6, 7>(low_ab, low_cd), panel, four, 1);
      sum[i] = Q::add(sum[i], Q::template pick<0, 1, 4, 5>(high_ab, high_cd), panel, four, 2);
      sum[i] = Q::add(sum[i], Q::template pick<2, 3, 6, 7>(high_ab, high_cd), panel, four, 3);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) finish_single(p, order[i], common, sum[i / 4][i % 4]);
}

// Rows order[0], ..., order[count - 1], with as many weights behind them asked for from memory meanwhile.
template <class T, class I>
void multiply_single(const Product<T, I>& p, const int32_t* order, int64_t count, int64_t prefetch) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) multiply_quads<T, I, 2>(p, order + i, prefetch);
  for (; i + 4 <= count; i += 4) multiply_quads<T, I, 1>(p, order + i, prefetch);
  for (; i < count; ++i) finish_single(p, order[i], 0, p.bias ? p.bias[order[i]] : T{0});
}

// The rows one after the other, four neighbouring weights in the lanes of a vector and two vectors side by side.
template <class T, class I>
void multiply_any_order(const Product<T, I>& p) {
  using Q = Quad<T>;
  const T* const panel = p.panel;
  const auto add_four = [&](typename Q::Vector& sum, const T* value, const I* index) __attribute__((always_inline)) {
    const FourIndices<I> four(index);
    const typename Q::Vector feature = {panel[four[0]], panel[four[1]], panel[four[2]], panel[four[3]]};
    sum = multiply_add(Q::load(value), feature, sum);
  };
  for (int64_t r = p.row_begin; r < p.row_end; ++r) {
    const int64_t begin = p.begin[r], count = p.end[r] - begin;
    const T* const value = p.values + begin;
    const I* const index = p.index + begin;
    typename Q::Vector even{}, odd{};
    int64_t k = 0;
    for (; k + 8 <= count; k += 8) {
      add_four(even, value + k, index + k);
      add_four(odd, value + k + 4, index + k + 4);
    }
    even += odd;
    T sum = p.bias ? p.bias[r] : T{0};
    if (k > 0) sum += (even[0] + even[1]) + (even[2] + even[3]);
    for (; k < count; ++k) sum = multiply_add(value[k], panel[index[k]], sum);
    p.out[(r - p.row_begin) * p.out_stride] = sum;
  }
}

}  // namespace
}  // namespace rsn2::cpu::RSN2_ISA
