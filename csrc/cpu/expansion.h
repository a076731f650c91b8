// A packed weight as a dense one, and what is owned of a dense one: copies, so that all types are alike.
#pragma once

#include <algorithm>
#include <type_traits>

#include "bit_product.h"
#include "scalar.h"

namespace rsn2::cpu {

// Elements that are set to zero in the time of a multiply-add.
inline constexpr int64_t kFillsPerWork = 4;

// How elements are copied by the bits of the weight's mask; null: not so.
template <class S, class I>
const BitCopies<CopiedAs<S>>* bit_copies(const Context& context, const Csr<I>& weight) {
  const BitKernels* const kernels = weight.words ? context.kernels.bits : nullptr;
  if constexpr (std::is_same_v<CopiedAs<S>, float>) {
    return kernels ? &kernels->four_bytes : nullptr;
  } else if constexpr (std::is_same_v<CopiedAs<S>, uint16_t>) {
    return kernels ? &kernels->two_bytes : nullptr;
  } else {
    return nullptr;
  }
}

// dense [rows, cols] contiguous: values where the weight is, 0 elsewhere.
template <class S, class I>
void expand(const Context& context, const Csr<I>& weight, const S* values, int64_t cols, S* dense) {
  using C = CopiedAs<S>;
  const BitCopies<C>* const copies = bit_copies<S>(context, weight);
  const int64_t work = weight.nnz + weight.rows * cols / kFillsPerWork;
  context.parallel.for_parts(weight.rows, work, [&](int64_t begin, int64_t end) {
    if (copies) {
      return copies->expand({bit_mask(weight), as_copied(values), weight.nnz, begin, end, cols, as_copied(dense)});
    }
    for (int64_t row = begin; row < end; ++row) {
      S* const out = dense + row * cols;
      std::fill_n(out, cols, S{});
      const I* const col = weight.col;
      const int64_t row_end = weight.crow[row + 1];
#pragma GCC unroll 8
      for (int64_t k = weight.crow[row]; k < row_end; ++k) out[col[k]] = values[k];
    }
  });
}

// values[k] = what stands in dense [rows, cols] where weight k is.
template <class S, class I>
void gather(const Context& context, const Csr<I>& weight, const S* dense, int64_t cols, S* values) {
  using C = CopiedAs<S>;
  const BitCopies<C>* const copies = bit_copies<S>(context, weight);
  context.parallel.for_parts(weight.rows, weight.nnz, [&](int64_t begin, int64_t end) {
    if (copies) {
      return copies->gather({bit_mask(weight), as_copied(dense), begin, end, cols, as_copied(values)});
    }
    for (int64_t row = begin; row < end; ++row) {
      const S* const from = dense + row * cols;
      for (int64_t k = weight.crow[row]; k < weight.crow[row + 1]; ++k) values[k] = from[weight.col[k]];
    }
  });
}

}  // namespace rsn2::cpu
