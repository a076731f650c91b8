#include "linear.h"

#include "bit_product.h"
#include "buffer.h"
#include "values.h"

namespace rsn2::cpu {
namespace {

// Batch elements per panel. The multiply keeps one row's accumulators in registers for all of them, and reads narrow
// panels faster, which a cache nearer by holds; the sampled product adds its lanes up once per panel, which a wider panel
// amortizes.
template <class P>
constexpr int64_t kMultiplyWidth = std::min<int64_t>(64, 256 / sizeof(P));
template <class P>
constexpr int64_t kSampleWidth = 512 / static_cast<int64_t>(sizeof(P));

// The same for several slots: each has a panel of its own, which it packs and multiplies without waiting for the others,
// where that leaves two vectors of positions for each weight.
template <class P>
int64_t multiply_width(const Context& context, int64_t batch, int64_t nnz) {
  const int64_t each = ceil_div(batch, context.parallel.slots_for(nnz * batch));
  if (each < 2 * kLineElements<P>) return kMultiplyWidth<P>;
  return std::min(round_up(each, kLineElements<P>), kMultiplyWidth<P>);
}

// The most values that several panels each take in an order that is not theirs: 500 000 for two of them gained by it on Zen 5,
// 840 000 lost.
constexpr int64_t kNearValues = 700'000;

// The largest weight, with its indices, that a single position is multiplied with in any order. More comes from memory, for
// which several rows at a time, in order, wait less (float 4096 x 8192, density 0.1, on Zen 4: 1.1 ms for 1.9).
constexpr int64_t kAnyOrderBytes = 12 << 20;

// Side of the tile that is converted and transposed at a time: two of them fit the L1 cache.
constexpr int64_t kTile = 64;

// x [batch, features] as panels [features, width] of P, zero beyond the batch.
template <class P, class S>
class BatchSource final : public PanelSource<P> {
 public:
  BatchSource(const Microkernels& kernels, const MatrixView<S>& x, int64_t width)
      : kernels_(layout_kernels<P>(kernels)), x_(x), width_(width) {}

  int64_t panels() const override { return ceil_div(x_.batch, width_); }
  int64_t features() const override { return x_.features; }
  int64_t panel_elements() const override { return x_.features * padded(std::min(x_.batch, width_)); }

  PanelShape shape(int64_t panel) const override {
    const int64_t width = padded(count(panel));
    return {width, width, width};
  }

  void pack(int64_t panel, int64_t begin, int64_t end, P* data) const override {
    const int64_t batch = count(panel), width = padded(batch);
    const S* const source = x_.data + panel * width_ * x_.batch_stride;
    for (int64_t f = begin; f < end; ++f) std::fill(data + f * width + batch, data + (f + 1) * width, P{0});
    if (width == 1) {
      widen_run(source + begin * x_.feature_stride, x_.feature_stride, end - begin, data + begin);
    } else if (x_.batch_stride == 1) {
      for (int64_t f = begin; f < end; ++f) widen_run(source + f * x_.feature_stride, 1, batch, data + f * width);
    } else {
      ask_ahead(source, batch, begin, end);
      for (int64_t f = begin; f < end; f += kTile) {
        for (int64_t b = 0; b < batch; b += kTile) {
          pack_tile(source + b * x_.batch_stride + f * x_.feature_stride, std::min(kTile, batch - b),
                    std::min(kTile, end - f), data + f * width + b, width);
        }
      }
    }
  }

 private:
  // One batch element needs no panel: its features are one vector. Products in pairs have no kernel for that.
  static int64_t padded(int64_t batch) {
    return batch == 1 && !std::is_same_v<P, BFloat16> ? 1 : round_up(batch, kLineElements<P>);
  }
  int64_t count(int64_t panel) const { return std::min(width_, x_.batch - panel * width_); }

  // Asks the second-level cache for what is packed kAhead features later: more rows than the processor follows by itself
  // are read side by side. Packing and storing 512 x 1000 from memory took 0.19 ms for 0.37 (Zen 4).
  void ask_ahead(const S* source, int64_t batch, int64_t begin, int64_t end) const {
    constexpr int64_t kAhead = 64, kLine = kLineElements<S>;
    if (x_.feature_stride != 1) return;
    for (int64_t b = 0; b < batch; ++b) {
      const S* const row = source + b * x_.batch_stride;
      for (int64_t f = begin + kAhead; f < end + kAhead; f += kLine) __builtin_prefetch(row + f, 0, 2);
    }
  }

  void pack_tile(const S* source, int64_t batch, int64_t features, P* target, int64_t width) const {
    if constexpr (std::is_same_v<S, P>) {
      if (x_.feature_stride == 1) {
        kernels_.transpose({as_copied(source), x_.batch_stride, batch, features, as_copied(target), width});
        return;
      }
    }
    P tile[kTile * kTile];
    for (int64_t b = 0; b < batch; ++b) {
      widen_run(source + b * x_.batch_stride, x_.feature_stride, features, tile + b * features);
    }
    kernels_.transpose({as_copied(tile), features, batch, features, as_copied(target), width});
  }

  const LayoutKernels<CopiedAs<P>>& kernels_;
  MatrixView<S> x_;
  int64_t width_;
};

// Rows of a product as y [batch, rows] contiguous.
template <class S>
class BatchSink final : public PanelSink<AccumulatorOf<S>> {
 public:
  using T = AccumulatorOf<S>;

  BatchSink(const Microkernels& kernels, S* y, int64_t batch, int64_t rows, int64_t width)
      : kernels_(layout_kernels<T>(kernels)), y_(y), batch_(batch), rows_(rows), width_(width) {}

  void store(int64_t panel, int64_t row_begin, int64_t row_end, int64_t q_begin, int64_t q_end, const T* rows,
             int64_t stride) const override {
    const int64_t first = panel * width_ + q_begin;
    const int64_t count = std::min(q_end - q_begin, batch_ - first);
    for (int64_t r = row_begin; r < row_end; r += kTile) {
      for (int64_t b = 0; b < count; b += kTile) {
        store_tile(rows + (r - row_begin) * stride + b, stride, std::min(kTile, row_end - r),
                   std::min(kTile, count - b), y_ + (first + b) * rows_ + r);
      }
    }
  }

 private:
  void store_tile(const T* source, int64_t stride, int64_t rows, int64_t batch, S* target) const {
    if constexpr (std::is_same_v<S, T>) {
      kernels_.transpose({source, stride, rows, batch, target, rows_});
    } else {
      T tile[kTile * kTile];
      kernels_.transpose({source, stride, rows, batch, tile, rows});
      for (int64_t b = 0; b < batch; ++b) narrow_run(tile + b * rows, rows, target + b * rows_, 1);
    }
  }

  const LayoutKernels<T>& kernels_;
  S* y_;
  int64_t batch_, rows_, width_;
};

// The features of a batch as floats, [positions, features], zeros behind the batch.
template <class S>
Buffer<float> float_rows(const MatrixView<S>& x, int64_t positions) {
  Buffer<float> rows(positions * x.features);
  for (int64_t b = 0; b < x.batch; ++b) {
    widen_run(x.data + b * x.batch_stride, x.feature_stride, x.features, rows.data() + b * x.features);
  }
  std::fill(rows.data() + x.batch * x.features, rows.data() + positions * x.features, 0.0f);
  return rows;
}

// Calls run(position, first feature, features, place) for each quarter of a word of each position; place: in what is laid
// out by quarters (microkernel.h).
template <class Run>
void for_quarters(int64_t features, int64_t positions, const Run& run) {
  const int64_t words = ceil_div(features, kWordColumns);
  for (int64_t first = 0; first < words * kWordColumns; first += kQuarter) {
    const int64_t quarter = first % kWordColumns / kQuarter, place = (quarter * words + first / kWordColumns) * positions;
    const int64_t count = std::clamp<int64_t>(features - first, 0, kQuarter);
    for (int64_t b = 0; b < positions; ++b) run(b, first, count, (place + b) * kQuarter);
  }
}

// The features of a batch as floats by quarters, zeros behind the features and the batch.
template <class S>
Buffer<float> float_quarters(const MatrixView<S>& x, int64_t positions) {
  Buffer<float> quarters(positions * round_up(x.features, kWordColumns));
  for_quarters(x.features, positions, [&](int64_t b, int64_t first, int64_t count, int64_t place) {
    float* const quarter = quarters.data() + place;
    const int64_t there = b < x.batch ? count : 0;
    if (there) widen_run(x.data + b * x.batch_stride + first * x.feature_stride, x.feature_stride, there, quarter);
    std::fill(quarter + there, quarter + kQuarter, 0.0f);
  });
  return quarters;
}

}  // namespace

template <class S, class I>
void linear(const Context& context, const MatrixView<S>& x, const S* values, const S* bias, const Csr<I>& weight, S* y) {
  const WidenedValues<S> wide_bias(context.parallel, bias, weight.rows);
  if constexpr (std::is_same_v<AccumulatorOf<S>, float>) {
    if (goes_by_bits(context, weight, x.batch, &BitKernels::forward)) {
      const int64_t positions = bit_positions(x.batch);
      const Buffer<float> sums(positions * weight.rows), features = float_quarters(x, positions);
      multiply_bits(context, weight, values, wide_bias.data(), positions, features.data(), sums.data());
      return narrow_run(sums.data(), x.batch * weight.rows, y, 1);
    }
  }
  with_panel_type<S>(context, x.batch, [&](auto element) {
    using P = decltype(element);
    const WidenedValues<S, P> taken(context.parallel, values, weight.nnz);
    const bool cached = weight.nnz * static_cast<int64_t>(sizeof(P) + sizeof(I)) <= kAnyOrderBytes;
    const SparseRows<P, I> rows{weight.rows,      weight.nnz, weight.crow,     weight.col, taken.data(),
                                wide_bias.data(), nullptr,    weight.any_order && cached && x.batch == 1};
    const int64_t width = multiply_width<P>(context, x.batch, weight.nnz);
    multiply(context, rows, BatchSource<P, S>(context.kernels, x, width),
             BatchSink<S>(context.kernels, y, x.batch, weight.rows, width));
  });
}

template <class S, class I, class J>
void linear_dx(const Context& context, const MatrixView<S>& dy, const S* values, const Csr<I>& weight,
               const TransposedCsr<J>& transposed, S* dx) {
  using T = AccumulatorOf<S>;
  // The values in column order come from all over memory, which a small batch does not make up for.
  if (dy.batch <= kLineElements<T>) {
    if constexpr (std::is_same_v<T, float>) {
      if (goes_by_bits(context, weight, dy.batch, &BitKernels::dx)) {
        const int64_t positions = bit_positions(dy.batch);
        const Buffer<float> sums(positions * weight.row_words * kWordColumns), gradient = float_rows(dy, positions);
        multiply_bits_transposed(context, weight, values, positions, gradient.data(), sums.data());
        return for_quarters(transposed.cols, positions, [&](int64_t b, int64_t first, int64_t count, int64_t place) {
          if (b < dy.batch) narrow_run(sums.data() + place, count, dx + b * transposed.cols + first, 1);
        });
      }
    }
    const WidenedValues<S> wide_values(context.parallel, values, weight.nnz);
    const SparseRows<T, I> rows{weight.rows, weight.nnz, weight.crow, weight.col, wide_values.data(), nullptr};
    return multiply_transposed(context, rows, transposed.cols,
                               BatchSource<T, S>(context.kernels, dy, kMultiplyWidth<T>),
                               BatchSink<S>(context.kernels, dx, dy.batch, transposed.cols, kMultiplyWidth<T>));
  }
  with_panel_type<S>(context, dy.batch, [&](auto element) {
    using P = decltype(element);
    const auto multiply_columns = [&](const P* in_columns, const int32_t* place) {
      const SparseRows<P, J> columns{transposed.cols, weight.nnz, transposed.crow, transposed.row,
                                     in_columns,      nullptr,    place};
      const bool near = weight.nnz <= kNearValues || dy.batch > kMultiplyWidth<P>;
      const int64_t width = near ? multiply_width<P>(context, dy.batch, weight.nnz) : kMultiplyWidth<P>;
      multiply(context, columns, BatchSource<P, S>(context.kernels, dy, width),
               BatchSink<S>(context.kernels, dx, dy.batch, transposed.cols, width));
    };
    if constexpr (std::is_same_v<S, AccumulatorOf<S>>) {
      if (dy.batch <= kMultiplyWidth<P>) return multiply_columns(values - transposed.perm_base, transposed.perm);
    }
    const Buffer<P> in_columns(weight.nnz);
    for_chunks(context.parallel, weight.nnz, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        in_columns.data()[k] = as<P>(values[transposed.perm[k] - transposed.perm_base]);
      }
    });
    multiply_columns(in_columns.data(), nullptr);
  });
}

template <class S, class I>
void linear_dvalues(const Context& context, const MatrixView<S>& dy, const MatrixView<S>& x, const Csr<I>& weight,
                    S* dvalues) {
  if constexpr (std::is_same_v<AccumulatorOf<S>, float>) {
    if (goes_by_bits(context, weight, dy.batch, &BitKernels::dvalues)) {
      const int64_t positions = bit_positions(dy.batch);
      const Buffer<float> gradient = float_rows(dy, positions), features = float_quarters(x, positions);
      return sample_bits(context, weight, positions, gradient.data(), features.data(), dvalues);
    }
  }
  const NarrowedValues<S> sums(dvalues, weight.nnz);
  sums.clear();
  with_panel_type<S>(context, dy.batch, [&](auto element) {
    using P = decltype(element);
    const SparseRows<P, I> pattern{weight.rows, weight.nnz, weight.crow, weight.col, nullptr, nullptr};
    sample(context, pattern, BatchSource<P, S>(context.kernels, dy, kSampleWidth<P>),
           BatchSource<P, S>(context.kernels, x, kSampleWidth<P>), sums.data());
  });
  sums.finish(context.parallel);
}

#define RSN2_INSTANTIATE(S, I)                                                                                        \
  template void linear(const Context&, const MatrixView<S>&, const S*, const S*, const Csr<I>&, S*);                \
  template void linear_dx(const Context&, const MatrixView<S>&, const S*, const Csr<I>&,                              \
                          const TransposedCsr<int32_t>&, S*);                                                        \
  template void linear_dx(const Context&, const MatrixView<S>&, const S*, const Csr<I>&,                              \
                          const TransposedCsr<uint16_t>&, S*);                                                       \
  template void linear_dvalues(const Context&, const MatrixView<S>&, const MatrixView<S>&, const Csr<I>&, S*);
#define RSN2_INSTANTIATE_BOTH(S)  \
  RSN2_INSTANTIATE(S, int32_t)    \
  RSN2_INSTANTIATE(S, uint16_t)
RSN2_INSTANTIATE_BOTH(float)
RSN2_INSTANTIATE_BOTH(double)
RSN2_INSTANTIATE_BOTH(Half)
RSN2_INSTANTIATE_BOTH(BFloat16)
#undef RSN2_INSTANTIATE_BOTH
#undef RSN2_INSTANTIATE

}  // namespace rsn2::cpu
