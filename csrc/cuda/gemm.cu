// Small-batch products on the tensor cores: the owned weights of a tile are scattered into zeroed shared memory.
//
// A block makes 64 rows of the weight times all of a batch block, segment by segment: it clears the tile, brings the
// rows of x and scatters the weights, and multiplies. Several blocks on a multiprocessor hide each other's waits. The
// warps divide the columns of a segment, so that each part of the tile is read once; their sums are added in the order
// of the warps. Reading and scattering scale with the owned weights, clearing and multiplying with the tile.
#include <algorithm>

#include "epilogue.h"
#include "linear.h"
#include "primitives.h"

namespace rsn2::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRowsPerWarp = kTileRows / kWarps;  // that one warp scatters
constexpr int kAtOnce = 8;                        // loads of a lane that are in flight together
constexpr int kSumThreads = 256;
// Elements from one row in shared memory to the next: eight rows of a matrix load start in different banks.
constexpr int kPitch = kSegment + 8;

// Blocks of a multiprocessor, which hide each other's waits as far as the registers go.
constexpr int blocks_of(int batch_block) { return batch_block > 16 ? 2 : 3; }

// Shared memory of a block: the tile of the weight [kTileRows][kPitch], that of x [batch block][kPitch].
template <class T>
struct Tiles {
  T* weight;
  T* x;
};

// Where the owned weights of one segment of a tile's rows are. Each warp brings some of the rows, kTurns times as many
// weights of each as it has lanes, and what is left of a row after it.
template <class T, int kTurns>
struct Owned {
  static constexpr int kRowsAtOnce = kAtOnce / kTurns;
  int32_t bound;  // lanes 2 r and 2 r + 1: where row r of the warp begins and ends

  // `cell` is this segment of the tile's first row, and `rows` are the rows of the tile that exist.
  __device__ __forceinline__ void load(const CompactWeight<T>& weight, int64_t cell, int rows) {
    const int lane = threadIdx.x % kWarp;
    const int row = threadIdx.x / kWarp * kRowsPerWarp + lane / 2;
    bound = 0;
    if (lane < 2 * kRowsPerWarp && row < rows) {
      bound = weight.starts[cell + row * static_cast<int64_t>(weight.segments) + lane % 2];
    }
  }

  // To a tile that is zero.
  __device__ __forceinline__ void scatter(T* tile, const CompactWeight<T>& weight) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int group = 0; group < kRowsPerWarp; group += kRowsAtOnce) {
      T values[kAtOnce];
      int columns[kAtOnce];
      // All rows' first weights are on their way before any is waited for.
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int r = group + i / kTurns;
        const uint32_t k = begin(r) + i % kTurns * kWarp + lane;
        columns[i] = -1;
        if (k < end(r)) {
          values[i] = weight.values[k];
          columns[i] = weight.columns[k];
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        T* const row = tile + (threadIdx.x / kWarp * kRowsPerWarp + group + i / kTurns) * kPitch;
        if (columns[i] >= 0) row[columns[i] % kSegment] = values[i];
      }
#pragma unroll
      for (int r = group; r < group + kRowsAtOnce; ++r) {
        T* const row = tile + (threadIdx.x / kWarp * kRowsPerWarp + r) * kPitch;
        const uint32_t last = end(r);
#pragma unroll 2
        for (uint32_t k = begin(r) + kTurns * kWarp + lane; k < last; k += kWarp) {
          row[weight.columns[k] % kSegment] = weight.values[k];
        }
      }
    }
  }

 private:
  __device__ __forceinline__ uint32_t begin(int row) const { return __shfl_sync(0xFFFFFFFFu, bound, 2 * row); }
  __device__ __forceinline__ uint32_t end(int row) const { return __shfl_sync(0xFFFFFFFFu, bound, 2 * row + 1); }
};

// Starts the copies of one segment of rows [row, row + kBatch) of x; 0 past the batch and the columns.
template <class T, int kBatch>
__device__ __forceinline__ void copy_x(T* tile, const Product<T>& product, int row, int first_column) {
  constexpr int kOctets = kSegment / kOctet;
#pragma unroll 4
  for (int i = threadIdx.x; i < kBatch * kOctets; i += kThreads) {
    const int b = i / kOctets, column = i % kOctets * kOctet;
    const int columns = row + b < product.batch ? product.weight.cols - first_column - column : 0;
    const int valid = min(max(columns, 0), kOctet);
    const T* const from = product.x + (valid > 0 ? (row + b) * product.x_stride + first_column + column : 0);
    copy_async<kOctet * sizeof(T)>(tile + b * kPitch + column, from, valid * static_cast<int>(sizeof(T)));
  }
  commit_copies();
}

// Block (x, y, z): rows x * kTileRows on, batch rows y * kBatch on, part z of the segments.
template <class T, int kBatch, int kTurns>
__global__ __launch_bounds__(kThreads, blocks_of(kBatch)) void multiply_tiles_kernel(Product<T> product, int splits,
                                                                                     float* partial) {
  // With few batch rows all warps divide the columns; with more, some of them divide the rows, so that a warp's sums
  // fit into its registers.
  constexpr int kRowParts = kBatch > 32 ? kBatch / 32 : 1;
  constexpr int kColumnParts = kWarps / kRowParts;
  constexpr int kHigh = kTileRows / kRowParts / 16;  // products of a warp down the rows
  constexpr int kWide = kBatch / 8;                  // and across the batch
  [[maybe_unused]] constexpr int kUnrolled = kBatch > 64 ? 1 : 2;     // as far as the registers go
  constexpr int kSumPitch = kTileRows + 1;
  static_assert(kBatch * kSumPitch * sizeof(float) <= (kTileRows + kBatch) * kPitch * sizeof(T),
                "sums reuse the tiles");

  RSN2_SHARED_MEMORY(shared);
  const Tiles<T> tiles{reinterpret_cast<T*>(shared), reinterpret_cast<T*>(shared) + kTileRows * kPitch};
  const CompactWeight<T>& weight = product.weight;
  const int segments = weight.segments;
  const int first_row = blockIdx.x * kTileRows;
  const int rows = min(kTileRows, weight.rows - first_row);
  const int batch_row = blockIdx.y * kBatch;
  const int split = blockIdx.z;
  const int first = static_cast<int>(int64_t{segments} * split / splits);
  const int last = static_cast<int>(int64_t{segments} * (split + 1) / splits);
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int own_row = warp % kRowParts * (kTileRows / kRowParts);
  const int own_column = warp / kRowParts * (kSegment / kColumnParts);

  const auto cell_of = [&](int segment) { return static_cast<int64_t>(first_row) * segments + segment; };

  float sums[kHigh][kWide][4] = {};
  // Where the weights are is asked for one segment ahead.
  Owned<T, kTurns> owned;
  owned.load(weight, cell_of(first), first < last ? rows : 0);
  for (int segment = first; segment < last; ++segment) {
    uint4* const words = reinterpret_cast<uint4*>(tiles.weight);
#pragma unroll 4
    for (int i = threadIdx.x; i < kTileRows * kPitch * static_cast<int>(sizeof(T)) / 16; i += kThreads) {
      words[i] = make_uint4(0, 0, 0, 0);
    }
    copy_x<T, kBatch>(tiles.x, product, batch_row, segment * kSegment);
    __syncthreads();
    owned.scatter(tiles.weight, weight);
    owned.load(weight, cell_of(segment + 1), segment + 1 < last ? rows : 0);
    wait_copies<0>();
    __syncthreads();
#pragma unroll(kUnrolled)
    for (int k = 0; k < kSegment / kColumnParts; k += 16) {
      uint32_t a[kHigh][4];
#pragma unroll
      for (int i = 0; i < kHigh; ++i) {
        load_matrices(a[i], tiles.weight + (own_row + i * 16 + lane % 16) * kPitch + own_column + k + lane / 16 * 8);
      }
#pragma unroll
      for (int j = 0; j < kWide; j += 2) {
        uint32_t both[4];
        load_matrices(both, tiles.x + (j * 8 + lane / 16 * 8 + lane % 8) * kPitch + own_column + k + lane / 8 % 2 * 8);
        const uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
#pragma unroll
        for (int i = 0; i < kHigh; ++i) {
          multiply_accumulate(sums[i][j], a[i], b[0], typename Native<T>::type{});
          multiply_accumulate(sums[i][j + 1], a[i], b[1], typename Native<T>::type{});
        }
      }
    }
    __syncthreads();
  }

  // [batch][row]: one warp after the other adds its sums, in this order.
  float* const total = reinterpret_cast<float*>(shared);
#pragma unroll 1
  for (int part = 0; part < kColumnParts; ++part) {
    if (warp / kRowParts == part) {
#pragma unroll
      for (int i = 0; i < kHigh; ++i) {
#pragma unroll
        for (int j = 0; j < kWide; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int row = own_row + i * 16 + lane / 4 + e / 2 * 8;
            const int b = j * 8 + lane % 4 * 2 + e % 2;
            float& slot = total[b * kSumPitch + row];
            slot = part > 0 ? slot + sums[i][j][e] : sums[i][j][e];
          }
        }
      }
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < kBatch * kTileRows; i += kThreads) {
    const int b = i / kTileRows, row = i % kTileRows;
    if (row >= rows || batch_row + b >= product.batch) continue;
    const float sum = total[b * kSumPitch + row];
    const int64_t at = static_cast<int64_t>(batch_row + b) * weight.rows + first_row + row;
    if (splits == 1) {
      product.y[at] = finished(sum, product.epilogue, first_row + row);
    } else {
      partial[static_cast<int64_t>(split) * product.batch * weight.rows + at] = sum;
    }
  }
}

// y from the sums of the parts, added in their order.
template <class T>
__global__ __launch_bounds__(kSumThreads) void add_parts_kernel(const float* partial, int splits, int64_t size,
                                                                int rows, Epilogue<T> epilogue, T* y) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= size) return;
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) sum += partial[split * size + i];
  y[i] = finished(sum, epilogue, i % rows);
}

template <class T, int kBatch, int kTurns>
void launch_tiles(const Product<T>& product, int splits, float* partial, cudaStream_t stream) {
  const dim3 grid((product.weight.rows + kTileRows - 1) / kTileRows, (product.batch + kBatch - 1) / kBatch, splits);
  const size_t shared = (kTileRows + kBatch) * kPitch * sizeof(T);
  launch(&multiply_tiles_kernel<T, kBatch, kTurns>, grid, dim3(kThreads), shared, stream, product, splits, partial);
  if (splits == 1) return;
  const int64_t size = static_cast<int64_t>(product.batch) * product.weight.rows;
  launch(&add_parts_kernel<T>, dim3((size + kSumThreads - 1) / kSumThreads), dim3(kSumThreads), 0, stream,
         static_cast<const float*>(partial), splits, size, product.weight.rows, product.epilogue, product.y);
}

template <class T, int kBatch>
void launch_tiles(const Product<T>& product, int splits, float* partial, cudaStream_t stream) {
  const int64_t cells = int64_t{product.weight.rows} * product.weight.segments;
  // Two turns where the mean row of a tile has more weights than a warp has lanes, or nearly so.
  if (product.weight.nnz > cells * (kWarp - 6)) {
    launch_tiles<T, kBatch, 2>(product, splits, partial, stream);
  } else {
    launch_tiles<T, kBatch, 1>(product, splits, partial, stream);
  }
}

}  // namespace

TileShape tile_shape(int rows, int cols, int batch, const Device& device) {
  TileShape shape{};
  for (const int block : kTileBatches) {
    shape.batch_block = block;
    if (block >= batch) break;
  }
  const int64_t blocks = int64_t{(rows + kTileRows - 1) / kTileRows} *
                         ((batch + shape.batch_block - 1) / shape.batch_block);
  // As many as run at once, rather than some more that would begin when those end; each has two segments at least.
  const int64_t wanted = int64_t{blocks_of(shape.batch_block)} * device.multiprocessors / std::max<int64_t>(blocks, 1);
  const int segments = (cols + kSegment - 1) / kSegment;
  shape.splits = static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max(segments / 2, 1)));
  return shape;
}

template <class T>
void multiply_tiles(const Product<T>& product, const TileShape& shape, float* partial, cudaStream_t stream) {
  if (product.batch == 0) return;
  switch (shape.batch_block) {
    case 16: return launch_tiles<T, 16>(product, shape.splits, partial, stream);
    case 32: return launch_tiles<T, 32>(product, shape.splits, partial, stream);
    case 64: return launch_tiles<T, 64>(product, shape.splits, partial, stream);
    default: return launch_tiles<T, 128>(product, shape.splits, partial, stream);
  }
}

template void multiply_tiles<BFloat16>(const Product<BFloat16>&, const TileShape&, float*, cudaStream_t);
template void multiply_tiles<Half>(const Product<Half>&, const TileShape&, float*, cudaStream_t);

}  // namespace rsn2::cuda
