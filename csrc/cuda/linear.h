// Small-batch products y = activation(x W^T + bias) with a compact weight, read once.
//
// x is [batch, x_stride] with x_stride >= cols, a multiple of 8, and x aligned to 16 bytes; y is [batch, rows].
// All pointers are to device memory. Sums are taken in float, in an order that depends on the shapes alone.
#pragma once

#include "compact.h"
#include "types.h"

namespace rsn2::cuda {

enum class Activation { none, relu, gelu };

template <class T>
struct Epilogue {
  const T* bias;  // [stacks * rows], or nullptr
  Activation activation;
};

template <class T>
struct Product {
  CompactWeight<T> weight;
  const T* x;
  int64_t x_stride;
  int batch;
  Epilogue<T> epilogue;
  T* y;
};

// How the matrix-vector kernel shares out the rows of a weight.
struct VectorShape {
  int batch_block;     // rows of x per reading of the weight, of kVectorBatches
  int team;            // threads that share a row: a power of two, at least 4 and batch_block, at most kVectorThreads
  int passes;          // rows that each team takes one after the other
  int chunk_segments;  // segments of x in shared memory at a time
};
inline constexpr int kVectorThreads = 512;
// Rows of the batch that one reading of the weight may serve.
inline constexpr int kVectorBatches[] = {1, 2, 4, 8};

template <class T>
VectorShape vector_shape(const CompactWeight<T>& weight, int batch, bool grouped, const Device& device);

// Row by row of the weight on the ordinary cores: the kernel for the smallest batches.
//
// With `task_of_row`, a weight per row of x: row b is multiplied with matrix task_of_row[b] of the stack, and the
// result is NaN where there is no such matrix; the shape must then be for one row at a time.
template <class T>
void multiply_vectors(const Product<T>& product, const int64_t* task_of_row, const VectorShape& shape,
                      cudaStream_t stream);

// How the tensor-core kernel shares out the columns of a weight.
struct TileShape {
  int batch_block;  // rows of x per reading of the weight, of kTileBatches
  int splits;       // parts of the columns that are summed apart
};
inline constexpr int kTileBatches[] = {16, 32, 64, 128};
inline constexpr int kTileRows = 64;

// Whether the tensor cores are expected to be faster for this product. An H200 was faster with them at 32 rows of x, and
// at 16 for some weights only (results/gpu-tuning.json).
template <class T>
bool prefers_tiles(const Product<T>& product) {
  return sizeof(T) == 2 && product.batch > 8;
}

TileShape tile_shape(int rows, int cols, int batch, const Device& device);

// Tile by tile of the weight, scattered into zeroed shared memory and multiplied on the tensor cores; 16-bit types.
// `partial` is float [splits, batch, rows] of scratch, not read where splits is 1.
template <class T>
void multiply_tiles(const Product<T>& product, const TileShape& shape, float* partial, cudaStream_t stream);

}  // namespace rsn2::cuda
