// Small-batch products on the ordinary cores: a team of threads per row of the weight, eight weights each at a time, x
// in shared memory.
#include <algorithm>
#include <limits>
#include <stdexcept>

#include "epilogue.h"
#include "linear.h"
#include "octets.h"

namespace rsn2::cuda {
namespace {

// Bytes of x in shared memory, where the GPU has as much: two blocks fit on a multiprocessor of an H100. Less than 2^16
// columns.
constexpr size_t kMostCells = 112 * 1024;
constexpr size_t kReserved = 1024;  // shared memory that CUDA takes for itself, per block

// Blocks that the registers of a multiprocessor are for, where a cell of x has so many bytes.
constexpr int blocks_of(size_t cell) { return cell > 4 ? 1 : 2; }

// How a kernel is told its shape, and where its shared memory lies.
struct Layout {
  int team;
  int rows;            // of the weight, per block
  int row_blocks;
  int chunk_segments;
};

// The weights of a row that stand in a chunk of x.
struct Span {
  uint32_t begin = 0, end = 0;
};

// Products with one row after the other. The next weights are on their way while others are multiplied.
template <class T, int N>
class Reader {
 public:
  __device__ __forceinline__ Reader(const CompactWeight<T>& weight, int member, int team)
      : weight_(weight), member_(member), apart_(kOctet * team) {}

  // The first weights of a row, which multiply() takes next.
  __device__ __forceinline__ void load(const Span& row) { load(row, first_of(row)); }

  // Adds this thread's share of the products of a row; the row after it is `next`.
  __device__ __forceinline__ void multiply(float (&sum)[N], const Span& row, const Span& next, const Cell<T, N>* x,
                                           int first_column) {
    uint32_t first = first_of(row);
    if (first >= row.end) load(next);
    while (first < row.end) {
      Octet<T> held[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) held[i] = ahead_[i];
      const uint32_t following = first + kTogether * apart_;
      const bool same_row = following < row.end;
      load({0, same_row ? row.end : next.end}, same_row ? following : first_of(next));
#pragma unroll
      for (int i = 0; i < kTogether; ++i, first += apart_) {
        if (first < row.end) add_octet(sum, held[i], weight_, first, row.begin, row.end, x, first_column);
      }
    }
  }

 private:
  // Octets of a thread that are multiplied, and as many that are on their way, as far as the registers go.
  static constexpr int kTogether = sizeof(T) > 2 || N > 4 ? 1 : 2;

  __device__ __forceinline__ uint32_t first_of(const Span& row) const {
    return row.begin / kOctet * kOctet + kOctet * member_;
  }

  __device__ __forceinline__ void load(const Span& row, uint32_t first) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (first + i * apart_ < row.end) ahead_[i].load(weight_, first + i * apart_);
    }
  }

  const CompactWeight<T>& weight_;
  int member_;
  uint32_t apart_;  // from one octet of a thread to the next
  Octet<T> ahead_[kTogether];
};

// Of N sums of each lane, keeps one: lane l that of l % N, over the N lanes that differ in the last digits of l.
template <int N>
__device__ __forceinline__ void fold(float* sum, int lane) {
  if constexpr (N > 1) {
    // A lane keeps one half of its sums and gives the other to its partner.
    constexpr int kHalf = N / 2;
    const bool upper = lane & kHalf;
#pragma unroll
    for (int n = 0; n < kHalf; ++n) {
      const float given = __shfl_xor_sync(kAllLanes, upper ? sum[n] : sum[n + kHalf], kHalf);
      sum[n] = (upper ? sum[n + kHalf] : sum[n]) + given;
    }
    fold<kHalf>(sum, lane);
  }
}

// Sums over `lanes` neighbouring lanes, a power of two and at least N; lane l of them returns sum[l % N].
template <int N>
__device__ __forceinline__ float sum_over(float (&sum)[N], int lanes) {
  fold<N>(sum, threadIdx.x % kWarp);
  for (int step = N; step < lanes; step *= 2) sum[0] += __shfl_xor_sync(kAllLanes, sum[0], step);
  return sum[0];
}

// Block b * row_blocks + r: rows r * layout.rows on of the weight, times rows b * N to b * N + N - 1 of the batch.
//
// The second bound is said because, left alone, the compiler spills registers for blocks that shared memory rules out.
template <class T, int N>
__global__ __launch_bounds__(kVectorThreads, blocks_of(N * sizeof(T))) void multiply_vectors_kernel(
    Product<T> product, const int64_t* task_of_row, Layout layout) {
  RSN2_SHARED_MEMORY(shared);
  const CompactWeight<T>& weight = product.weight;
  const int batch_row = static_cast<int>(blockIdx.x / layout.row_blocks) * N;
  const int first_row = static_cast<int>(blockIdx.x % layout.row_blocks) * layout.rows;
  const int rows = min(layout.rows, weight.rows - first_row);
  int64_t stack = 0;
  if (task_of_row) {
    stack = task_of_row[batch_row];
    if (stack < 0 || stack >= weight.stacks) {
      for (int r = threadIdx.x; r < rows; r += kVectorThreads) {
        product.y[static_cast<int64_t>(batch_row) * weight.rows + first_row + r] =
            narrow<T>(__uint_as_float(0x7FC00000u));
      }
      return;
    }
  }

  Cell<T, N>* const cells = reinterpret_cast<Cell<T, N>*>(shared);
  // [row of the block][warp of the team][N]
  float* const sums = reinterpret_cast<float*>(cells + layout.chunk_segments * kSegment);
  const int lanes = min(layout.team, kWarp);
  const int warps = max(layout.team / kWarp, 1);
  const int member = threadIdx.x & (layout.team - 1);
  const int teams = kVectorThreads / layout.team;
  const int segments = weight.segments;

  for (int first = 0; first < segments; first += layout.chunk_segments) {
    const int last = min(first + layout.chunk_segments, segments);
    const auto span = [&](int row) {
      if (row >= rows) return Span{0, 0};
      const int32_t* const starts = weight.starts + (stack * weight.rows + first_row + row) * segments;
      return Span{static_cast<uint32_t>(starts[first]), static_cast<uint32_t>(starts[last])};
    };
    const int own_row = threadIdx.x / layout.team;
    // Where a row's weights are is asked for two rows ahead.
    Span now = span(own_row), next = span(own_row + teams);
    Reader<T, N> reader(weight, member, layout.team);
    reader.load(now);
    if (first > 0) __syncthreads();  // the chunk before is read no more
    stage(cells, product, batch_row, first, last);
    __syncthreads();
    for (int row = own_row; row < layout.rows; row += teams) {
      const Span later = span(row + 2 * teams);
      float sum[N] = {};
      reader.multiply(sum, now, next, cells, first * kSegment);
      now = next;
      next = later;
      __syncwarp();
      const float of_warp = sum_over<N>(sum, lanes);
      if (member % kWarp < N) {
        float& slot = sums[(row * warps + member / kWarp) * N + member % kWarp];
        slot = first > 0 ? slot + of_warp : of_warp;
      }
    }
  }
  __syncthreads();

  for (int i = threadIdx.x; i < rows * N; i += kVectorThreads) {
    const int row = i % rows, n = i / rows;
    if (batch_row + n >= product.batch) continue;
    float sum = 0.0f;
    for (int warp = 0; warp < warps; ++warp) sum += sums[(row * warps + warp) * N + n];
    product.y[static_cast<int64_t>(batch_row + n) * weight.rows + first_row + row] =
        finished(sum, product.epilogue, stack * weight.rows + first_row + row);
  }
}

template <class T, int N>
void launch_vectors(const Product<T>& product, const int64_t* task_of_row, const VectorShape& shape,
                    cudaStream_t stream) {
  const int rows = kVectorThreads / shape.team * shape.passes;
  const int row_blocks = (product.weight.rows + rows - 1) / rows;
  const Layout layout{shape.team, rows, row_blocks, shape.chunk_segments};
  const int warps = std::max(shape.team / kWarp, 1);
  const size_t shared = shape.chunk_segments * kSegment * sizeof(Cell<T, N>) + sizeof(float) * rows * warps * N;
  const int64_t blocks = int64_t{row_blocks} * ((product.batch + N - 1) / N);
  if (blocks > std::numeric_limits<int>::max()) throw std::runtime_error("a product of too many rows for one launch");
  launch(&multiply_vectors_kernel<T, N>, dim3(static_cast<unsigned>(blocks)), dim3(kVectorThreads), shared, stream,
         product, task_of_row, layout);
}

}  // namespace

template <class T>
VectorShape vector_shape(const CompactWeight<T>& weight, int batch, bool grouped, const Device& device) {
  VectorShape shape{};
  for (const int block : kVectorBatches) {
    shape.batch_block = block;
    if (grouped || block >= batch) break;
  }
  const int batch_blocks = (batch + shape.batch_block - 1) / shape.batch_block;

  // As many threads per row as have something to load, if the GPU would stay idle; else at most a warp. With one or two
  // rows of x, each lane has some octets of a chunk to itself: what precedes and follows them is the same for few as for
  // many. With more rows that has not been measured by itself.
  const int64_t all_rows = int64_t{weight.stacks} * weight.rows;
  const int64_t octets = weight.nnz / (all_rows * kOctet);
  const size_t cell = std::max<size_t>(4, shape.batch_block * sizeof(T));
  const int64_t of_chunk = std::min<int64_t>(octets, octets * kMostCells / (weight.cols * cell));
  const int64_t to_share = shape.batch_block <= 2 ? of_chunk / 4 : octets;
  shape.team = std::max(4, shape.batch_block);
  const auto wants_more = [&] {
    const int64_t threads = int64_t{weight.rows} * batch_blocks * shape.team;
    const bool idle = threads < int64_t{device.multiprocessors} * kVectorThreads;
    return idle ? shape.team < octets : shape.team < kWarp && 2 * shape.team <= to_share;
  };
  while (shape.team < kVectorThreads && wants_more()) shape.team *= 2;

  constexpr int kMostPasses = 8;
  const size_t sums = sizeof(float) * kVectorThreads / std::min(shape.team, kWarp) * kMostPasses * shape.batch_block;
  const size_t room = std::min(kMostCells, device.shared_bytes > sums ? device.shared_bytes - sums : 0);
  const int most_segments = std::max<int>(1, static_cast<int>(room / (cell * kSegment)));
  const int chunks = (weight.segments + most_segments - 1) / most_segments;
  shape.chunk_segments = (weight.segments + chunks - 1) / chunks;

  // A block loads x once for all its rows: as many as still leave every multiprocessor the blocks that fit on it, which
  // all run at once.
  const size_t used = shape.chunk_segments * kSegment * cell + kReserved;
  const bool both = blocks_of(shape.batch_block * sizeof(T)) == 2 && 2 * used <= device.shared_bytes + kReserved;
  const int fitting = both ? 2 : 1;
  const int64_t together = int64_t{device.multiprocessors} * fitting * (kVectorThreads / shape.team);
  shape.passes = static_cast<int>(
      std::clamp<int64_t>((int64_t{weight.rows} * batch_blocks + together - 1) / together, 1, kMostPasses));
  return shape;
}

template <class T>
void multiply_vectors(const Product<T>& product, const int64_t* task_of_row, const VectorShape& shape,
                      cudaStream_t stream) {
  if (product.batch == 0) return;
  switch (shape.batch_block) {
    case 1: return launch_vectors<T, 1>(product, task_of_row, shape, stream);
    case 2: return launch_vectors<T, 2>(product, task_of_row, shape, stream);
    case 4: return launch_vectors<T, 4>(product, task_of_row, shape, stream);
    default: return launch_vectors<T, 8>(product, task_of_row, shape, stream);
  }
}

#define RSN2_INSTANTIATE(T)                                                                          \
  template VectorShape vector_shape<T>(const CompactWeight<T>&, int, bool, const Device&);           \
  template void multiply_vectors<T>(const Product<T>&, const int64_t*, const VectorShape&, cudaStream_t);
RSN2_INSTANTIATE(float)
RSN2_INSTANTIATE(BFloat16)
RSN2_INSTANTIATE(Half)
#undef RSN2_INSTANTIATE

}  // namespace rsn2::cuda
