// A packed weight as a dense one, and what is owned of a dense one: copies, so that all types are alike.
#pragma once

#include <algorithm>

#include "parallel.h"
#include "sparse_rows.h"

namespace rsn2::cpu {

// Elements that are set to zero in the time of a multiply-add.
inline constexpr int64_t kFillsPerWork = 4;

// dense [rows, cols] contiguous: values where the weight is, 0 elsewhere.
template <class S>
void expand(const Parallel& parallel, const Csr<int32_t>& weight, const S* values, int64_t cols, S* dense) {
  const int64_t slots = parallel.slots_for(weight.nnz + weight.rows * cols / kFillsPerWork);
  parallel.for_each(weight.rows, slots, [&](int64_t row, int64_t) {
    S* const out = dense + row * cols;
    std::fill_n(out, cols, S{});
    const int32_t* const col = weight.col;
    const int64_t end = weight.crow[row + 1];
#pragma GCC unroll 8
    for (int64_t k = weight.crow[row]; k < end; ++k) out[col[k]] = values[k];
  });
}

// values[k] = what stands in dense [rows, cols] where weight k is.
template <class S>
void gather(const Parallel& parallel, const Csr<int32_t>& weight, const S* dense, int64_t cols, S* values) {
  parallel.for_each(weight.rows, parallel.slots_for(weight.nnz), [&](int64_t row, int64_t) {
    const S* const from = dense + row * cols;
    for (int64_t k = weight.crow[row]; k < weight.crow[row + 1]; ++k) values[k] = from[weight.col[k]];
  });
}

}  // namespace rsn2::cpu
