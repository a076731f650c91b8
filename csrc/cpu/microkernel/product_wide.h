// Products on as many positions as fill registers.
#pragma once

#include "../microkernel.h"
#include "row_order.h"

namespace rsn2::cpu::RSN2_ISA {
namespace {

// One row of a product on kVectors registers of positions: what multiply_rows adds up.
template <class T, int kVectors>
struct FloatSums {
  static constexpr int kPositions = kVectors * kLanes<T>;
  static constexpr int kSums = kVectors;  // that do not wait for each other
  static constexpr int kTogether = 1;     // weights added at once

  typename Lanes<T>::Vector sum[kVectors];

  inline __attribute__((always_inline)) void start(T value) {
    for (int i = 0; i < kVectors; ++i) sum[i] = broadcast(value);
  }
  inline __attribute__((always_inline)) void resume(const T* out) {
    for (int i = 0; i < kVectors; ++i) sum[i] = load(out + i * kLanes<T>);
  }
  template <class I>
  inline __attribute__((always_inline)) void add(const T* value, const I* index, const T* panel, int64_t scale) {
    const T* const feature = panel + *index * scale;
    for (int i = 0; i < kVectors; ++i) sum[i] = multiply_add(broadcast(*value), load(feature + i * kLanes<T>), sum[i]);
  }
  inline __attribute__((always_inline)) void finish(T* out) const {
    for (int i = 0; i < kVectors; ++i) store(out + i * kLanes<T>, sum[i]);
  }
};

// Values of weights in the order of the weights.
template <class P>
struct InOrder {
  const P* values;
  inline __attribute__((always_inline)) InOrder from(int64_t k) const { return {values + k}; }
  inline __attribute__((always_inline)) const P* of(int64_t k) const { return values + k; }
  inline __attribute__((always_inline)) void ask_for_next() const { ask_for<4>(values); }
};

// Values in another order than the weights: reading each where it stands costs less than a copy in order that one panel reads.
template <class P>
struct InPlace {
  const P* values;
  const int32_t* place;
  inline __attribute__((always_inline)) InPlace from(int64_t k) const { return {values, place + k}; }
  inline __attribute__((always_inline)) const P* of(int64_t k) const { return values + place[k]; }
  inline __attribute__((always_inline)) void ask_for_next() const { ask_for<4>(place); }
};

// Rows order[0], ..., order[count - 1], kRows of them side by side: a row's sums wait for each other, the rows do not.
// Returns how many are done: what is left is less than kRows.
// Out of line, with what the inner loop needs in locals: otherwise gcc spills the loop's pointers.
template <class Sums, int kRows, class T, class I, class P, class Values, class Order>
__attribute__((noinline)) int64_t multiply_rows(const Product<T, I, P>& p, const Values values, int64_t q, Order order,
                                                int64_t count) {
  constexpr int kTogether = Sums::kTogether;
  const P* const panel = p.panel + q;
  const int64_t scale = p.index_scale;
  // Where a row's weights do not follow those of the row before, the processor does not foresee them.
  const bool apart = p.end != p.begin + 1;
  int64_t done = 0;
  for (; done + kRows <= count; done += kRows, order = order + kRows) {
    Sums sums[kRows];
    Values value[kRows];
    const I* index[kRows];
    int64_t common = INT32_MAX;
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const int64_t r = order[i], begin = p.begin[r], weights = p.end[r] - begin;
      value[i] = values.from(begin);
      index[i] = p.index + begin;
      common = weights < common ? weights : common;
      if (p.resumed) {
        sums[i].resume(p.out + (r - p.row_begin) * p.out_stride + q);
      } else {
        sums[i].start(p.bias ? p.bias[r] : T{0});
      }
    }
    if (apart && done + 2 * kRows <= count) {
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const int64_t next = p.begin[order[i + kRows]];
        values.from(next).ask_for_next();
        ask_for<3>(p.index + next);
      }
    }
    int64_t j = 0;
    for (; j + kTogether <= common; j += kTogether) {
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) sums[i].add(value[i].of(j), index[i] + j, panel, scale);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const int64_t weights = p.end[order[i]] - p.begin[order[i]];
      int64_t rest = j;
      for (; rest + kTogether <= weights; rest += kTogether) sums[i].add(value[i].of(rest), index[i] + rest, panel, scale);
      if constexpr (kTogether > 1) {
        if (rest < weights) sums[i].add_last(value[i].of(rest), index[i] + rest, panel, scale);
      }
      sums[i].finish(p.out + (order[i] - p.row_begin) * p.out_stride + q);
    }
  }
  return done;
}

// Rows at Sums::kPositions positions starting at q: the panel's part stays in cache while the rows pass.
template <class Sums, class T, class I, class P, class Order>
void multiply_block(const Product<T, I, P>& p, int64_t q, Order order, int64_t count) {
  constexpr int kRows = Sums::kSums <= 2 ? 4 : Sums::kSums == 4 ? 2 : 1;
  const auto multiply = [&](const auto& values) {
    const int64_t done = multiply_rows<Sums, kRows>(p, values, q, order, count);
    if constexpr (kRows > 1) multiply_rows<Sums, 1>(p, values, q, order + done, count - done);
  };
  if constexpr (Sums::kTogether == 1) {
    if (p.place) return multiply(InPlace<P>{p.values, p.place});
  }
  multiply(InOrder<P>{p.values});
}

// Blocks of kVectors registers of positions while they fit, then half as many: a width of one cache line costs one.
template <template <class, int> class Sums, int kVectors, class T, class I, class P, class Order>
void multiply_from(const Product<T, I, P>& p, int64_t q, Order order, int64_t count) {
  using S = Sums<P, kVectors>;
  for (; q + S::kPositions <= p.width; q += S::kPositions) multiply_block<S>(p, q, order, count);
  if constexpr (kVectors > 1) multiply_from<Sums, kVectors / 2>(p, q, order, count);
}

}  // namespace
}  // namespace rsn2::cpu::RSN2_ISA
