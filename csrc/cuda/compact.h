// A weight by its owned positions alone, in few bits; rsn2_kernels/compact.py makes it and says why it looks so.
#pragma once

#include <cstdint>

namespace rsn2::cuda {

// Columns of a segment: as many as one byte tells apart.
inline constexpr int kSegment = 256;

// One matrix, or several stacked ones of one shape. Everything is on the device.
template <class T>
struct CompactWeight {
  const T* values;        // [nnz], aligned to 16 bytes
  const int32_t* starts;  // [stacks * rows * segments + 1]
  const uint8_t* bytes;   // [nnz], aligned to 8 bytes; nullptr if the columns are told by bits
  const uint32_t* bits;   // [stacks * rows * segments * 8], aligned to 16 bytes; nullptr if by bytes
  int64_t nnz;
  int stacks;
  int rows;
  int cols;
  int segments;  // of a row: ceil(cols / kSegment)
};

}  // namespace rsn2::cuda
