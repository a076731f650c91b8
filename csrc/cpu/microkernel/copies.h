// What brings activations into panels.
#pragma once

#include "../microkernel.h"
#include "vectors.h"

namespace rsn2::cpu::RSN2_ISA {
namespace {

// Exchanges the off-diagonal halves of every 2 * kHalf lanes of two rows that stand kHalf apart.
template <class T, int kHalf, int... kLane>
inline __attribute__((always_inline)) void exchange(typename Lanes<T>::Vector& upper, typename Lanes<T>::Vector& lower,
                                                    LaneList<kLane...>) {
  const typename Lanes<T>::Vector a = upper, b = lower;
  upper = shuffle<T, RSN2_VECTOR_BYTES, ((kLane & kHalf) == 0 ? kLane : kLane - kHalf + kLanes<T>)...>(a, b);
  lower = shuffle<T, RSN2_VECTOR_BYTES, ((kLane & kHalf) == 0 ? kLane + kHalf : kLane + kLanes<T>)...>(a, b);
}

// Transposes a square of registers in place: its quarters, then their quarters, and so on.
template <class T, int kHalf>
inline __attribute__((always_inline)) void transpose_square(typename Lanes<T>::Vector* rows) {
  const typename MakeLaneList<kLanes<T>>::Type lanes;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) {
    if ((i & kHalf) == 0) exchange<T, kHalf>(rows[i], rows[i + kHalf], lanes);
  }
  if constexpr (kHalf > 1) transpose_square<T, kHalf / 2>(rows);
}

// Whole registers in both directions: a cache line is read once and written once, whatever the strides alias.
template <class T>
void transpose(const Transposition<T>& t) {
  constexpr int64_t kSide = kLanes<T>;
  const int64_t whole_rows = t.rows / kSide * kSide, whole_cols = t.cols / kSide * kSide;
  for (int64_t c = 0; c < whole_cols; c += kSide) {
    for (int64_t r = 0; r < whole_rows; r += kSide) {
      typename Lanes<T>::Vector square[kSide];
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) square[i] = load(t.source + (r + i) * t.source_stride + c);
      transpose_square<T, kSide / 2>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) store(t.target + (c + i) * t.target_stride + r, square[i]);
    }
  }
  for (int64_t c = 0; c < t.cols; ++c) {
    for (int64_t r = c < whole_cols ? whole_rows : 0; r < t.rows; ++r) {
      t.target[c * t.target_stride + r] = t.source[r * t.source_stride + c];
    }
  }
}

// A run's last register overlaps the one before it: no scalar tail.
template <class T>
void copy_runs(const RunCopy<T>& c) {
  for (int64_t i = 0; i < c.count; ++i) {
    const Run& run = c.runs[i];
    const T* const source = c.source + run.source;
    T* const target = c.target + run.target;
    const int64_t last = run.cells - kLanes<T>;
    if (last < 0) {
      for (int64_t q = 0; q < run.cells; ++q) target[q] = source[q];
    } else {
      for (int64_t q = 0; q < last; q += kLanes<T>) store(target + q, load(source + q));
      store(target + last, load(source + last));
    }
    for (int64_t q = run.cells; q < run.cells + run.zeros; ++q) target[q] = T{0};
  }
}

}  // namespace
}  // namespace rsn2::cpu::RSN2_ISA
