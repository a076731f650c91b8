// Panels: activations packed so that a feature is a contiguous run of positions.
#pragma once

#include <cstdint>

namespace rsn2::cpu {

struct PanelShape {
  int64_t feature_stride;  // elements from one feature to the next
  int64_t index_scale;     // elements per unit of a sparse index: feature_stride, or 1 where indices are offsets
  int64_t width;           // positions to compute: a multiple of a cache line, or 1
};

// Features packed by one task: a cache line, or two of doubles, of a row-major or channels-last tensor.
template <class P>
inline constexpr int64_t kPackFeatures = sizeof(P) == 2 ? 32 : 16;

// Where panels come from: a tensor cut into panels that each fit a core's cache.
template <class T>
class PanelSource {
 public:
  virtual ~PanelSource() = default;
  virtual int64_t panels() const = 0;
  virtual int64_t features() const = 0;
  virtual int64_t panel_elements() const = 0;  // of the largest panel
  virtual PanelShape shape(int64_t panel) const = 0;
  // Writes every element of features [begin, end) that a product can read, padding (zeros) included: at most
  // kPackFeatures<T> features.
  virtual void pack(int64_t panel, int64_t begin, int64_t end, T* data) const = 0;
};

// Largest block given to a sink at once: 64 KiB of floats, written and read back within the second-level cache. Of a
// single position more rows, which the microkernels put in order by their number of weights.
inline constexpr int64_t kRowBlock = 64;
inline constexpr int64_t kWidthBlock = 256;
inline constexpr int64_t kNarrowRowBlock = 256;

// Where the rows of a product go.
template <class T>
class PanelSink {
 public:
  virtual ~PanelSink() = default;
  // rows[(r - row_begin) * stride + (q - q_begin)] for r in [row_begin, row_end), q in [q_begin, q_end): at most
  // kRowBlock rows and kWidthBlock positions, or kNarrowRowBlock rows and one position. Positions that belong to no
  // output are dropped.
  virtual void store(int64_t panel, int64_t row_begin, int64_t row_end, int64_t q_begin, int64_t q_end, const T* rows,
                     int64_t stride) const = 0;
};

}  // namespace rsn2::cpu
