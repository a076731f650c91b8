// Sparse index structure as the operators receive it, and as the microkernels walk it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "scalar.h"

namespace rsn2::cpu {

// The nonzero positions of a [rows, cols] matrix in row-major order. I is int32_t, or uint16_t where it holds all
// columns: indices are a third to a half of what a small batch reads.
template <class I>
struct Csr {
  int64_t rows;
  int64_t nnz;
  const int32_t* crow;  // [rows + 1]
  const I* col;         // [nnz], ascending within a row
  // The same as bits, [rows, row_words], as BitMask has them; null where no product is asked to use them.
  const uint64_t* words = nullptr;
  int64_t row_words = 0;
  // Whether the sums for a batch of one may run in an order of their own.
  bool any_order = false;
};

// The same positions in column-major order.
template <class I>
struct TransposedCsr {
  int64_t cols;
  int64_t nnz;
  const int32_t* crow;  // [cols + 1]
  const I* row;         // [nnz], ascending within a column
  const int32_t* perm;  // [nnz], position of the weight in the row-major order, counted from perm_base
  int64_t perm_base = 0;
};

// Rows of (value, index) pairs; index times the panel's index_scale is an offset into a panel. P is the panel's type.
template <class P, class I>
struct SparseRows {
  int64_t rows;
  int64_t nnz;
  const int32_t* begin;          // [rows + 1]
  const I* index;                // [nnz]
  const P* values;               // [nnz]; null for a sampled product
  const AccumulatorOf<P>* bias;  // [rows] or null
  // [nnz], which of the values is each weight's; null where they are in order. For panels of one position or of BFloat16
  // they are.
  const int32_t* place = nullptr;
  // Whether sums on a single position may run in an order of their own.
  bool any_order = false;
};

// Visiting a row costs about as much as this many of its weights: a mispredicted branch and the stores.
inline constexpr int64_t kRowCost = 8;

// First row of part `part` of `parts`, the parts being about equal in work. Monotone in part.
inline int64_t split_rows(const int32_t* begin, int64_t rows, int64_t part, int64_t parts) {
  if (part <= 0) return 0;
  if (part >= parts) return rows;
  const int64_t target = (begin[rows] + rows * kRowCost) / parts * part;
  int64_t low = 0, high = rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (begin[middle] + middle * kRowCost < target) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The row that holds weight k.
inline int64_t row_of(const int32_t* begin, int64_t rows, int64_t k) {
  return std::upper_bound(begin, begin + rows + 1, k) - begin - 1;
}

}  // namespace rsn2::cpu
