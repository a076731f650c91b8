// The inner products that every operator is made of, and the table that holds one instruction set's version of them.
//
// A panel is a block of activations laid out so that one feature is a contiguous run of positions q (batch
// elements, or pixels). A weight is then a value and an offset: the place in the panel where its input feature
// starts. This header is included by files compiled for different instruction sets, so it defines no function.
#pragma once

#include <stdint.h>

#include "storage.h"

namespace rsn2::cpu {

// Where several positions stand side by side, a width is a multiple of one cache line; a single one has width 1.

// out[(r - row_begin) * out_stride + q] = bias[r] + sum over k in [begin[r], end[r]) of
//     value(k) * panel[index[k] * index_scale + q]
// for r in [row_begin, row_end), q in [0, width), with values[k] as value(k), or values[place[k]] if there are places. The
// sum runs in the order of k for every q alone: a result does not depend on where in the panel it stands, nor on what is
// computed beside it. With `resumed`, the sum goes on from what out holds, with the bits of one that was not interrupted.
//
// T is the type of the sums, P that of what is multiplied: the same, or uint16_t for the bits of a bfloat16.
template <class T, class I, class P = T>
struct Product {
  const int32_t *begin, *end;
  const I* index;
  const P* values;
  const int32_t* place;  // null: none. For several positions, and not for pairs of bfloat16
  const T* bias;  // null: none
  bool resumed;   // several positions alone
  int64_t row_begin, row_end;
  const P* panel;
  int64_t index_scale;
  int64_t width;
  T* out;
  int64_t out_stride;
};

// out[k] += sum over q in [0, width) of rows[r * row_stride + q] * panel[index[k] * index_scale + q]
// for k in [k_begin, k_end), where r is the row with begin[r] <= k < end[r], if there is one; no row before row_begin has
// any of them.
// Each k's sum has its own fixed order: it does not depend on k_begin and k_end.
template <class T, class I, class P = T>
struct SampledProduct {
  const int32_t *begin, *end;
  const I* index;
  int64_t row_begin, row_end;
  int64_t k_begin, k_end;
  const P* rows;
  int64_t row_stride;
  const P* panel;
  int64_t index_scale;
  int64_t width;
  T* out;
};

// out[index[k] * width + q] += values[k] * rows[r * width + q] for k in [begin[r], begin[r + 1]), r in [0, row_count),
// q in [0, width), wherever index[k] is in [index_begin, index_end). Indices ascend within a row. The sum for an index
// runs in the order of r: it is that of a Product with the transposed weight.
template <class T, class I>
struct ScatteredProduct {
  const int32_t* begin;
  const I* index;
  const T* values;
  int64_t row_count;
  int64_t index_begin, index_end;
  const T* rows;
  int64_t width;  // 1 or one cache line
  T* out;
};

// target[c * target_stride + r] = source[r * source_stride + c] for r in [0, rows), c in [0, cols).
template <class T>
struct Transposition {
  const T* source;
  int64_t source_stride;
  int64_t rows, cols;
  T* target;
  int64_t target_stride;
};

// A run of elements within a line, and how many zeros follow it.
struct Run {
  int64_t source, target;  // offsets of its first element
  int64_t cells, zeros;
};

// target[run.target + i] = source[run.source + i] for i in [0, run.cells), zeros behind it, for all runs in order.
template <class T>
struct RunCopy {
  const T* source;
  T* target;
  const Run* runs;
  int64_t count;
};

// The positions of a weight as bits: weight k of row r stands where the (k - begin[r])-th bit of the row's words is set,
// bit c % 64 of word c / 64 being column c. The bits past the last column are 0.
struct BitMask {
  const int32_t* begin;
  const uint64_t* words;  // row_words of each row
  int64_t row_words;
};

// What such products have for each column is laid out [4, row_words, positions, 16]: quarters of words, each quarter of all
// words and positions in one piece. What a kernel reads over and over then keeps to as few lines of a cache as it has.
constexpr int64_t kQuarter = 16;

// Product on 1, 2, 4 or 8 positions, of weights stored as S, in float: out[b * out_stride + r - row_begin] for r in
// [row_begin, row_end), b in [0, positions), with x by quarters and zeros beyond the columns. The sum runs in an order of
// its own, the same wherever the row stands and whatever is computed beside it.
template <class S>
struct BitProduct {
  BitMask mask;
  const S* values;
  int64_t nnz;
  const float* bias;  // null: none
  int64_t row_begin, row_end;
  int64_t positions;
  const float* x;
  float* out;
  int64_t out_stride;
};

// ScatteredProduct on as many, to the columns of words [word_begin, word_end); rows [positions, row_count], out by quarters.
template <class S>
struct BitScatter {
  BitMask mask;
  const S* values;
  int64_t nnz;
  int64_t row_count;
  int64_t word_begin, word_end;
  int64_t positions;
  const float* rows;
  float* out;
};

// SampledProduct on as many, for the weights of rows [row_begin, row_end): out[k] is the sum over b, in its order, of
// rows[b * row_count + r] * x[b][column of k], with x as for BitProduct.
template <class S>
struct BitSample {
  BitMask mask;
  int64_t row_count;
  int64_t row_begin, row_end;
  int64_t positions;
  const float* rows;
  const float* x;
  S* out;
};

// dense [rows, cols] = values where the weight is, 0 elsewhere, for rows [row_begin, row_end). S: of as many bytes.
template <class S>
struct BitExpansion {
  BitMask mask;
  const S* values;
  int64_t nnz;
  int64_t row_begin, row_end;
  int64_t cols;
  S* dense;
};

// values = what stands in dense [rows, cols] where the weight is, for rows [row_begin, row_end).
template <class S>
struct BitGather {
  BitMask mask;
  const S* dense;
  int64_t row_begin, row_end;
  int64_t cols;
  S* values;
};

// T is the type of the arithmetic, I that of the sparse indices.
template <class T, class I>
struct IndexedKernels {
  void (*multiply)(const Product<T, I>&);
  // The same on a single position, in an order of its own: the same wherever a row stands.
  void (*multiply_any_order)(const Product<T, I>&);
  void (*sample)(const SampledProduct<T, I>&);
  void (*scatter)(const ScatteredProduct<T, I>&);
};

template <class T>
struct LayoutKernels {
  void (*transpose)(const Transposition<T>&);
  void (*copy_runs)(const RunCopy<T>&);
};

template <class S>
struct BitCopies {
  void (*expand)(const BitExpansion<S>&);
  void (*gather)(const BitGather<S>&);
};

template <class S>
struct BitProducts {
  void (*multiply)(const BitProduct<S>&);
  void (*scatter)(const BitScatter<S>&);
  void (*sample)(const BitSample<S>&);
};

// A product goes by bits where it owns one position in so many, or more; of 1, 2, 4 and 8 positions of x.
struct BitWorth {
  int64_t one, two, four, eight;
};

struct BitKernels {
  BitWorth forward, dx, dvalues;
  BitProducts<float> of_float;
  BitProducts<Half> of_half;
  BitProducts<BFloat16> of_bfloat16;
  BitCopies<float> four_bytes;
  BitCopies<uint16_t> two_bytes;
};

// Products of bfloat16 on several positions, in pairs. Their sums have the same bits as those of floats.
template <class I>
struct PairKernels {
  void (*multiply)(const Product<float, I, uint16_t>&);
  void (*sample)(const SampledProduct<float, I, uint16_t>&);
};

struct Bfloat16Kernels {
  PairKernels<int32_t> int32;
  PairKernels<uint16_t> uint16;
};

struct Microkernels {
  const char* name;
  IndexedKernels<float, int32_t> float_int32;
  IndexedKernels<float, uint16_t> float_uint16;
  IndexedKernels<double, int32_t> double_int32;
  IndexedKernels<double, uint16_t> double_uint16;
  LayoutKernels<float> layout_float;
  LayoutKernels<double> layout_double;
  LayoutKernels<uint16_t> layout_bits16;  // of any 16-bit type
  const BitKernels* bits;                 // null: none for this instruction set
  const Bfloat16Kernels* bfloat16;        // null: widened to float instead
};

// One definition per instruction set, each from its own compilation of microkernel.cpp.
namespace baseline {
extern const Microkernels microkernels;
}
namespace avx2 {
extern const Microkernels microkernels;
}
namespace avx512 {
extern const Microkernels microkernels;
}
// What AVX512-BF16, AVX512-VPOPCNTDQ and AVX512-VBMI2 add to AVX-512.
namespace avx512_bf16 {
extern const Bfloat16Kernels kernels;
extern const BitKernels bit_kernels;
// Whether this processor adds the products of a pair in the order that the kernels count on, rounding after each.
bool adds_in_order();
}

}  // namespace rsn2::cpu
