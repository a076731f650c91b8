// How a convolution becomes a product with constant offsets.
//
// Along one axis, let u = input coordinate + padding. An output position `o` and a kernel tap `t` meet at
// u = o * stride + t * dilation. Write u = stride * cell + phase: then phase = (t * dilation) mod stride and
// cell = o + (t * dilation) / stride. So if the input is stored by phase (a polyphase split, one phase for
// stride 1), every tap is a fixed phase and a fixed shift in cells, and output positions are contiguous.
//
// A panel stores each plane (channel, phase) as lines of `period` cells, images one after the other. A line's
// right padding is the next line's left padding where both are zero, so the period is shorter than a padded line.
// Positions that are no output are computed, too, and dropped.
#pragma once

#include <cstdint>
#include <vector>

namespace rsn2::cpu {

// What a convolution does along one axis, in torch's terms: the same padding on both sides, and
// output = (input + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1, rounded down.
struct ConvAxis {
  int64_t input, output, kernel, stride, padding, dilation;
};

// Cells [first, last] of a phase hold coordinates stride * cell + origin of a tensor; other cells hold zero.
struct Phase {
  int64_t origin;
  int64_t first, last;  // last < first: none
};

// A tensor's axis split into phases.
struct PhasedAxis {
  int64_t stride;
  std::vector<Phase> phases;

  int64_t count() const { return static_cast<int64_t>(phases.size()); }
  static PhasedAxis whole(int64_t size) { return {1, {{0, 0, size - 1}}}; }
};

// A tap's place: index into PhasedAxis::phases, and shift in cells.
struct Tap {
  int64_t phase, shift;
};

struct ConvAxisLayout {
  PhasedAxis input;       // only phases some tap reads, only cells some output reads
  std::vector<Tap> taps;  // [kernel]
  int64_t output;         // output positions
  int64_t max_shift;      // largest shift of a tap
  int64_t cells;          // cells that hold input: 1 + the largest `last`
  int64_t period;         // cells from one line to the next
  bool reads_all_input;   // false where a stride steps over input coordinates

  explicit ConvAxisLayout(const ConvAxis& axis);
};

// A panel: `images` images from `image` on, each with lines [line, line + lines). Several images only if whole.
struct Tile {
  int64_t image, images, line, lines;
};

// The tiles of a tensor, and the positions within one.
struct Tiling {
  int64_t batch;   // images in all
  int64_t lines;   // lines per image in all
  int64_t height;  // lines from one image of a tile to the next
  int64_t width;   // cells from one line to the next
  int64_t images_per_tile, lines_per_tile;

  // Chooses tiles of about `budget` elements, given `features` planes and `halo` more lines per plane.
  Tiling(int64_t batch, int64_t lines, int64_t height, int64_t width, int64_t features, int64_t halo, int64_t budget);

  int64_t bands() const { return (lines + lines_per_tile - 1) / lines_per_tile; }
  int64_t count() const { return (batch + images_per_tile - 1) / images_per_tile * bands(); }
  Tile tile(int64_t index) const;
  int64_t positions(const Tile& tile) const { return ((tile.images - 1) * height + tile.lines) * width; }
};

}  // namespace rsn2::cpu
