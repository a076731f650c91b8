// Products on a single position by the bits of the weight's mask: cutting the work into tasks. Every row of x, dy and
// results is float; where it has a place for each column, it has places for whole words of columns, zeros behind them.
#pragma once

#include "product.h"

namespace rsn2::cpu {

// Columns of a word, and the multiply-adds in whose time one passes, whatever it owns.
inline constexpr int64_t kWordColumns = 64;
inline constexpr int64_t kWordWork = 16;

template <class I>
BitMask bit_mask(const Csr<I>& weight) {
  return {weight.crow, weight.words, weight.row_words};
}

template <class I>
int64_t bit_work(const Csr<I>& weight) {
  return weight.rows * weight.row_words * kWordWork;
}

// out[r] = bias[r] + row r of the weight times x; bias may be null.
template <class I>
void multiply_bits(const Context& context, const Csr<I>& weight, const float* values, const float* bias, const float* x,
                   float* out) {
  context.parallel.for_parts(weight.rows, bit_work(weight), [&](int64_t begin, int64_t end) {
    context.kernels.bits->multiply({bit_mask(weight), values, weight.nnz, bias, begin, end, x, out + begin});
  });
}

// out[c] = column c of the weight times dy.
template <class I>
void multiply_bits_transposed(const Context& context, const Csr<I>& weight, const float* values, const float* dy,
                              float* out) {
  context.parallel.for_parts(weight.row_words, bit_work(weight), [&](int64_t begin, int64_t end) {
    std::fill(out + begin * kWordColumns, out + end * kWordColumns, 0.0f);
    context.kernels.bits->scatter({bit_mask(weight), values, weight.nnz, weight.rows, begin, end, dy, out});
  });
}

// dvalues[k] = dy[row of k] * x[column of k].
template <class I>
void sample_bits(const Context& context, const Csr<I>& weight, const float* dy, const float* x, float* dvalues) {
  context.parallel.for_parts(weight.rows, bit_work(weight), [&](int64_t begin, int64_t end) {
    context.kernels.bits->sample({bit_mask(weight), begin, end, dy, x, dvalues});
  });
}

}  // namespace rsn2::cpu
