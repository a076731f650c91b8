// The three products of a sparse linear layer. S is float, double, Half or BFloat16, I and J are
// int32_t or uint16_t.
#pragma once

#include "product.h"
#include "scalar.h"

namespace rsn2::cpu {

// A two-dimensional tensor with any strides, in elements.
template <class S>
struct MatrixView {
  const S* data;
  int64_t batch;
  int64_t features;
  int64_t batch_stride;
  int64_t feature_stride;
};

// y [batch, rows] contiguous; bias [rows] or null.
template <class S, class I>
void linear(const Context& context, const MatrixView<S>& x, const S* values, const S* bias, const Csr<I>& weight, S* y);

// dx [batch, cols] contiguous. The weight is given in both orders.
template <class S, class I, class J>
void linear_dx(const Context& context, const MatrixView<S>& dy, const S* values, const Csr<I>& weight,
               const TransposedCsr<J>& transposed, S* dx);

// dvalues [nnz].
template <class S, class I>
void linear_dvalues(const Context& context, const MatrixView<S>& dy, const MatrixView<S>& x, const Csr<I>& weight,
                    S* dvalues);

}  // namespace rsn2::cpu
