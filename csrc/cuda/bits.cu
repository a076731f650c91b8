// Masks as bools, as bits and as column indices: kernels that move bytes, each lane 8 or 16 at a time.
#include "bits.h"

#include <algorithm>

#include "platform.h"

namespace rsn2::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 128;         // words whose columns one block writes at a time; these take up to 32 KiB
constexpr int kRun = 16;           // columns that one lane packs or unpacks at a time
constexpr int64_t kBlocks = 2048;  // at most: every GPU is full, and each thread divides once for several elements

constexpr uint64_t kOnes = 0x0101010101010101;      // 1 in each byte
constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7f;       // all but the highest bit of each byte
constexpr uint64_t kDiagonal = 0x8040201008040201;  // bit i of byte i
constexpr uint64_t kGather = 0x0102040810204080;    // times bytes of 0 or 1: byte i becomes bit 56 + i

// Position number `index` of rows of equal size, and the ones that follow it at a fixed distance. A division of 64-bit
// numbers costs more than packing 16 bools: it is done once per thread, by the host for the distance.
struct Distance {
  int64_t rows, rest;
};

struct Position {
  int64_t row, at;

  __device__ Position(int64_t index, int64_t size) : row(index / size), at(index % size) {}

  __device__ void advance(const Distance& distance, int64_t size) {
    row += distance.rows;
    at += distance.rest;
    if (at >= size) {
      at -= size;
      ++row;
    }
  }
};

__device__ int64_t this_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

__device__ int64_t all_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// One bit per byte: whether it is not 0.
__device__ uint32_t bits_of(uint64_t bytes) {
  const uint64_t high = ((bytes & kLow) + kLow) | bytes;
  return static_cast<uint32_t>(((high >> 7 & kOnes) * kGather) >> 56);
}

// A byte of 0 or 1 per bit of the lowest 8.
__device__ uint64_t bytes_of(uint32_t bits) {
  const uint64_t apart = (bits & 0xff) * kOnes & kDiagonal;
  return (apart + kLow) >> 7 & kOnes;
}

__device__ ulonglong2 load_aligned(const uint8_t* source) { return *reinterpret_cast<const ulonglong2*>(source); }

// The bytes of `low` from number `skipped` on, then those of `high`; skipped is 1 to 7.
__device__ uint64_t joined(uint64_t low, uint64_t high, int skipped) {
  return low >> 8 * skipped | high << (64 - 8 * skipped);
}

// One bit for each of mask[begin] to mask[begin + 15], 0 past mask[size - 1].
__device__ uint32_t load_run(const uint8_t* mask, int64_t begin, int64_t size) {
  const int skipped = static_cast<int>(reinterpret_cast<uintptr_t>(mask + begin) % kRun);
  // Rows need not begin at a multiple of 16 bytes. What a lane wants then lies in two aligned pieces, and the lanes
  // beside it want the rest of them: memory is read once all the same.
  const int64_t first = begin - skipped, last = first + (skipped ? 2 * kRun : kRun);
  if (first < 0 || last > size) {
    uint32_t bits = 0;
    for (int i = 0; i < kRun && begin + i < size; ++i) bits |= static_cast<uint32_t>(mask[begin + i] != 0) << i;
    return bits;
  }
  const ulonglong2 a = load_aligned(mask + first);
  uint64_t low = a.x, high = a.y;
  if (skipped) {
    const ulonglong2 b = load_aligned(mask + first + kRun);
    const bool half = skipped >= 8;
    const uint64_t x = half ? a.y : a.x, y = half ? b.x : a.y, z = half ? b.y : b.x;
    const int rest = skipped % 8;
    low = rest ? joined(x, y, rest) : x;
    high = rest ? joined(y, z, rest) : y;
  }
  return bits_of(low) | bits_of(high) << 8;
}

// A lane packs 16 columns: a quarter of a word. `size` is rows * cols.
__global__ void __launch_bounds__(kThreads)
    pack_bits_kernel(const uint8_t* mask, int64_t rows, int64_t cols, int64_t quarters, Distance distance,
                     uint16_t* words) {
  for (Position p(this_thread(), quarters); p.row < rows; p.advance(distance, quarters)) {
    const int64_t left = cols - p.at * kRun;
    uint32_t bits = 0;
    if (left > 0) bits = load_run(mask, p.row * cols + p.at * kRun, rows * cols);
    if (left > 0 && left < kRun) bits &= (1u << left) - 1;
    words[p.row * quarters + p.at] = static_cast<uint16_t>(bits);
  }
}

// The bits of a row from `column` on, lowest first; at least 16 of them where the row has as many.
__device__ uint64_t bits_from(const uint64_t* row, int64_t per_row, int64_t column) {
  const int64_t word = column / kWordBits;
  const int skipped = static_cast<int>(column % kWordBits);
  uint64_t bits = row[word] >> skipped;
  if (skipped > kWordBits - kRun && word + 1 < per_row) bits |= row[word + 1] << (kWordBits - skipped);
  return bits;
}

// A lane writes 16 neighbouring bools, of one row or of several.
__global__ void __launch_bounds__(kThreads)
    unpack_bits_kernel(const uint64_t* words, int64_t rows, int64_t cols, int64_t per_row, Distance distance,
                       uint8_t* mask) {
  const int64_t size = rows * cols;
  int64_t begin = this_thread() * kRun;
  for (Position p(begin, cols); begin < size; p.advance(distance, cols), begin += all_threads() * kRun) {
    uint32_t bits = 0;
    int64_t column = p.at;
    int filled = 0;
    for (int64_t row = p.row; filled < kRun && row < rows; ++row) {
      const int64_t rest = cols - column;
      const int taken = rest < kRun - filled ? static_cast<int>(rest) : kRun - filled;
      const uint32_t found = static_cast<uint32_t>(bits_from(words + row * per_row, per_row, column));
      bits |= (found & ((1u << taken) - 1)) << filled;
      filled += taken;
      column = 0;
    }
    if (filled == kRun) {
      *reinterpret_cast<ulonglong2*>(mask + begin) = {bytes_of(bits), bytes_of(bits >> 8)};
    } else {
      for (int i = 0; i < filled; ++i) mask[begin + i] = bits >> i & 1;
    }
  }
}

__global__ void __launch_bounds__(kThreads) count_bits_kernel(const uint64_t* words, int64_t size, int32_t* counts) {
  for (int64_t i = this_thread(); i < size; i += all_threads()) counts[i] = __popcll(words[i]);
}

// A lane finds the columns of one word. They are as many as there are bits, so they meet in shared memory, from where
// neighbouring lanes write neighbouring columns.
__global__ void __launch_bounds__(kTile)
    columns_of_bits_kernel(const uint64_t* words, const int64_t* ends, int64_t size, int64_t per_row,
                           Distance distance, int32_t* col) {
  RSN2_SHARED_ARRAY(int32_t, columns, [kTile * kWordBits]);
  Position p(this_thread(), per_row);
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kTile; tile < size; tile += all_threads()) {
    const int64_t begin = tile ? ends[tile - 1] : 0;
    const int64_t last = tile + kTile < size ? tile + kTile : size;
    const int found = static_cast<int>(ends[last - 1] - begin);
    const int64_t i = tile + threadIdx.x;
    if (i < size) {
      const int32_t first = static_cast<int32_t>(p.at * kWordBits);
      uint64_t bits = words[i];
      int place = static_cast<int>(ends[i] - begin) - __popcll(bits);
      for (; bits; bits &= bits - 1) columns[place++] = first + __ffsll(static_cast<long long>(bits)) - 1;
    }
    p.advance(distance, per_row);
    __syncthreads();
    for (int j = threadIdx.x; j < found; j += kTile) col[begin + j] = columns[j];
    __syncthreads();
  }
}

unsigned blocks_for(int64_t elements, int threads) {
  return static_cast<unsigned>(std::min(kBlocks, (elements + threads - 1) / threads));
}

// What lies between the positions of a thread: `elements` of rows of `size`.
Distance distance_of(int64_t elements, int64_t size) { return {elements / size, elements % size}; }

}  // namespace

void pack_bits(const uint8_t* mask, int64_t rows, int64_t cols, uint64_t* words, cudaStream_t stream) {
  const int64_t quarters = words_per_row(cols) * (kWordBits / kRun);
  if (rows * quarters == 0) return;
  const unsigned blocks = blocks_for(rows * quarters, kThreads);
  const Distance distance = distance_of(int64_t{blocks} * kThreads, quarters);
  launch(pack_bits_kernel, dim3(blocks), dim3(kThreads), 0, stream, mask, rows, cols, quarters, distance,
         reinterpret_cast<uint16_t*>(words));
}

void unpack_bits(const uint64_t* words, int64_t rows, int64_t cols, uint8_t* mask, cudaStream_t stream) {
  if (rows * cols == 0) return;
  const unsigned blocks = blocks_for((rows * cols + kRun - 1) / kRun, kThreads);
  const Distance distance = distance_of(int64_t{blocks} * kThreads * kRun, cols);
  launch(unpack_bits_kernel, dim3(blocks), dim3(kThreads), 0, stream, words, rows, cols, words_per_row(cols), distance,
         mask);
}

void count_bits(const uint64_t* words, int64_t size, int32_t* counts, cudaStream_t stream) {
  if (size == 0) return;
  launch(count_bits_kernel, dim3(blocks_for(size, kThreads)), dim3(kThreads), 0, stream, words, size, counts);
}

void columns_of_bits(const uint64_t* words, const int64_t* ends, int64_t rows, int64_t per_row, int32_t* col,
                     cudaStream_t stream) {
  const int64_t size = rows * per_row;
  if (size == 0) return;
  const unsigned blocks = blocks_for(size, kTile);
  launch(columns_of_bits_kernel, dim3(blocks), dim3(kTile), 0, stream, words, ends, size, per_row,
         distance_of(int64_t{blocks} * kTile, per_row), col);
}

}  // namespace rsn2::cuda
