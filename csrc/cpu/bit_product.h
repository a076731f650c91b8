// Products on few positions by the bits of the weight's mask: when, and cutting the work into tasks. x, dy and sums are
// float; what has a place for each column is laid out by quarters of words (microkernel.h), with zeros behind the columns.
#pragma once

#include <type_traits>

#include "product.h"
#include "storage.h"

namespace rsn2::cpu {

// Columns of a word, the multiply-adds it counts for where threads are asked for, and its quarters.
inline constexpr int64_t kWordColumns = 64;
inline constexpr int64_t kWordWork = 128;
inline constexpr int64_t kQuarters = kWordColumns / kQuarter;

template <class I>
BitMask bit_mask(const Csr<I>& weight) {
  return {weight.crow, weight.words, weight.row_words};
}

template <class I>
int64_t bit_work(const Csr<I>& weight) {
  return weight.rows * weight.row_words * kWordWork;
}

// The batches that go by bits, and the positions that the kernels take for them: 1, 2, 4 or 8, some of them all zeros.
inline constexpr int64_t kBitBatch = 8;
inline int64_t bit_positions(int64_t batch) { return batch <= 2 ? batch : batch <= 4 ? 4 : 8; }

inline int64_t bit_worth(const BitWorth& worth, int64_t batch) {
  return batch == 1 ? worth.one : batch == 2 ? worth.two : batch <= 4 ? worth.four : worth.eight;
}

// Whether a product in float goes by the bits of the weight's mask; `product` is one of those of BitKernels.
template <class I>
bool goes_by_bits(const Context& context, const Csr<I>& weight, int64_t batch, BitWorth BitKernels::* product) {
  if (!weight.words || !context.kernels.bits || batch < 1 || batch > kBitBatch) return false;
  return bit_worth(context.kernels.bits->*product, batch) * weight.nnz >= weight.rows * weight.row_words * kWordColumns;
}

template <class S>
const BitProducts<S>& bit_products(const Context& context) {
  const BitKernels& kernels = *context.kernels.bits;
  if constexpr (std::is_same_v<S, Half>) {
    return kernels.of_half;
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    return kernels.of_bfloat16;
  } else {
    return kernels.of_float;
  }
}

// out[b][r] = bias[r] + row r of the weight times x[b]; bias may be null.
template <class S, class I>
void multiply_bits(const Context& context, const Csr<I>& weight, const S* values, const float* bias, int64_t positions,
                   const float* x, float* out) {
  context.parallel.for_parts(weight.rows, positions * bit_work(weight), [&](int64_t begin, int64_t end) {
    bit_products<S>(context).multiply(
        {bit_mask(weight), values, weight.nnz, bias, begin, end, positions, x, out + begin, weight.rows});
  });
}

// out[b][c] = column c of the weight times dy[b].
template <class S, class I>
void multiply_bits_transposed(const Context& context, const Csr<I>& weight, const S* values, int64_t positions,
                              const float* dy, float* out) {
  const int64_t word = positions * kQuarter, quarter = weight.row_words * word;
  context.parallel.for_parts(weight.row_words, positions * bit_work(weight), [&](int64_t begin, int64_t end) {
    for (float* part = out; part != out + kQuarters * quarter; part += quarter) {
      std::fill(part + begin * word, part + end * word, 0.0f);
    }
    bit_products<S>(context).scatter(
        {bit_mask(weight), values, weight.nnz, weight.rows, begin, end, positions, dy, out});
  });
}

// dvalues[k] = sum over b of dy[b][row of k] * x[b][column of k].
template <class S, class I>
void sample_bits(const Context& context, const Csr<I>& weight, int64_t positions, const float* dy, const float* x,
                 S* dvalues) {
  context.parallel.for_parts(weight.rows, positions * bit_work(weight), [&](int64_t begin, int64_t end) {
    bit_products<S>(context).sample({bit_mask(weight), weight.rows, begin, end, positions, dy, x, dvalues});
  });
}

}  // namespace rsn2::cpu
