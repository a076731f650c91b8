#include "conv2d.h"

#include <limits>
#include <stdexcept>

#include "values.h"

namespace rsn2::cpu {
namespace {

// A panel's size: half of a 1 MiB second-level cache.
template <class P>
constexpr int64_t kPanelElements = (512 << 10) / static_cast<int64_t>(sizeof(P));

struct Layout {
  ConvAxisLayout vertical, horizontal;

  explicit Layout(const ConvShape& shape) : vertical(shape.vertical), horizontal(shape.horizontal) {}

  int64_t phases() const { return vertical.input.count() * horizontal.input.count(); }
  int64_t kernel() const { return static_cast<int64_t>(vertical.taps.size() * horizontal.taps.size()); }
  const Tap& tap_v(int64_t tap) const { return vertical.taps[tap / horizontal.taps.size()]; }
  const Tap& tap_h(int64_t tap) const { return horizontal.taps[tap % horizontal.taps.size()]; }

  // Phase plane that a tap reads, and its shift there in cells.
  int64_t phase_of(int64_t tap) const { return tap_v(tap).phase * horizontal.input.count() + tap_h(tap).phase; }
  int64_t shift_of(int64_t tap) const { return tap_v(tap).shift * horizontal.period + tap_h(tap).shift; }

  // Panels of `lines` lines per image, `planes` planes deep.
  Tiling tiling(int64_t batch, int64_t lines, int64_t planes, int64_t budget) const {
    return Tiling(batch, lines, vertical.period, horizontal.period, planes, vertical.max_shift, budget);
  }

  Margin margin_after() const { return {0, vertical.max_shift, 0, horizontal.max_shift}; }
  Margin margin_before() const { return {vertical.max_shift, 0, horizontal.max_shift, 0}; }
};

void check_offsets(int64_t panel_elements) {
  if (panel_elements > std::numeric_limits<int32_t>::max()) {
    throw std::length_error("conv2d: one line of all channels needs " + std::to_string(panel_elements) +
                            " packed elements; at most 2^31 - 1 are supported");
  }
}

// Offset of every weight into a panel of x, in CSR order.
Buffer<int32_t> input_offsets(const Context& context, const Csr<int32_t>& weight, const ConvShape& shape, const Layout& layout,
                              int64_t channels, int64_t plane) {
  const int64_t channels_per_group = channels / shape.groups, kernel = layout.kernel();
  Buffer<int32_t> of_col(channels_per_group * kernel), offsets(weight.nnz);
  for (int64_t c = 0; c < channels_per_group; ++c) {
    for (int64_t tap = 0; tap < kernel; ++tap) {
      of_col.data()[c * kernel + tap] =
          static_cast<int32_t>((c * layout.phases() + layout.phase_of(tap)) * plane + layout.shift_of(tap));
    }
  }
  const int64_t rows_per_group = weight.rows / shape.groups;
  context.parallel.for_each(weight.rows, context.parallel.slots_for(weight.nnz), [&](int64_t row, int64_t) {
    const int64_t group_start = row / rows_per_group * channels_per_group * layout.phases() * plane;
    for (int32_t k = weight.crow[row]; k < weight.crow[row + 1]; ++k) {
      offsets.data()[k] = static_cast<int32_t>(of_col.data()[weight.col[k]] + group_start);
    }
  });
  return offsets;
}

// The weights as rows (channel within the group, group, phase) over panels of dy.
template <class P>
struct TransposedRows {
  Buffer<int32_t> begin, index;
  Buffer<P> values;

  template <class S>
  TransposedRows(const Context& context, const S* source, const TransposedCsr<int32_t>& weight, int64_t weight_rows,
                 int64_t groups, const Layout& layout, int64_t plane, int64_t lead)
      : begin(weight.cols / layout.kernel() * groups * layout.phases() + 1), index(weight.nnz), values(weight.nnz) {
    const int64_t kernel = layout.kernel(), phases = layout.phases(), channels = weight.cols / kernel;
    const int64_t slots = context.parallel.slots_for(weight.nnz);
    const Buffer<int32_t> cursors(slots * kernel);
    begin.data()[channels * groups * phases] = static_cast<int32_t>(weight.nnz);
    // A channel's columns are neighbours, so its weights keep their place as a whole; within it they are sorted by
    // group and phase. Rows ascend within a column: one cursor per tap passes over them once.
    context.parallel.for_each(channels, slots, [&](int64_t channel, int64_t slot) {
      const int32_t* const column = weight.crow + channel * kernel;
      int32_t* const cursor = cursors.data() + slot * kernel;
      std::copy_n(column, kernel, cursor);
      int32_t out = column[0];
      for (int64_t row = 0; row < groups * phases; ++row) {
        begin.data()[channel * groups * phases + row] = out;
        const int64_t rows_end = (row / phases + 1) * (weight_rows / groups);
        for (int64_t tap = 0; tap < kernel; ++tap) {
          if (layout.phase_of(tap) != row % phases) continue;
          const int64_t shift = lead - layout.shift_of(tap);
          int32_t k = cursor[tap];
          for (; k < column[tap + 1] && weight.row[k] < rows_end; ++k, ++out) {
            index.data()[out] = static_cast<int32_t>(weight.row[k] * plane + shift);
            values.data()[out] = as<P>(source[weight.perm[k]]);
          }
          cursor[tap] = k;
        }
      }
    });
  }
};

}  // namespace

template <class S>
void conv2d(const Context& context, const ImagesView<S>& x, const S* values, const S* bias, const Csr<int32_t>& weight,
            const ConvShape& shape, S* y) {
  const Layout layout(shape);
  const int64_t height = layout.vertical.output, width = layout.horizontal.output;
  const WidenedValues<S> wide_bias(context.parallel, bias, weight.rows);
  with_panel_type<S>(context, x.batch * height * width, [&](auto element) {
    using P = decltype(element);
    const Tiling tiling = layout.tiling(x.batch, height, x.channels * layout.phases(), kPanelElements<P>);
    const GridSource<P, S> source(context.kernels, x, layout.vertical.input, layout.horizontal.input, tiling,
                                  layout.margin_after());
    check_offsets(source.panel_elements());
    const Buffer<int32_t> offsets = input_offsets(context, weight, shape, layout, x.channels, source.plane());
    const WidenedValues<S, P> taken(context.parallel, values, weight.nnz);
    const SparseRows<P, int32_t> rows{weight.rows, weight.nnz, weight.crow, offsets.data(), taken.data(), wide_bias.data()};
    multiply(context, rows, source,
             GridSink<S>(context.kernels, y, 1, weight.rows, height, width, PhasedAxis::whole(height),
                         PhasedAxis::whole(width), tiling));
  });
}

template <class S>
void conv2d_dx(const Context& context, const ImagesView<S>& dy, const S* values, const TransposedCsr<int32_t>& weight,
               const ConvShape& shape, S* dx) {
  const Layout layout(shape);
  const int64_t channels_per_group = weight.cols / layout.kernel();
  const int64_t height = shape.vertical.input, width = shape.horizontal.input;
  if (!layout.vertical.reads_all_input || !layout.horizontal.reads_all_input) {
    std::fill_n(dx, dy.batch * shape.groups * channels_per_group * height * width, S{});
  }
  with_panel_type<S>(context, dy.batch * dy.height * dy.width, [&](auto element) {
    using P = decltype(element);
    const Tiling tiling = layout.tiling(dy.batch, layout.vertical.cells, dy.channels, kPanelElements<P>);
    const GridSource<P, S> source(context.kernels, dy, PhasedAxis::whole(dy.height), PhasedAxis::whole(dy.width), tiling,
                                  layout.margin_before());
    check_offsets(source.panel_elements());
    const TransposedRows<P> transposed(context, values, weight, dy.channels, shape.groups, layout, source.plane(),
                                       source.lead());
    const SparseRows<P, int32_t> rows{shape.groups * channels_per_group * layout.phases(), weight.nnz,
                                      transposed.begin.data(), transposed.index.data(), transposed.values.data(), nullptr};
    multiply(context, rows, source,
             GridSink<S>(context.kernels, dx, shape.groups, channels_per_group, height, width, layout.vertical.input,
                         layout.horizontal.input, tiling));
  });
}

template <class S>
void conv2d_dvalues(const Context& context, const ImagesView<S>& dy, const ImagesView<S>& x, const Csr<int32_t>& weight,
                    const ConvShape& shape, S* dvalues) {
  const Layout layout(shape);
  const NarrowedValues<S> sums(dvalues, weight.nnz);
  sums.clear();
  with_panel_type<S>(context, dy.batch * dy.height * dy.width, [&](auto element) {
    using P = decltype(element);
    // Both operands' panels share the cache.
    const Tiling tiling =
        layout.tiling(x.batch, layout.vertical.output, x.channels * layout.phases() + dy.channels, kPanelElements<P>);
    const GridSource<P, S> source(context.kernels, x, layout.vertical.input, layout.horizontal.input, tiling,
                                  layout.margin_after());
    const GridSource<P, S> gradient(context.kernels, dy, PhasedAxis::whole(dy.height), PhasedAxis::whole(dy.width), tiling,
                                    Margin{});
    check_offsets(source.panel_elements());
    const Buffer<int32_t> offsets = input_offsets(context, weight, shape, layout, x.channels, source.plane());
    const SparseRows<P, int32_t> pattern{weight.rows, weight.nnz, weight.crow, offsets.data(), nullptr, nullptr};
    sample(context, pattern, gradient, source, sums.data());
  });
  sums.finish(context.parallel);
}

#define RSN2_INSTANTIATE(S)                                                                                         \
  template void conv2d(const Context&, const ImagesView<S>&, const S*, const S*, const Csr<int32_t>&, const ConvShape&, S*);  \
  template void conv2d_dx(const Context&, const ImagesView<S>&, const S*, const TransposedCsr<int32_t>&, const ConvShape&,    \
                          S*);                                                                                      \
  template void conv2d_dvalues(const Context&, const ImagesView<S>&, const ImagesView<S>&, const Csr<int32_t>&,               \
                               const ConvShape&, S*);
RSN2_INSTANTIATE(float)
RSN2_INSTANTIATE(double)
RSN2_INSTANTIATE(Half)
RSN2_INSTANTIATE(BFloat16)
#undef RSN2_INSTANTIATE

}  // namespace rsn2::cpu
