// Products on as many positions as fill registers.
#pragma once

#include "../microkernel.h"
#include "row_order.h"

namespace rsn2::cpu::RSN2_ISA {
namespace {

// One row of a product on kVectors registers of positions.
template <class T, int kVectors>
struct Sums {
  typename Lanes<T>::Vector sum[kVectors];

  inline __attribute__((always_inline)) void start(T value) {
    for (int i = 0; i < kVectors; ++i) sum[i] = broadcast(value);
  }
  inline __attribute__((always_inline)) void add(T value, const T* feature) {
    for (int i = 0; i < kVectors; ++i) sum[i] = multiply_add(broadcast(value), load(feature + i * kLanes<T>), sum[i]);
  }
  inline __attribute__((always_inline)) void finish(T* out) const {
    for (int i = 0; i < kVectors; ++i) store(out + i * kLanes<T>, sum[i]);
  }
};

// Rows order[0], ..., order[count - 1], kRows of them side by side: a row's sums wait for each other, the rows do not.
// Returns how many are done: what is left is less than kRows.
// Out of line, with what the inner loop needs in locals: otherwise gcc spills the loop's pointers.
template <class T, class I, int kVectors, int kRows, class Order>
__attribute__((noinline)) int64_t multiply_rows(const Product<T, I>& p, int64_t q, Order order, int64_t count) {
  const T* const panel = p.panel + q;
  const int64_t scale = p.index_scale;
  int64_t done = 0;
  for (; done + kRows <= count; done += kRows, order = order + kRows) {
    Sums<T, kVectors> sums[kRows];
    const T* value[kRows];
    const I* index[kRows];
    int64_t common = INT32_MAX;
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const int32_t* const begin = p.begin + order[i];
      value[i] = p.values + begin[0];
      index[i] = p.index + begin[0];
      const int64_t weights = begin[1] - begin[0];
      common = weights < common ? weights : common;
      sums[i].start(p.bias ? p.bias[order[i]] : T{0});
    }
    int64_t j = 0;
    for (; j < common; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) sums[i].add(value[i][j], panel + index[i][j] * scale);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const int64_t weights = p.begin[order[i] + 1] - p.begin[order[i]];
      for (int64_t rest = j; rest < weights; ++rest) sums[i].add(value[i][rest], panel + index[i][rest] * scale);
      sums[i].finish(p.out + (order[i] - p.row_begin) * p.out_stride + q);
    }
  }
  return done;
}

// Rows at kVectors registers of positions starting at q: the panel's part stays in cache while the rows pass.
template <class T, class I, int kVectors, class Order>
void multiply_block(const Product<T, I>& p, int64_t q, Order order, int64_t count) {
  constexpr int kRows = kVectors <= 2 ? 4 : kVectors == 4 ? 2 : 1;
  const int64_t done = multiply_rows<T, I, kVectors, kRows>(p, q, order, count);
  if constexpr (kRows > 1) multiply_rows<T, I, kVectors, 1>(p, q, order + done, count - done);
}

// Blocks of kVectors while they fit, then half as many: a width of one cache line costs one cache line.
template <class T, class I, int kVectors, class Order>
void multiply_from(const Product<T, I>& p, int64_t q, Order order, int64_t count) {
  constexpr int64_t kWidth = kVectors * kLanes<T>;
  for (; q + kWidth <= p.width; q += kWidth) multiply_block<T, I, kVectors>(p, q, order, count);
  if constexpr (kVectors > 1) multiply_from<T, I, kVectors / 2>(p, q, order, count);
}

}  // namespace
}  // namespace rsn2::cpu::RSN2_ISA
