#include "product.h"

#include "buffer.h"
#include "cut_rows.h"

namespace rsn2::cpu {
namespace {

const auto& kernels_for(const Microkernels& all, float, int32_t) { return all.float_int32; }
const auto& kernels_for(const Microkernels& all, float, uint16_t) { return all.float_uint16; }
const auto& kernels_for(const Microkernels& all, double, int32_t) { return all.double_int32; }
const auto& kernels_for(const Microkernels& all, double, uint16_t) { return all.double_uint16; }
const auto& kernels_for(const Microkernels& all, BFloat16, int32_t) { return all.bfloat16->int32; }
const auto& kernels_for(const Microkernels& all, BFloat16, uint16_t) { return all.bfloat16->uint16; }

// The positions of all panels, each panel's filled up to the cache line in whose time few of them are multiplied.
template <class P>
int64_t total_width(const PanelSource<P>& source) {
  int64_t width = 0;
  for (int64_t panel = 0; panel < source.panels(); ++panel) width += round_up(source.shape(panel).width, kLineElements<P>);
  return width;
}

template <class P>
int64_t pack_tasks(const PanelSource<P>& source, int64_t panels) {
  return panels * ceil_div(source.features(), kPackFeatures<P>);
}

// One of the pack_tasks that pack panels from `first` on, side by side into data.
template <class P>
void pack_task(const PanelSource<P>& source, int64_t first, int64_t task, P* data) {
  const int64_t tasks = pack_tasks(source, 1);
  const int64_t panel = task / tasks, begin = task % tasks * kPackFeatures<P>;
  source.pack(first + panel, begin, std::min(begin + kPackFeatures<P>, source.features()),
              data + panel * source.panel_elements());
}

// Multiply-adds in whose time an element is packed: a vector is too small for several slots.
constexpr int64_t kPackWork = 4;

// Bytes of a panel that stay in the second-level cache beside all that passes through it, and in the first. A sampled
// product reads longer runs and pays more for a short row.
constexpr int64_t kMultiplyBytes = 1 << 18, kMultiplyFirstLevelBytes = 5 << 13, kSampleBytes = 1 << 19;

// Bytes of weights that stay in the second-level cache beside a panel, and panels that are worth the wait for more.
constexpr int64_t kWeightBytes = 1 << 19, kManyPanels = 3;

// Weights of a row that are worth a start of their own: a part with fewer loses more by it than the first-level cache gives.
// More of them where a start serves few positions, or weights that come from afar are not read often. Each the best at most
// densities from 0.05 to 0.5 (1000 x 1000 on 512, 128, 100, 64, 48 and 32 positions, Zen 5; on 512, Zen 4).
constexpr int64_t kPartWeights = 20, kLongPartWeights = 64;
constexpr int64_t kManyPositions = 57;

// Parts into which rows are cut so that each reads features that stay in a core's cache. Only where an index counts
// features: the offsets of a convolution need not ascend, and its panels are small.
template <class P>
int64_t feature_parts(const PanelSource<P>& x, int64_t cached_bytes) {
  const PanelShape shape = x.shape(0);
  if (shape.width == 1 || shape.index_scale != shape.feature_stride) return 1;
  return ceil_div(x.panel_elements() * static_cast<int64_t>(sizeof(P)), cached_bytes);
}

// The same for a product: the first-level cache as far as rows have weights enough, the second-level cache in any case.
// Weights that come from afar for few positions are read fastest as they stand. `width` is the total of x.
template <class P, class I>
int64_t multiply_parts(const SparseRows<P, I>& weights, const PanelSource<P>& x, int64_t width) {
  const int64_t least = feature_parts(x, kMultiplyBytes);
  const int64_t panels = x.panels();
  const int64_t bytes = weights.nnz * static_cast<int64_t>(sizeof(P) + sizeof(I));
  const bool near = bytes <= kWeightBytes || panels >= kManyPanels;
  const bool wide = width >= panels * kManyPositions;
  if (!near && !wide) return least;
  const int64_t part_weights = near && wide ? kPartWeights : kLongPartWeights;
  return std::clamp(weights.nnz / (weights.rows * part_weights), least, feature_parts(x, kMultiplyFirstLevelBytes));
}

// The kernel of a product; there is a choice on a single position, which no product in pairs has.
template <class T, class I>
auto product_of(const IndexedKernels<T, I>& kernels, bool any_order) {
  return any_order ? kernels.multiply_any_order : kernels.multiply;
}
template <class I>
auto product_of(const PairKernels<I>& kernels, bool) {
  return kernels.multiply;
}

// One panel times rows [row_begin, row_end), stored block by block through scratch.
template <class P, class I, class T>
void multiply_rows(const Microkernels& kernels, const SparseRows<P, I>& weights, const CutRows<I>& cut,
                   const PanelShape& shape, const P* data, int64_t row_begin, int64_t row_end, T* scratch,
                   const PanelSink<T>& y, int64_t panel) {
  for (int64_t q = 0; q < shape.width; q += kWidthBlock) {
    const int64_t width = std::min(kWidthBlock, shape.width - q);
    // A single position, which the last panel may have, is multiplied in one go. Of others, the more rows a part of the
    // panel meets, the more seldom it is read into the cache.
    const int64_t parts = width == 1 ? 1 : cut.parts();
    const int64_t rows = width == 1 ? kNarrowRowBlock : parts == 1 ? kRowBlock : kRowBlock * kWidthBlock / width;
    const auto multiply = product_of(kernels_for(kernels, P{}, I{}), weights.any_order && width == 1);
    for (int64_t r = row_begin; r < row_end; r += rows) {
      const int64_t r_end = std::min(r + rows, row_end);
      for (int64_t part = 0; part < parts; ++part) {
        const int32_t* const end = cut.end(part == parts - 1 ? cut.parts() - 1 : part);
        multiply({cut.begin(part), end, weights.index, as_copied(weights.values), weights.place, weights.bias, part > 0, r,
                  r_end, as_copied(data + q), shape.index_scale, width, scratch, width});
      }
      y.store(panel, r, r_end, q, q + width, scratch, width);
    }
  }
}

}  // namespace

template <class P, class I>
void multiply(const Context& context, const SparseRows<P, I>& weights, const PanelSource<P>& x,
              const PanelSink<AccumulatorOf<P>>& y) {
  const Parallel& parallel = context.parallel;
  const int64_t panels = x.panels();
  if (panels == 0 || weights.rows == 0) return;
  const int64_t width = total_width(x);
  const int64_t slots = parallel.slots_for((weights.nnz + weights.rows * kRowCost + x.features()) * width);
  const CutRows<I> cut(parallel, weights.begin, weights.index, weights.rows, x.features(),
                       multiply_parts(weights, x, width));
  const Buffer<P> packed(std::min(panels, slots) * x.panel_elements());
  const Buffer<AccumulatorOf<P>> scratch(slots * kRowBlock * kWidthBlock);
  const auto multiply_part = [&](int64_t panel, const P* data, int64_t part, int64_t parts, int64_t slot) {
    multiply_rows(context.kernels, weights, cut, x.shape(panel), data, split_rows(weights.begin, weights.rows, part, parts),
                  split_rows(weights.begin, weights.rows, part + 1, parts),
                  scratch.data() + slot * kRowBlock * kWidthBlock, y, panel);
  };
  // As long as there is a panel for every slot, a slot packs a panel and multiplies it while it is in its cache.
  const int64_t whole = panels / slots * slots;
  parallel.for_each(whole, slots, [&](int64_t panel, int64_t slot) {
    P* const data = packed.data() + slot * x.panel_elements();
    for (int64_t task = 0; task < pack_tasks(x, 1); ++task) pack_task(x, panel, task, data);
    multiply_part(panel, data, 0, 1, slot);
  });
  // The slots share the panels left over: their rows are cut, finely enough that the shares differ little.
  const int64_t rest = panels - whole;
  if (rest == 0) return;
  parallel.for_each(pack_tasks(x, rest), parallel.slots_for(rest * x.panel_elements() * kPackWork),
                    [&](int64_t task, int64_t) { pack_task(x, whole, task, packed.data()); });
  const int64_t parts = std::min(weights.rows, ceil_div(4 * slots, rest));
  parallel.for_each(rest * parts, slots, [&](int64_t task, int64_t slot) {
    const int64_t panel = task / parts;
    multiply_part(whole + panel, packed.data() + panel * x.panel_elements(), task % parts, parts, slot);
  });
}

template <class T, class I>
void multiply_transposed(const Context& context, const SparseRows<T, I>& columns, int64_t rows,
                         const PanelSource<T>& x, const PanelSink<T>& y) {
  const Parallel& parallel = context.parallel;
  if (x.panels() == 0 || rows == 0) return;
  const int64_t width = x.shape(0).width;
  const Buffer<T> packed(x.panel_elements()), sums(rows * width);
  for (int64_t task = 0; task < pack_tasks(x, 1); ++task) pack_task(x, 0, task, packed.data());
  // Every slot passes over all of W and keeps what falls into its own rows.
  const int64_t slots = std::min(rows, parallel.slots_for((columns.nnz + rows) * total_width(x)));
  parallel.for_each(slots, slots, [&](int64_t slot, int64_t) {
    const int64_t first = rows * slot / slots, end = rows * (slot + 1) / slots;
    std::fill(sums.data() + first * width, sums.data() + end * width, T{0});
    kernels_for(context.kernels, T{}, I{})
        .scatter({columns.begin, columns.index, columns.values, columns.rows, first, end, packed.data(), width,
                  sums.data()});
    for (int64_t r = first; r < end; r += kRowBlock) {
      y.store(0, r, std::min(r + kRowBlock, end), 0, width, sums.data() + r * width, width);
    }
  });
}

template <class P, class I>
void sample(const Context& context, const SparseRows<P, I>& pattern, const PanelSource<P>& dy, const PanelSource<P>& x,
            AccumulatorOf<P>* dvalues) {
  const Parallel& parallel = context.parallel;
  const int64_t panels = x.panels();
  if (panels == 0 || pattern.nnz == 0) return;
  const int64_t slots = parallel.slots_for((pattern.nnz + x.features() + dy.features()) * total_width(x));
  // One slot finds the panel it packed in its cache. Several share all panels, so that their caches help little:
  // packing more at a time costs memory but saves waiting for each other.
  const int64_t wave = std::min(panels, slots == 1 ? 1 : 4 * slots);
  const CutRows<I> cut(parallel, pattern.begin, pattern.index, pattern.rows, x.features(),
                       feature_parts(x, kSampleBytes));
  const Buffer<P> packed_x(wave * x.panel_elements());
  const Buffer<P> packed_dy(wave * dy.panel_elements());
  for (int64_t first = 0; first < panels; first += wave) {
    const int64_t count = std::min(wave, panels - first);
    const int64_t x_tasks = pack_tasks(x, count), elements = count * (x.panel_elements() + dy.panel_elements());
    parallel.for_each(x_tasks + pack_tasks(dy, count), parallel.slots_for(elements * kPackWork), [&](int64_t task, int64_t) {
      if (task < x_tasks) {
        pack_task(x, first, task, packed_x.data());
      } else {
        pack_task(dy, first, task - x_tasks, packed_dy.data());
      }
    });
    // Each weight belongs to one slot, which adds the panels in order: the sum does not depend on the slots.
    parallel.for_each(slots, slots, [&](int64_t part, int64_t) {
      const int64_t k_begin = pattern.nnz * part / slots, k_end = pattern.nnz * (part + 1) / slots;
      if (k_begin == k_end) return;
      const int64_t row_begin = row_of(pattern.begin, pattern.rows, k_begin);
      const int64_t row_end = row_of(pattern.begin, pattern.rows, k_end - 1) + 1;
      for (int64_t panel = 0; panel < count; ++panel) {
        const PanelShape shape = x.shape(first + panel);
        for (int64_t part = 0; part < cut.parts(); ++part) {
          kernels_for(context.kernels, P{}, I{})
              .sample({cut.begin(part), cut.end(part), pattern.index, row_begin, row_end, k_begin, k_end,
                       as_copied(packed_dy.data() + panel * dy.panel_elements()),
                       dy.shape(first + panel).feature_stride,
                       as_copied(packed_x.data() + panel * x.panel_elements()), shape.index_scale, shape.width,
                       dvalues});
        }
      }
    });
  }
}

#define RSN2_INSTANTIATE(P, I)                                                                                     \
  template void multiply(const Context&, const SparseRows<P, I>&, const PanelSource<P>&,                            \
                         const PanelSink<AccumulatorOf<P>>&);                                                       \
  template void sample(const Context&, const SparseRows<P, I>&, const PanelSource<P>&, const PanelSource<P>&,       \
                       AccumulatorOf<P>*);
#define RSN2_INSTANTIATE_TRANSPOSED(T, I)                                                                          \
  template void multiply_transposed(const Context&, const SparseRows<T, I>&, int64_t, const PanelSource<T>&,        \
                                    const PanelSink<T>&);
RSN2_INSTANTIATE(float, int32_t)
RSN2_INSTANTIATE(float, uint16_t)
RSN2_INSTANTIATE(double, int32_t)
RSN2_INSTANTIATE(double, uint16_t)
RSN2_INSTANTIATE(BFloat16, int32_t)
RSN2_INSTANTIATE(BFloat16, uint16_t)
RSN2_INSTANTIATE_TRANSPOSED(float, int32_t)
RSN2_INSTANTIATE_TRANSPOSED(float, uint16_t)
RSN2_INSTANTIATE_TRANSPOSED(double, int32_t)
RSN2_INSTANTIATE_TRANSPOSED(double, uint16_t)
#undef RSN2_INSTANTIATE_TRANSPOSED
#undef RSN2_INSTANTIATE

}  // namespace rsn2::cpu
