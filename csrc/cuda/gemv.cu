// Small-batch products on the ordinary cores: a team of threads per row of the weight, x in shared memory.
//
// A weight is read once, in one of two ways. By bytes, the work is shared out over the owned weights: a thread takes
// eight neighbours in the value order at a time, wherever they stand. By bits, a thread walks over the ones of 128
// columns; x lies in shared memory so that threads with different 128 columns never meet in a bank.
#include <algorithm>
#include <type_traits>

#include "epilogue.h"
#include "linear.h"
#include "primitives.h"

namespace rsn2::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kOctet = 8;                              // values, or columns of x, that a thread loads at a time
constexpr int kSlice = 128;                            // columns whose bits a thread walks over: 16 bytes of bitmap
constexpr int kSlices = kSegment / kSlice;             // of a segment
constexpr size_t kMostCells = 128 * 1024;              // bytes of x in shared memory, where the GPU has as much

// N rows of x at one column: what one owned weight is multiplied with.
//
// A cell is at least one bank wide: single 16-bit elements are widened, so that no two of them share a bank.
template <class T, int N>
struct Cell {
  using Element = std::conditional_t<N * sizeof(T) < 4, float, T>;
  static constexpr int kPack = N * sizeof(Element) <= 16 ? N : 16 / sizeof(Element);
  Pack<Element, kPack> packs[N / kPack];

  __device__ __forceinline__ void set(int n, T value) {
    if constexpr (std::is_same_v<Element, T>) {
      packs[n / kPack].at[n % kPack] = value;
    } else {
      packs[n / kPack].at[n % kPack] = widen(value);
    }
  }
};

template <class T, int N>
__device__ __forceinline__ void add_product(float (&sum)[N], float value, const Cell<T, N>& cell) {
  constexpr int kPack = Cell<T, N>::kPack;
#pragma unroll
  for (int p = 0; p < N / kPack; ++p) {
    const auto pack = cell.packs[p];
#pragma unroll
    for (int n = 0; n < kPack; ++n) sum[p * kPack + n] = fmaf(value, widen(pack.at[n]), sum[p * kPack + n]);
  }
}

// Where the columns of a chunk of x stand in shared memory: column b of slice s at `at(s, b)`. One lane: in order. With
// as many as threads walk side by side, neighbouring slices stand in neighbouring cells.
struct Places {
  int lanes;  // a power of two

  __device__ __forceinline__ int at(int slice, int column) const {
    return (slice / lanes * kSlice + column) * lanes + slice % lanes;
  }
};

// How a kernel is told its shape, and where its shared memory lies.
struct Layout {
  int team;
  int rows;            // of the weight, per block
  int chunk_segments;
  int lanes;           // of Places
  int chunk_cells;     // columns of a chunk, in whole slices of all lanes
};

// Eight neighbours from a place that is aligned, zero from nnz on.
template <class T>
__device__ __forceinline__ void load_octet(const T* values, uint32_t first, uint32_t nnz, float (&out)[kOctet]) {
  if (first + kOctet <= nnz) {
    constexpr int kPack = 16 / sizeof(T);
#pragma unroll
    for (int p = 0; p < kOctet / kPack; ++p) {
      const Pack<T, kPack> pack = load_pack<T, kPack>(values + first + p * kPack);
#pragma unroll
      for (int j = 0; j < kPack; ++j) out[p * kPack + j] = widen(pack.at[j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kOctet; ++j) out[j] = first + j < nnz ? widen(values[first + j]) : 0.0f;
  }
}

__device__ __forceinline__ uint64_t load_octet(const uint8_t* bytes, uint32_t first, uint32_t nnz) {
  if (first + kOctet <= nnz) return *reinterpret_cast<const uint64_t*>(bytes + first);
  uint64_t octet = 0;
  for (uint32_t k = first; k < nnz; ++k) octet |= uint64_t{bytes[k]} << 8 * (k - first);
  return octet;
}

// Neighbours from any place on, four at a time.
template <class T>
class Stream {
 public:
  __device__ __forceinline__ Stream(const T* values, uint32_t first, uint32_t nnz)
      : values_(values), next_(first / 4 * 4), nnz_(nnz), shift_(first % 4 * 16), held_(quad()) {}

  __device__ __forceinline__ void take(float (&out)[4]) {
    next_ += 4;
    const uint2 more = quad();
    const bool upper = shift_ & 32;
    const uint32_t a = upper ? held_.y : held_.x, b = upper ? more.x : held_.y, c = upper ? more.y : more.x;
    widen_pair(__funnelshift_r(a, b, shift_ & 31), out[0], out[1]);
    widen_pair(__funnelshift_r(b, c, shift_ & 31), out[2], out[3]);
    held_ = more;
  }

 private:
  __device__ __forceinline__ uint2 quad() const {
    if (next_ + 4 <= nnz_) return *reinterpret_cast<const uint2*>(values_ + next_);
    Pack<T, 4> pack = {};
    for (int j = 0; j < 4 && next_ + j < nnz_; ++j) pack.at[j] = values_[next_ + j];
    return same_bits<uint2>(pack);
  }

  __device__ __forceinline__ static void widen_pair(uint32_t bits, float& low, float& high) {
    const auto pair = same_bits<Pack<T, 2>>(bits);
    low = widen(pair.at[0]);
    high = widen(pair.at[1]);
  }

  const T* values_;
  uint32_t next_;
  uint32_t nnz_;
  int shift_;   // bits of the held four that were taken already
  uint2 held_;  // the four before next_ + 4
};

template <>
class Stream<float> {
 public:
  __device__ __forceinline__ Stream(const float* values, uint32_t first, uint32_t nnz)
      : values_(values), next_(first), nnz_(nnz) {}

  __device__ __forceinline__ void take(float (&out)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j, ++next_) out[j] = next_ < nnz_ ? values_[next_] : 0.0f;
  }

 private:
  const float* values_;
  uint32_t next_;
  uint32_t nnz_;
};

// The segment in [first, last) that holds value k, where starts[first] <= k < starts[last].
__device__ __forceinline__ int segment_of(const int32_t* starts, int first, int last, uint32_t k) {
  while (last - first > 1) {
    const int middle = (first + last) / 2;
    if (static_cast<uint32_t>(starts[middle]) <= k) {
      first = middle;
    } else {
      last = middle;
    }
  }
  return first;
}

// The products of a row's segments [first, last), of which this thread is number `member` of the team.
//
// `cell` is the row's first segment in the arrays of the weight, and x holds segment `first` at its beginning.
template <class T, int N>
__device__ __forceinline__ void add_by_bytes(float (&sum)[N], const CompactWeight<T>& weight, int64_t cell, int first,
                                             int last, const Cell<T, N>* x, int member, int team) {
  const int32_t* const starts = weight.starts + cell;
  const uint32_t nnz = static_cast<uint32_t>(weight.nnz);
  const uint32_t begin = starts[first], end = starts[last];
  for (uint32_t octet = begin / kOctet * kOctet + kOctet * member; octet < end; octet += kOctet * team) {
    float values[kOctet];
    load_octet(weight.values, octet, nnz, values);
    const uint64_t bytes = load_octet(weight.bytes, octet, nnz);
    int segment = segment_of(starts, first, last, max(octet, begin));
    uint32_t next = starts[segment + 1];
#pragma unroll
    for (int j = 0; j < kOctet; ++j) {
      const uint32_t k = octet + j;
      if (k < begin || k >= end) continue;
      while (k >= next) next = starts[++segment + 1];
      const int column = static_cast<int>(bytes >> 8 * j & 0xFF);
      add_product(sum, values[j], x[(segment - first) * kSegment + column]);
    }
  }
}

template <class T, int N>
__device__ __forceinline__ void add_by_bits(float (&sum)[N], const CompactWeight<T>& weight, int64_t cell, int first,
                                            int last, const Cell<T, N>* x, Places places, int member, int team) {
  const int32_t* const starts = weight.starts + cell + first;
  const uint4* const bits = reinterpret_cast<const uint4*>(weight.bits) + (cell + first) * kSlices;
  // The two slices of a segment belong to two neighbouring lanes.
  const unsigned pair = 3u << (threadIdx.x % kWarp & ~1u);
  for (int slice = member; slice < (last - first) * kSlices; slice += team) {
    const uint4 words = bits[slice];
    const int count = __popc(words.x) + __popc(words.y) + __popc(words.z) + __popc(words.w);
    const int count_beside = __shfl_xor_sync(pair, count, 1);
    Stream<T> stream(weight.values, starts[slice / kSlices] + (slice % kSlices ? count_beside : 0),
                     static_cast<uint32_t>(weight.nnz));
    uint32_t word = words.x;
    int base = 0;
    for (int taken = 0; taken < count; taken += 4) {
      float values[4];
      stream.take(values);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (taken + j >= count) continue;
        while (word == 0) {
          base += 32;
          word = base == 32 ? words.y : base == 64 ? words.z : words.w;
        }
        add_product(sum, values[j], x[places.at(slice, base + __ffs(word) - 1)]);
        word &= word - 1;
      }
    }
  }
}

// Brings segments [first, last) of N rows of x, from row `row` on, to shared memory; 0 past the batch and the columns.
template <class T, int N>
__device__ __forceinline__ void stage(Cell<T, N>* cells, const Product<T>& product, int row, int first, int last,
                                      Places places) {
  // Few enough columns at a time that their cells stay in registers.
  constexpr int kColumns = N * sizeof(T) > 16 ? 4 : kOctet;
  constexpr int kPack = kColumns * sizeof(T) > 16 ? 16 / sizeof(T) : kColumns;
  const int slices = (last - first) * kSlices;
  // Neighbouring threads write neighbouring cells: they take different slices.
  const int units = (slices + places.lanes - 1) / places.lanes * places.lanes * (kSlice / kColumns);
  for (int unit = threadIdx.x; unit < units; unit += kVectorThreads) {
    const int of_lanes = unit / places.lanes;
    const int slice = of_lanes / (kSlice / kColumns) * places.lanes + unit % places.lanes;
    const int inside = of_lanes % (kSlice / kColumns) * kColumns;
    const int column = first * kSegment + slice * kSlice + inside;
    if (slice >= slices) continue;
    Cell<T, N> found[kColumns];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const T* const from = product.x + (row + n) * product.x_stride + column;
      const int columns = row + n < product.batch ? product.weight.cols - column : 0;
#pragma unroll
      for (int p = 0; p < kColumns / kPack; ++p) {
        Pack<T, kPack> pack = {};
        if (columns >= (p + 1) * kPack) {
          pack = load_pack<T, kPack>(from + p * kPack);
        } else {
#pragma unroll
          for (int j = 0; j < kPack; ++j) {
            if (p * kPack + j < columns) pack.at[j] = from[p * kPack + j];
          }
        }
#pragma unroll
        for (int j = 0; j < kPack; ++j) found[p * kPack + j].set(n, pack.at[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) cells[places.at(slice, inside + j)] = found[j];
  }
}

// Of N sums of each lane, keeps one: lane l that of l % N, over the N lanes that differ in the last digits of l.
template <int N>
__device__ __forceinline__ void fold(float* sum, int lane) {
  if constexpr (N > 1) {
    // A lane keeps one half of its sums and gives the other to its partner.
    constexpr int kHalf = N / 2;
    const bool upper = lane & kHalf;
#pragma unroll
    for (int n = 0; n < kHalf; ++n) {
      const float given = __shfl_xor_sync(0xFFFFFFFFu, upper ? sum[n] : sum[n + kHalf], kHalf);
      sum[n] = (upper ? sum[n + kHalf] : sum[n]) + given;
    }
    fold<kHalf>(sum, lane);
  }
}

// Sums over `lanes` neighbouring lanes, a power of two and at least N; lane l of them returns sum[l % N].
template <int N>
__device__ __forceinline__ float sum_over(float (&sum)[N], int lanes) {
  fold<N>(sum, threadIdx.x % kWarp);
  for (int step = N; step < lanes; step *= 2) sum[0] += __shfl_xor_sync(0xFFFFFFFFu, sum[0], step);
  return sum[0];
}

// Block (x, y): `layout.rows` rows of the weight, times batch rows y * N to y * N + N - 1.
//
// The second bound is said because, left alone, the compiler spills registers for blocks that shared memory rules out.
template <class T, int N, bool kBytes>
__global__ __launch_bounds__(kVectorThreads, N * sizeof(T) > 8 ? 1 : 2) void multiply_vectors_kernel(
    Product<T> product, const int64_t* task_of_row, Layout layout) {
  RSN2_SHARED_MEMORY(shared);
  const CompactWeight<T>& weight = product.weight;
  const int batch_row = blockIdx.y * N;
  const int first_row = blockIdx.x * layout.rows;
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
  float* const sums = reinterpret_cast<float*>(cells + layout.chunk_cells);
  const Places places{layout.lanes};
  const int lanes = min(layout.team, kWarp);
  const int warps = layout.team / lanes;
  const int member = threadIdx.x % layout.team;
  const int teams = kVectorThreads / layout.team;
  const int segments = weight.segments;

  for (int first = 0; first < segments; first += layout.chunk_segments) {
    const int last = min(first + layout.chunk_segments, segments);
    if (first > 0) __syncthreads();  // the chunk before is read no more
    stage<T, N>(cells, product, batch_row, first, last, places);
    __syncthreads();
    for (int row = threadIdx.x / layout.team; row < layout.rows; row += teams) {
      float sum[N] = {};
      if (row < rows) {
        const int64_t cell = (stack * weight.rows + first_row + row) * segments;
        if constexpr (kBytes) {
          add_by_bytes<T, N>(sum, weight, cell, first, last, cells, member, layout.team);
        } else {
          add_by_bits<T, N>(sum, weight, cell, first, last, cells, places, member, layout.team);
        }
      }
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

template <class T, int N, bool kBytes>
void launch_vectors(const Product<T>& product, const int64_t* task_of_row, const VectorShape& shape,
                    cudaStream_t stream) {
  const CompactWeight<T>& weight = product.weight;
  const int lanes = !kBytes ? std::min(shape.team, kWarp) : 1;
  const int rows = kVectorThreads / shape.team * shape.passes;
  const int slices = (shape.chunk_segments * kSlices + lanes - 1) / lanes * lanes;
  const Layout layout{shape.team, rows, shape.chunk_segments, lanes, slices * kSlice};
  const int warps = std::max(shape.team / kWarp, 1);
  const size_t shared = layout.chunk_cells * sizeof(Cell<T, N>) + sizeof(float) * rows * warps * N;
  const dim3 grid((weight.rows + rows - 1) / rows, (product.batch + N - 1) / N);
  launch(&multiply_vectors_kernel<T, N, kBytes>, grid, dim3(kVectorThreads), shared, stream, product, task_of_row,
         layout);
}

template <class T, int N>
void launch_vectors(const Product<T>& product, const int64_t* task_of_row, const VectorShape& shape,
                    cudaStream_t stream) {
  if (product.weight.bytes) {
    launch_vectors<T, N, true>(product, task_of_row, shape, stream);
  } else {
    launch_vectors<T, N, false>(product, task_of_row, shape, stream);
  }
}

}  // namespace

template <class T>
VectorShape vector_shape(const CompactWeight<T>& weight, int batch, bool grouped, const Device& device) {
  VectorShape shape{};
  const int most = sizeof(T) == 4 ? 8 : 16;
  for (const int block : kVectorBatches) {
    if (block > most) break;
    shape.batch_block = block;
    if (grouped || block >= batch) break;
  }
  const int batch_blocks = (batch + shape.batch_block - 1) / shape.batch_block;

  // As many threads per row as have something to load, and more where the rows alone would leave the GPU idle.
  const int64_t all_rows = int64_t{weight.stacks} * weight.rows;
  const int64_t loads = weight.bytes ? weight.nnz / (all_rows * kOctet)
                                                               : int64_t{weight.segments} * kSlices;
  shape.team = std::max(4, shape.batch_block);
  const auto idle = [&] {
    return int64_t{weight.rows} * batch_blocks * shape.team < int64_t{device.multiprocessors} * kVectorThreads;
  };
  while (shape.team < kVectorThreads && 2 * shape.team <= loads && (shape.team < kWarp || idle())) shape.team *= 2;

  // A block loads x once for all its rows: as many as still leave a block for every multiprocessor.
  const int64_t together = int64_t{device.multiprocessors} * (kVectorThreads / shape.team);
  shape.passes = static_cast<int>(std::clamp<int64_t>(int64_t{weight.rows} * batch_blocks / together, 1, 8));

  const size_t cell = std::max<size_t>(4, shape.batch_block * sizeof(T));
  const size_t sums = sizeof(float) * kVectorThreads / std::min(shape.team, kWarp) * shape.passes * shape.batch_block;
  // Slices are laid out for whole warps.
  const size_t spare = sums + cell * kSlice * kWarp;
  const size_t room = std::min(kMostCells, device.shared_bytes > spare ? device.shared_bytes - spare : 0);
  const int most_segments = std::max<int>(1, static_cast<int>(room / (cell * kSegment)));
  const int chunks = (weight.segments + most_segments - 1) / most_segments;
  shape.chunk_segments = (weight.segments + chunks - 1) / chunks;
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
    case 8: return launch_vectors<T, 8>(product, task_of_row, shape, stream);
    default:
      if constexpr (sizeof(T) == 2) return launch_vectors<T, 16>(product, task_of_row, shape, stream);
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
