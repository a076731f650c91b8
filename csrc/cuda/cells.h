// x as the matrix-vector kernel keeps it in shared memory, and products with it.
#pragma once

#include <cstring>
#include <type_traits>

#include "linear.h"
#include "scalar.h"

namespace rsn2::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
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

// Neighbouring columns of N rows of x, as a thread loads them.
template <class T, int N>
struct Columns {
  static constexpr int kCount = N * sizeof(T) > 16 ? 4 : 8;  // so few that their cells stay in registers
  static constexpr int kPack = kCount * sizeof(T) > 16 ? 16 / sizeof(T) : kCount;
  Pack<T, kPack> packs[N][kCount / kPack];

  // Of rows `row` on; 0 past the batch and the columns.
  __device__ __forceinline__ void load(const Product<T>& product, int row, int column) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const T* const from = product.x + (row + n) * product.x_stride + column;
      const int columns = row + n < product.batch ? product.weight.cols - column : 0;
#pragma unroll
      for (int p = 0; p < kCount / kPack; ++p) {
        packs[n][p] = {};
        if (columns >= (p + 1) * kPack) {
          packs[n][p] = load_pack<T, kPack>(from + p * kPack);
        } else {
#pragma unroll
          for (int j = 0; j < kPack; ++j) {
            if (p * kPack + j < columns) packs[n][p].at[j] = from[p * kPack + j];
          }
        }
      }
    }
  }

  __device__ __forceinline__ void store(Cell<T, N>* cells) const {
    Cell<T, N> found[kCount];
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) found[j].set(n, packs[n][j / kPack].at[j % kPack]);
    }
    // All at once: cell by cell, neighbouring threads would meet in the banks.
    constexpr int kWords = sizeof(found) / 16;
    uint4 words[kWords];
    memcpy(words, found, sizeof found);
#pragma unroll
    for (int w = 0; w < kWords; ++w) reinterpret_cast<uint4*>(cells)[w] = words[w];
  }
};

// Brings segments [first, last) of N rows of x, from row `row` on, to shared memory.
template <class T, int N>
__device__ __forceinline__ void stage(Cell<T, N>* cells, const Product<T>& product, int row, int first, int last) {
  constexpr int kCount = Columns<T, N>::kCount;
  const int units = (last - first) * (kSegment / kCount);
#pragma unroll 1  // two at a time would take too many registers
  for (int unit = threadIdx.x; unit < units; unit += kVectorThreads) {
    Columns<T, N> found;
    found.load(product, row, first * kSegment + unit * kCount);
    found.store(cells + unit * kCount);
  }
}

}  // namespace rsn2::cuda
