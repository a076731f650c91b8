// x as the matrix-vector kernel keeps it in shared memory, and products with it.
#pragma once

#include <cstring>
#include <type_traits>

#include "linear.h"
#include "scalar.h"

namespace rsn2::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kOctet = 8;                   // values, or columns of x, that a thread loads at a time
constexpr int kSlice = 128;                 // columns whose bits a thread walks over: 16 bytes of bitmap
constexpr int kSlices = kSegment / kSlice;  // of a segment

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

// Without a branch around the load, so that those of several products are under way together: `cell` may be any that
// there is where the product does not count.
template <class T, int N>
__device__ __forceinline__ void add_product(float (&sum)[N], float value, const Cell<T, N>& cell, bool counts) {
  constexpr int kPack = Cell<T, N>::kPack;
#pragma unroll
  for (int p = 0; p < N / kPack; ++p) {
    const auto pack = cell.packs[p];
#pragma unroll
    for (int n = 0; n < kPack; ++n) {
      const float with = fmaf(value, widen(pack.at[n]), sum[p * kPack + n]);
      sum[p * kPack + n] = counts ? with : sum[p * kPack + n];
    }
  }
}

// Where the columns of a chunk of x stand in shared memory: column b of slice s at `at(s, b)`. One lane: in order. With
// as many as threads walk side by side, neighbouring slices stand in neighbouring cells.
struct Places {
  int lane_bits;  // 2 ** lane_bits lanes

  __device__ __forceinline__ int at(int slice, int column) const {
    const int lane = slice & ((1 << lane_bits) - 1);
    return (((slice >> lane_bits) * kSlice + column) << lane_bits) + lane;
  }
};

// A row's segments of a chunk. A row that does not exist has none.
struct Span {
  int64_t cell;  // its first segment, in the arrays of the weight
  int segments;
};

// Brings segments [first, last) of N rows of x, from row `row` on, to shared memory; 0 past the batch and the columns.
template <class T, int N, bool kInOrder>
__device__ __forceinline__ void stage(Cell<T, N>* cells, const Product<T>& product, int row, int first, int last,
                                      Places places) {
  // Few enough columns at a time that their cells stay in registers.
  constexpr int kColumns = N * sizeof(T) > 16 ? 4 : kOctet;
  constexpr int kPack = kColumns * sizeof(T) > 16 ? 16 / sizeof(T) : kColumns;
  const int slices = (last - first) * kSlices;
  // Neighbouring threads write neighbouring cells: they take different slices.
  const int lanes = 1 << places.lane_bits;
  const int units = ((slices + lanes - 1) >> places.lane_bits) * lanes * (kSlice / kColumns);
#pragma unroll 1  // two at a time would take too many registers
  for (int unit = threadIdx.x; unit < units; unit += kVectorThreads) {
    const int of_lanes = unit >> places.lane_bits;
    const int slice = of_lanes / (kSlice / kColumns) * lanes + (unit & (lanes - 1));
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
    if constexpr (kInOrder) {
      // All at once: cell by cell, neighbouring threads would meet in the banks.
      constexpr int kWords = sizeof(found) / 16;
      uint4 words[kWords];
      memcpy(words, found, sizeof found);
      uint4* const to = reinterpret_cast<uint4*>(cells + slice * kSlice + inside);
#pragma unroll
      for (int w = 0; w < kWords; ++w) to[w] = words[w];
    } else {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) cells[places.at(slice, inside + j)] = found[j];
    }
  }
}

}  // namespace rsn2::cuda
