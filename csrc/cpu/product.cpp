#include "product.h"

#include "buffer.h"

namespace rsn2::cpu {
namespace {

void call(const Microkernels& kernels, const Product<float>& p) { kernels.multiply_float(p); }
void call(const Microkernels& kernels, const Product<double>& p) { kernels.multiply_double(p); }
void call(const Microkernels& kernels, const SampledProduct<float>& p) { kernels.sample_float(p); }
void call(const Microkernels& kernels, const SampledProduct<double>& p) { kernels.sample_double(p); }

template <class T>
int64_t total_width(const PanelSource<T>& source) {
  int64_t width = 0;
  for (int64_t panel = 0; panel < source.panels(); ++panel) width += source.shape(panel).width;
  return width;
}

// Packs panels [first, first + count) side by side into data.
template <class T>
void pack_panels(const Parallel& parallel, int64_t slots, const PanelSource<T>& source, int64_t first, int64_t count,
                 T* data) {
  const int64_t blocks = ceil_div(source.features(), kPackFeatures);
  parallel.for_each(count * blocks, slots, [&](int64_t task, int64_t) {
    const int64_t panel = task / blocks, begin = task % blocks * kPackFeatures;
    const int64_t end = std::min(begin + kPackFeatures, source.features());
    source.pack(first + panel, begin, end, data + panel * source.panel_elements());
  });
}

// One panel times rows [row_begin, row_end), stored block by block through scratch.
template <class T>
void multiply_rows(const Microkernels& kernels, const SparseRows<T>& weights, const PanelShape& shape, const T* data,
                   int64_t row_begin, int64_t row_end, T* scratch, const PanelSink<T>& y, int64_t panel) {
  for (int64_t q = 0; q < shape.width; q += kWidthBlock) {
    const int64_t width = std::min(kWidthBlock, shape.width - q);
    for (int64_t r = row_begin; r < row_end; r += kRowBlock) {
      const int64_t r_end = std::min(r + kRowBlock, row_end);
      call(kernels, Product<T>{weights.begin, weights.index, weights.values, weights.bias, r, r_end, data + q,
                               shape.index_scale, width, scratch, width});
      y.store(panel, r, r_end, q, q + width, scratch, width);
    }
  }
}

}  // namespace

template <class T>
void multiply(const Context& context, const SparseRows<T>& weights, const PanelSource<T>& x, const PanelSink<T>& y) {
  const Parallel& parallel = context.parallel;
  const int64_t panels = x.panels();
  if (panels == 0 || weights.rows == 0) return;
  const int64_t slots = parallel.slots_for((weights.nnz + weights.rows * kRowCost + x.features()) * total_width(x));
  // As many panels at a time as there are slots: memory stays bounded, and a slot finds what it packed in its cache.
  const int64_t wave = std::min(panels, slots);
  const Buffer<T> packed(wave * x.panel_elements());
  const Buffer<T> scratch(slots * kRowBlock * kWidthBlock);
  for (int64_t first = 0; first < panels; first += wave) {
    const int64_t count = std::min(wave, panels - first);
    pack_panels(parallel, slots, x, first, count, packed.data());
    // With fewer panels than slots the rows are cut, finely enough that the slots' shares differ little.
    const int64_t parts = count == slots ? 1 : std::min(weights.rows, ceil_div(4 * slots, count));
    parallel.for_each(count * parts, slots, [&](int64_t task, int64_t slot) {
      const int64_t panel = task / parts, part = task % parts;
      multiply_rows(context.kernels, weights, x.shape(first + panel), packed.data() + panel * x.panel_elements(),
                    split_rows(weights.begin, weights.rows, part, parts),
                    split_rows(weights.begin, weights.rows, part + 1, parts),
                    scratch.data() + slot * kRowBlock * kWidthBlock, y, first + panel);
    });
  }
}

template <class T>
void sample(const Context& context, const SparseRows<T>& pattern, const PanelSource<T>& dy, const PanelSource<T>& x,
            T* dvalues) {
  const Parallel& parallel = context.parallel;
  const int64_t panels = x.panels();
  if (panels == 0 || pattern.nnz == 0) return;
  const int64_t slots = parallel.slots_for((pattern.nnz + x.features() + dy.features()) * total_width(x));
  const int64_t wave = std::min(panels, slots);
  const Buffer<T> packed_x(wave * x.panel_elements());
  const Buffer<T> packed_dy(wave * dy.panel_elements());
  for (int64_t first = 0; first < panels; first += wave) {
    const int64_t count = std::min(wave, panels - first);
    pack_panels(parallel, slots, x, first, count, packed_x.data());
    pack_panels(parallel, slots, dy, first, count, packed_dy.data());
    // Each weight belongs to one slot, which adds the panels in order: the sum does not depend on the slots.
    parallel.for_each(slots, slots, [&](int64_t part, int64_t) {
      const int64_t k_begin = pattern.nnz * part / slots, k_end = pattern.nnz * (part + 1) / slots;
      if (k_begin == k_end) return;
      const int64_t row = row_of(pattern.begin, pattern.rows, k_begin);
      for (int64_t panel = 0; panel < count; ++panel) {
        const PanelShape shape = x.shape(first + panel);
        call(context.kernels,
             SampledProduct<T>{pattern.begin, pattern.index, row, k_begin, k_end,
                               packed_dy.data() + panel * dy.panel_elements(), dy.shape(first + panel).feature_stride,
                               packed_x.data() + panel * x.panel_elements(), shape.index_scale, shape.width, dvalues});
      }
    });
  }
}

template void multiply(const Context&, const SparseRows<float>&, const PanelSource<float>&, const PanelSink<float>&);
template void multiply(const Context&, const SparseRows<double>&, const PanelSource<double>&, const PanelSink<double>&);
template void sample(const Context&, const SparseRows<float>&, const PanelSource<float>&, const PanelSource<float>&,
                     float*);
template void sample(const Context&, const SparseRows<double>&, const PanelSource<double>&, const PanelSource<double>&,
                     double*);

}  // namespace rsn2::cpu
