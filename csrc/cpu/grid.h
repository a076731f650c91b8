// Images packed into panels for a convolution, and rows of a product cropped back into images.
#pragma once

#include <algorithm>
#include <type_traits>

#include "buffer.h"
#include "conv_geometry.h"
#include "panel.h"
#include "product.h"
#include "scalar.h"

namespace rsn2::cpu {

// A tensor [batch, channels, height, width] with any strides, in elements.
template <class S>
struct ImagesView {
  const S* data;
  int64_t batch, channels, height, width;
  int64_t batch_stride, channel_stride, height_stride, width_stride;
};

// Lines and cells of a panel that lie outside the tile it serves, because taps reach there.
struct Margin {
  int64_t lines_before, lines_after;
  int64_t cells_before, cells_after;
};

// Features are (channel, vertical phase, horizontal phase); index units are elements. P: of the panels.
template <class P, class S>
class GridSource final : public PanelSource<P> {
 public:
  GridSource(const Microkernels& kernels, const ImagesView<S>& images, const PhasedAxis& vertical, const PhasedAxis& horizontal,
             const Tiling& tiling, const Margin& margin)
      : kernels_(layout_kernels<P>(kernels)), images_(images), vertical_(vertical), horizontal_(horizontal),
        tiling_(tiling), margin_(margin) {
    int64_t largest = 0;
    for (int64_t panel = 0; panel < tiling.count(); ++panel) largest = std::max(largest, shape_width(panel));
    // An odd number of cache lines between planes: a power of two would map all channels to the same cache sets.
    plane_ = round_up(lead() + tail() + largest, kLineElements<P>);
    if (plane_ / kLineElements<P> % 2 == 0) plane_ += kLineElements<P>;
  }

  int64_t panels() const override { return tiling_.count(); }
  int64_t features() const override { return images_.channels * phases(); }
  int64_t panel_elements() const override { return features() * plane_; }
  PanelShape shape(int64_t panel) const override { return {plane_, 1, shape_width(panel)}; }

  int64_t phases() const { return vertical_.count() * horizontal_.count(); }
  int64_t plane() const { return plane_; }
  // Offset of position 0 within a plane.
  int64_t lead() const { return margin_.lines_before * tiling_.width + margin_.cells_before; }

  void pack(int64_t panel, int64_t begin, int64_t end, P* data) const override {
    // Features of one phase have the same runs, channels apart.
    for (int64_t phase = 0; phase < phases(); ++phase) {
      const int64_t first = begin + (phase - begin % phases() + phases()) % phases();
      if (first < end) pack_phase(tiling_.tile(panel), phase, first, end, data);
    }
  }

 private:
  int64_t tail() const { return margin_.lines_after * tiling_.width + margin_.cells_after; }
  int64_t shape_width(int64_t panel) const {
    return round_up(tiling_.positions(tiling_.tile(panel)), kLineElements<P>);
  }

  // Every phases()-th feature from `first` on: lines of cells, and zeros wherever a tap reaches beside them.
  void pack_phase(const Tile& tile, int64_t phase, int64_t first, int64_t end, P* data) const {
    const Phase& v = vertical_.phases[phase / horizontal_.count()];
    const Phase& h = horizontal_.phases[phase % horizontal_.count()];
    const int64_t cells = std::max<int64_t>(h.last - h.first + 1, 0);
    const int64_t begin_line = std::max(tile.line - margin_.lines_before, v.first);
    const int64_t end_line = cells ? std::min(tile.line + tile.lines + margin_.lines_after, v.last + 1) : begin_line;
    const int64_t x = h.first * horizontal_.stride + h.origin;

    Run runs[kRuns];
    int64_t count = 1, packed = 0;
    runs[0] = {0, 0, 0, 0};
    // The zeros behind a run reach to the next one.
    const auto append = [&](const Run& run) {
      runs[count - 1].zeros = run.target - packed;
      if (count == kRuns) {
        copy(runs, count, first, end, data);
        count = 0;
      }
      runs[count++] = run;
      packed = run.target + run.cells;
    };
    for (int64_t image = 0; image < tile.images; ++image) {
      for (int64_t line = begin_line; line < end_line; ++line) {
        const int64_t y = line * vertical_.stride + v.origin;
        append({(tile.image + image) * images_.batch_stride + y * images_.height_stride + x * images_.width_stride,
                lead() + (image * tiling_.height + line - tile.line) * tiling_.width + h.first, cells, 0});
      }
    }
    append({0, plane_, 0, 0});
    copy(runs, count, first, end, data);
  }

  void copy(const Run* runs, int64_t count, int64_t first, int64_t end, P* data) const {
    const int64_t stride = horizontal_.stride * images_.width_stride;
    if constexpr (std::is_same_v<S, P>) {
      if (stride == 1) {
        for (int64_t f = first; f < end; f += phases()) {
          kernels_.copy_runs({as_copied(images_.data + f / phases() * images_.channel_stride),
                              as_copied(data + f * plane_), runs, count});
        }
        return;
      }
    }
    // Features innermost: for a channels-last tensor the neighbouring channels share cache lines.
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t f = first; f < end; f += phases()) {
        P* const target = data + f * plane_ + runs[i].target;
        widen_run(images_.data + f / phases() * images_.channel_stride + runs[i].source, stride, runs[i].cells, target);
        std::fill_n(target + runs[i].cells, runs[i].zeros, P{0});
      }
    }
  }

  static constexpr int64_t kRuns = 64;  // copied at a time: as many cache lines as a core can wait for and more

  const LayoutKernels<CopiedAs<P>>& kernels_;
  ImagesView<S> images_;
  PhasedAxis vertical_, horizontal_;
  Tiling tiling_;
  Margin margin_;
  int64_t plane_;
};

// Product rows are (channel within the group, group, vertical phase, horizontal phase).
template <class S>
class GridSink final : public PanelSink<AccumulatorOf<S>> {
 public:
  using T = AccumulatorOf<S>;

  // images: contiguous [batch, groups * channels_per_group, height, width].
  GridSink(const Microkernels& kernels, S* images, int64_t groups, int64_t channels_per_group, int64_t height, int64_t width,
           const PhasedAxis& vertical, const PhasedAxis& horizontal, const Tiling& tiling)
      : kernels_(layout_kernels<T>(kernels)), images_(images), groups_(groups), channels_per_group_(channels_per_group), height_(height), width_(width),
        vertical_(vertical), horizontal_(horizontal), tiling_(tiling) {}

  void store(int64_t panel, int64_t row_begin, int64_t row_end, int64_t q_begin, int64_t q_end, const T* rows,
             int64_t stride) const override {
    const Tile tile = tiling_.tile(panel);
    const int64_t phases = vertical_.count() * horizontal_.count();
    Run runs[kWidthBlock];
    // Rows of one phase have the same runs, channels apart.
    for (int64_t phase = 0; phase < phases; ++phase) {
      const int64_t first = row_begin + (phase - row_begin % phases + phases) % phases;
      if (first >= row_end) continue;
      const int64_t count = runs_of(tile, phase, q_begin, std::min(q_end, tiling_.positions(tile)), runs);
      for (int64_t r = first; r < row_end; r += phases) {
        copy(rows + (r - row_begin) * stride, channel_of(r / phases), runs, count);
      }
    }
  }

 private:
  // What is output of the positions [q, q_end), one run per line.
  int64_t runs_of(const Tile& tile, int64_t phase, int64_t q_begin, int64_t q_end, Run* runs) const {
    const Phase& v = vertical_.phases[phase / horizontal_.count()];
    const Phase& h = horizontal_.phases[phase % horizontal_.count()];
    int64_t count = 0;
    for (int64_t q = q_begin; q < q_end;) {
      const int64_t line = q / tiling_.width, cell = q % tiling_.width;
      const int64_t image = tile.images > 1 ? line / tiling_.height : 0;
      const int64_t v_cell = tile.line + line - image * tiling_.height;
      const int64_t cells = std::min(tiling_.width - cell, q_end - q);
      const int64_t first = std::max(cell, h.first), last = std::min(cell + cells - 1, h.last);
      if (v_cell >= v.first && v_cell <= v.last && first <= last) {
        const int64_t y = v_cell * vertical_.stride + v.origin, x = first * horizontal_.stride + h.origin;
        runs[count++] = {q - q_begin + first - cell,
                         (tile.image + image) * groups_ * channels_per_group_ * height_ * width_ + y * width_ + x,
                         last - first + 1, 0};
      }
      q += cells;
    }
    return count;
  }

  int64_t channel_of(int64_t row) const { return row % groups_ * channels_per_group_ + row / groups_; }

  void copy(const T* source, int64_t channel, const Run* runs, int64_t count) const {
    S* const target = images_ + channel * height_ * width_;
    if constexpr (std::is_same_v<S, T>) {
      if (horizontal_.stride == 1) {
        kernels_.copy_runs({source, target, runs, count});
        return;
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      narrow_run(source + runs[i].source, runs[i].cells, target + runs[i].target, horizontal_.stride);
    }
  }

  const LayoutKernels<T>& kernels_;
  S* images_;
  int64_t groups_, channels_per_group_, height_, width_;
  PhasedAxis vertical_, horizontal_;
  Tiling tiling_;
};

}  // namespace rsn2::cpu
