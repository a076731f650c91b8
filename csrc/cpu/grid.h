// Images packed into panels for a convolution, and rows of a product cropped back into images.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "conv_geometry.h"
#include "panel.h"
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

// Features are (channel, vertical phase, horizontal phase); index units are elements.
template <class S>
class GridSource final : public PanelSource<AccumulatorOf<S>> {
 public:
  using T = AccumulatorOf<S>;

  GridSource(const ImagesView<S>& images, const PhasedAxis& vertical, const PhasedAxis& horizontal,
             const Tiling& tiling, const Margin& margin)
      : images_(images), vertical_(vertical), horizontal_(horizontal), tiling_(tiling), margin_(margin) {
    int64_t largest = 0;
    for (int64_t panel = 0; panel < tiling.count(); ++panel) largest = std::max(largest, shape_width(panel));
    // An odd number of cache lines between planes: a power of two would map all channels to the same cache sets.
    plane_ = round_up(lead() + tail() + largest, kLineElements<T>);
    if (plane_ / kLineElements<T> % 2 == 0) plane_ += kLineElements<T>;
  }

  int64_t panels() const override { return tiling_.count(); }
  int64_t features() const override { return images_.channels * phases(); }
  int64_t panel_elements() const override { return features() * plane_; }
  PanelShape shape(int64_t panel) const override { return {plane_, 1, shape_width(panel)}; }

  int64_t phases() const { return vertical_.count() * horizontal_.count(); }
  int64_t plane() const { return plane_; }
  // Offset of position 0 within a plane.
  int64_t lead() const { return margin_.lines_before * tiling_.width + margin_.cells_before; }

  void pack(int64_t panel, int64_t begin, int64_t end, T* data) const override {
    const Tile tile = tiling_.tile(panel);
    std::fill(data + begin * plane_, data + end * plane_, T{0});
    Plane planes[kPackFeatures];
    for (int64_t f = begin; f < end; ++f) planes[f - begin] = plane_of(f, tile.image, data);
    // Features innermost: for a channels-last tensor the neighbouring channels share cache lines.
    for (int64_t image = 0; image < tile.images; ++image) {
      for (int64_t line = tile.line - margin_.lines_before; line < tile.line + tile.lines + margin_.lines_after;
           ++line) {
        const int64_t source = image * images_.batch_stride + line * vertical_.stride * images_.height_stride;
        const int64_t target = (image * tiling_.height + line - tile.line) * tiling_.width;
        for (int64_t i = 0; i < end - begin; ++i) {
          const Plane& p = planes[i];
          if (line < p.first_line || line > p.last_line) continue;
          widen_run(images_.data + p.source + source, horizontal_.stride * images_.width_stride, p.cells,
                    p.target + target);
        }
      }
    }
  }

 private:
  int64_t tail() const { return margin_.lines_after * tiling_.width + margin_.cells_after; }
  int64_t shape_width(int64_t panel) const {
    return round_up(tiling_.positions(tiling_.tile(panel)), kLineElements<T>);
  }

  // Where a feature's lines come from and go to: line 0 of the tile's first image.
  struct Plane {
    int64_t first_line, last_line;
    int64_t cells;
    int64_t source;  // offset in the tensor
    T* target;
  };

  Plane plane_of(int64_t feature, int64_t image, T* data) const {
    const Phase& v = vertical_.phases[feature / horizontal_.count() % vertical_.count()];
    const Phase& h = horizontal_.phases[feature % horizontal_.count()];
    const int64_t cells = std::max<int64_t>(h.last - h.first + 1, 0);
    const int64_t x = h.first * horizontal_.stride + h.origin;
    return {v.first, v.last, cells,
            image * images_.batch_stride + feature / phases() * images_.channel_stride +
                v.origin * images_.height_stride + x * images_.width_stride,
            data + feature * plane_ + lead() + h.first};
  }

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
  GridSink(S* images, int64_t groups, int64_t channels_per_group, int64_t height, int64_t width,
           const PhasedAxis& vertical, const PhasedAxis& horizontal, const Tiling& tiling)
      : images_(images), groups_(groups), channels_per_group_(channels_per_group), height_(height), width_(width),
        vertical_(vertical), horizontal_(horizontal), tiling_(tiling) {}

  void store(int64_t panel, int64_t row_begin, int64_t row_end, int64_t q_begin, int64_t q_end, const T* rows,
             int64_t stride) const override {
    const Tile tile = tiling_.tile(panel);
    Segment segments[kWidthBlock];
    int64_t count = 0;
    for (int64_t q = q_begin; q < std::min(q_end, tiling_.positions(tile)); q += segments[count++].cells) {
      const int64_t line = q / tiling_.width, cell = q % tiling_.width;
      const int64_t image = tile.images > 1 ? line / tiling_.height : 0;
      segments[count] = {q - q_begin, tile.image + image, tile.line + line - image * tiling_.height, cell,
                         std::min(tiling_.width - cell, q_end - q)};
    }
    for (int64_t r = row_begin; r < row_end; ++r) store_row(segments, count, r, rows + (r - row_begin) * stride);
  }

 private:
  // A run of positions within one line.
  struct Segment {
    int64_t q;  // in the block
    int64_t image, line;
    int64_t first_cell, cells;
  };

  void store_row(const Segment* segments, int64_t count, int64_t row, const T* source) const {
    const int64_t phases = vertical_.count() * horizontal_.count();
    const Phase& v = vertical_.phases[row % phases / horizontal_.count()];
    const Phase& h = horizontal_.phases[row % horizontal_.count()];
    const int64_t channel = row / phases % groups_ * channels_per_group_ + row / phases / groups_;
    const int64_t image_stride = groups_ * channels_per_group_ * height_ * width_;
    S* const target = images_ + channel * height_ * width_;
    for (int64_t i = 0; i < count; ++i) {
      const Segment& s = segments[i];
      const int64_t first = std::max(s.first_cell, h.first);
      const int64_t last = std::min(s.first_cell + s.cells - 1, h.last);
      if (s.line < v.first || s.line > v.last || last < first) continue;
      const int64_t y = s.line * vertical_.stride + v.origin, x = first * horizontal_.stride + h.origin;
      narrow_run(source + s.q + first - s.first_cell, last - first + 1,
                 target + s.image * image_stride + y * width_ + x, horizontal_.stride);
    }
  }

  S* images_;
  int64_t groups_, channels_per_group_, height_, width_;
  PhasedAxis vertical_, horizontal_;
  Tiling tiling_;
};

}  // namespace rsn2::cpu
