// The two inner products every operator is made of, and the table that holds one instruction set's version of them.
//
// A panel is a block of activations laid out so that one feature is a contiguous run of positions q (batch
// elements, or pixels). A weight is then a value and an offset: the place in the panel where its input feature
// starts. This header is included by files compiled for different instruction sets, so it defines no function.
#pragma once

#include <stdint.h>

namespace rsn2::cpu {

// out[(r - row_begin) * out_stride + q] = bias[r] + sum over k in [begin[r], begin[r + 1]) of
//     values[k] * panel[index[k] * index_scale + q]
// for r in [row_begin, row_end), q in [0, width). The sum runs in the order of k for every q alone: a result
// does not depend on where in the panel it stands, nor on what is computed beside it.
template <class T>
struct Product {
  const int32_t* begin;
  const int32_t* index;
  const T* values;
  const T* bias;  // null: none
  int64_t row_begin, row_end;
  const T* panel;
  int64_t index_scale;
  int64_t width;  // a multiple of one cache line
  T* out;
  int64_t out_stride;
};

// out[k] += sum over q in [0, width) of rows[r * row_stride + q] * panel[index[k] * index_scale + q]
// for k in [k_begin, k_end), where r is the row with begin[r] <= k < begin[r + 1]; the first is row_begin.
// Each k's sum has its own fixed order: it does not depend on k_begin and k_end.
template <class T>
struct SampledProduct {
  const int32_t* begin;
  const int32_t* index;
  int64_t row_begin;
  int64_t k_begin, k_end;
  const T* rows;
  int64_t row_stride;
  const T* panel;
  int64_t index_scale;
  int64_t width;  // a multiple of one cache line
  T* out;
};

struct Microkernels {
  const char* name;
  void (*multiply_float)(const Product<float>&);
  void (*multiply_double)(const Product<double>&);
  void (*sample_float)(const SampledProduct<float>&);
  void (*sample_double)(const SampledProduct<double>&);
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

}  // namespace rsn2::cpu
