#include "conv_geometry.h"

#include <algorithm>

#include "buffer.h"

namespace rsn2::cpu {
namespace {

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

}  // namespace

ConvAxisLayout::ConvAxisLayout(const ConvAxis& axis) : output(axis.output) {
  max_shift = axis.dilation * (axis.kernel - 1) / axis.stride;
  const int64_t last_read = output - 1 + max_shift;

  std::vector<int64_t> used;  // phases that some tap reads
  for (int64_t tap = 0; tap < axis.kernel; ++tap) used.push_back(tap * axis.dilation % axis.stride);
  std::sort(used.begin(), used.end());
  used.erase(std::unique(used.begin(), used.end()), used.end());

  input.stride = axis.stride;
  cells = 0;
  int64_t held = 0;  // input coordinates that have a cell
  for (const int64_t phase : used) {
    // The first and last cell whose coordinate stride * cell + phase - padding lies in [0, input).
    const int64_t first = std::max<int64_t>(0, ceil_div(axis.padding - phase, axis.stride));
    const int64_t last = std::min(last_read, floor_div(axis.padding + axis.input - 1 - phase, axis.stride));
    input.phases.push_back({phase - axis.padding, first, last});
    if (last < first) continue;
    held += last - first + 1;
    cells = std::max(cells, last + 1);
  }
  reads_all_input = held == axis.input;

  for (int64_t tap = 0; tap < axis.kernel; ++tap) {
    const int64_t reach = tap * axis.dilation;
    const auto phase = std::lower_bound(used.begin(), used.end(), reach % axis.stride) - used.begin();
    taps.push_back({phase, reach / axis.stride});
  }

  // Outputs and input of neighbouring lines must not overlap. That is enough: the reads of a phase reach at most
  // floor((input + 2 * padding - 1 - phase) / stride), which lies beyond its input by no more cells than the next
  // line has zeros before its own, ceil((padding - phase) / stride), since floor(a + b) - ceil(b) <= floor(a).
  // In dX the same holds backwards: a read before a line's start meets the zeros after the last output.
  period = std::max(output, cells);
}

Tiling::Tiling(int64_t batch, int64_t lines, int64_t height, int64_t width, int64_t features, int64_t halo,
               int64_t budget)
    : batch(batch), lines(lines), height(height), width(width) {
  const int64_t line_elements = std::max<int64_t>(features * width, 1);
  const int64_t image_elements = height * line_elements;
  images_per_tile = 1;
  lines_per_tile = std::max<int64_t>(lines, 1);
  if (image_elements <= budget) {
    // Spread the images evenly over the tiles they need.
    const int64_t most = std::clamp<int64_t>(budget / image_elements, 1, std::max<int64_t>(batch, 1));
    images_per_tile = ceil_div(std::max<int64_t>(batch, 1), ceil_div(std::max<int64_t>(batch, 1), most));
  } else {
    // Bands of lines, but no narrower than the halo that each must pack again.
    const int64_t band = std::max({budget / line_elements - halo, halo, int64_t{1}});
    lines_per_tile = ceil_div(lines_per_tile, ceil_div(lines_per_tile, std::min(band, lines_per_tile)));
  }
}

Tile Tiling::tile(int64_t index) const {
  const int64_t image = index / bands() * images_per_tile, line = index % bands() * lines_per_tile;
  return {image, std::min(images_per_tile, batch - image), line, std::min(lines_per_tile, lines - line)};
}

}  // namespace rsn2::cpu
