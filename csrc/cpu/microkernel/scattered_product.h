// Products with the transposed weight, straight from its rows.
#pragma once

#include "../microkernel.h"
#include "vectors.h"

namespace rsn2::cpu::RSN2_ISA {
namespace {

// The first k in [begin, end) whose index is at least `least`.
template <class I>
int64_t first_from(const I* index, int64_t begin, int64_t end, int64_t least) {
  if (least == 0) return begin;
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (index[middle] < least) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// A row's values are read in order, its results lie in a cache: nothing waits for memory but the first row.
template <class T, class I, int kVectors>
void scatter_rows(const ScatteredProduct<T, I>& p) {
  constexpr int64_t kWidth = kVectors == 0 ? 1 : kVectors * kLanes<T>;
  // In locals, because for all the compiler knows a store could change what p points to.
  T* const out = p.out;
  const T* const values = p.values;
  const I* const index = p.index;
  const int64_t index_end = p.index_end;
  for (int64_t r = 0; r < p.row_count; ++r) {
    const T* const row = p.rows + r * kWidth;
    const int64_t end = p.begin[r + 1];
    for (int64_t k = first_from(index, p.begin[r], end, p.index_begin); k < end && index[k] < index_end; ++k) {
      T* const target = out + index[k] * kWidth;
      if constexpr (kVectors == 0) {
        *target = multiply_add(values[k], *row, *target);
      } else {
        for (int i = 0; i < kVectors; ++i) {
          const typename Lanes<T>::Vector sum = load(target + i * kLanes<T>), factor = load(row + i * kLanes<T>);
          store(target + i * kLanes<T>, multiply_add(broadcast(values[k]), factor, sum));
        }
      }
    }
  }
}

template <class T, class I>
void scatter(const ScatteredProduct<T, I>& p) {
  if (p.width == 1) {
    scatter_rows<T, I, 0>(p);
  } else {
    scatter_rows<T, I, 64 / RSN2_VECTOR_BYTES>(p);
  }
}

}  // namespace
}  // namespace rsn2::cpu::RSN2_ISA
