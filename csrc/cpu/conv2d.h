// The three products of a sparse two-dimensional convolution. S is float, double, Half or BFloat16.
//
// The weight is [rows, cols] with col = (channel within the group * kh + i) * kw + j; row r belongs to group
// r / (rows / groups).
#pragma once

#include "conv_geometry.h"
#include "grid.h"
#include "product.h"
#include "scalar.h"

namespace rsn2::cpu {

struct ConvShape {
  ConvAxis vertical, horizontal;
  int64_t groups;
};

// y [batch, rows, output height, output width] contiguous; bias [rows] or null.
template <class S>
void conv2d(const Context& context, const ImagesView<S>& x, const S* values, const S* bias, const Csr<int32_t>& weight,
            const ConvShape& shape, S* y);

// dx [batch, channels, input height, input width] contiguous.
template <class S>
void conv2d_dx(const Context& context, const ImagesView<S>& dy, const S* values, const TransposedCsr<int32_t>& weight,
               const ConvShape& shape, S* dx);

// dvalues [nnz].
template <class S>
void conv2d_dvalues(const Context& context, const ImagesView<S>& dy, const ImagesView<S>& x, const Csr<int32_t>& weight,
                    const ConvShape& shape, S* dvalues);

}  // namespace rsn2::cpu
