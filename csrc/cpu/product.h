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

// y = W x, panel by panel. T is float or double.
template <class T>
void multiply(const Context& context, const SparseRows<T>& weights, const PanelSource<T>& x, const PanelSink<T>& y);

// dvalues[k] += sum over all positions of dy[row of k] * x[index of k]. Both sources have the same panels.
template <class T>
void sample(const Context& context, const SparseRows<T>& pattern, const PanelSource<T>& dy, const PanelSource<T>& x,
            T* dvalues);

}  // namespace rsn2::cpu
