// A weight by its owned positions alone, in few bits; rsn2_kernels/compact.py makes it and says why it looks so.
#pragma once

#include <cstdint>

namespace rsn2::cuda {

// Columns of a segment.
inline constexpr int kSegment = 256;
// Weights of an octet.
inline constexpr int kOctet = 8;

// One matrix, or several stacked ones of one shape. Everything is on the device.
template <class T>
struct CompactWeight {
  const T* values;         // [nnz], aligned to 16 bytes
  const int32_t* columns;  // [nnz]
  const int32_t* starts;   // [stacks * rows * segments + 1]
  const uint16_t* bases;   // [octets]; the last 16 bits of the column of each octet's first weight
  const uint8_t* offsets;  // [octets * kOctet], aligned to 16 bytes; how many columns further the weights of an octet
                           // are, where its first one is 0; else only `columns` tells
  int64_t nnz;
  int stacks;
  int rows;
  int cols;
  int segments;  // of a row: ceil(cols / kSegment)
};

}  // namespace rsn2::cuda
