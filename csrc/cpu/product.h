// The two products over all panels: cutting the work into tasks, packing, and calling the microkernels.
#pragma once

#include "microkernel.h"
#include "panel.h"
#include "parallel.h"
#include "sparse_rows.h"

namespace rsn2::cpu {

struct Context {
  const Microkernels& kernels;
  Parallel parallel;
};

// The layout kernels of an arithmetic type.
inline const LayoutKernels<float>& layout_kernels(const Microkernels& kernels, float) { return kernels.layout_float; }
inline const LayoutKernels<double>& layout_kernels(const Microkernels& kernels, double) { return kernels.layout_double; }

// y = W x, panel by panel. T is float or double, I int32_t or uint16_t.
template <class T, class I>
void multiply(const Context& context, const SparseRows<T, I>& weights, const PanelSource<T>& x, const PanelSink<T>& y);

// The same for few positions and W given by its columns: x has one panel, of one position or one cache line of them.
// `begin` [features of x + 1], `index` and `values` are those of the transpose of W, which has `rows` rows.
template <class T, class I>
void multiply_transposed(const Context& context, const SparseRows<T, I>& columns, int64_t rows,
                         const PanelSource<T>& x, const PanelSink<T>& y);

// dvalues[k] += sum over all positions of dy[row of k] * x[index of k]. Both sources have the same panels.
template <class T, class I>
void sample(const Context& context, const SparseRows<T, I>& pattern, const PanelSource<T>& dy, const PanelSource<T>& x,
            T* dvalues);

}  // namespace rsn2::cpu
