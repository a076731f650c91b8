// The two products over all panels: cutting the work into tasks, packing, and calling the microkernels.
#pragma once

#include "buffer.h"
#include "microkernel.h"
#include "panel.h"
#include "parallel.h"
#include "scalar.h"
#include "sparse_rows.h"

namespace rsn2::cpu {

struct Context {
  const Microkernels& kernels;
  Parallel parallel;
};

// What moves elements of type P.
template <class P>
const LayoutKernels<CopiedAs<P>>& layout_kernels(const Microkernels& kernels) {
  if constexpr (std::is_same_v<CopiedAs<P>, uint16_t>) {
    return kernels.layout_bits16;
  } else if constexpr (std::is_same_v<P, double>) {
    return kernels.layout_double;
  } else {
    return kernels.layout_float;
  }
}

// Calls body(P{}) with the type that a product of S on so many positions takes: bfloat16 as it is where there are kernels
// for it and a register is filled, else what S is summed in.
template <class S, class Body>
void with_panel_type(const Context& context, int64_t positions, const Body& body) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    if (context.kernels.bfloat16 && positions > kLineElements<float>) return body(BFloat16{});
  }
  body(AccumulatorOf<S>{});
}

// y = W x, panel by panel. P is float, double or, where there are kernels for it, BFloat16; I int32_t or uint16_t.
template <class P, class I>
void multiply(const Context& context, const SparseRows<P, I>& weights, const PanelSource<P>& x,
              const PanelSink<AccumulatorOf<P>>& y);

// The same for few positions and W given by its columns: x has one panel, of one position or one cache line of them.
// `begin` [features of x + 1], `index` and `values` are those of the transpose of W, which has `rows` rows.
template <class T, class I>
void multiply_transposed(const Context& context, const SparseRows<T, I>& columns, int64_t rows,
                         const PanelSource<T>& x, const PanelSink<T>& y);

// dvalues[k] += sum over all positions of dy[row of k] * x[index of k]. Both sources have the same panels.
template <class P, class I>
void sample(const Context& context, const SparseRows<P, I>& pattern, const PanelSource<P>& dy, const PanelSource<P>& x,
            AccumulatorOf<P>* dvalues);

}  // namespace rsn2::cpu
