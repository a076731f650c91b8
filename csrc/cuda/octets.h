// Eight neighbouring weights of a compact weight, and their products with cells of x.
#pragma once

#include <cstring>

#include "cells.h"
#include "primitives.h"

namespace rsn2::cuda {

// In words: elements of 16 bits apart would each take a register.
template <class T>
struct Octet {
  static constexpr int kPack = 4 / sizeof(T);
  static constexpr int kWords = kOctet / kPack;
  uint32_t words[kWords];
  uint2 offsets;
  uint32_t base;

  // The octet that begins at weight `first`. What lies past nnz is not read.
  __device__ __forceinline__ void load(const CompactWeight<T>& weight, uint32_t first) {
    const T* const from = weight.values + first;
    offsets = load_streaming(reinterpret_cast<const uint2*>(weight.offsets + first));
    base = weight.bases[first / kOctet];
    if (first + kOctet <= static_cast<uint32_t>(weight.nnz)) {
#pragma unroll
      for (int w = 0; w < kWords; w += 4) {
        const uint4 quad = load_streaming(reinterpret_cast<const uint4*>(from + w * kPack));
        words[w] = quad.x, words[w + 1] = quad.y, words[w + 2] = quad.z, words[w + 3] = quad.w;
      }
      return;
    }
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = 0;
#pragma unroll 1
    for (int j = 0; j < static_cast<int>(weight.nnz - first); ++j) {
      uint32_t bits = 0;
      memcpy(&bits, from + j, sizeof(T));
#pragma unroll
      for (int w = 0; w < kWords; ++w) words[w] |= w == j / kPack ? bits << 8 * sizeof(T) * (j % kPack) : 0;
    }
  }

  __device__ __forceinline__ float value(int j) const {
    return widen(same_bits<Pack<T, kPack>>(words[j / kPack]).at[j % kPack]);
  }

  __device__ __forceinline__ uint32_t offset(int j) const {
    return (j < 4 ? offsets.x : offsets.y) >> 8 * (j % 4) & 0xFF;
  }

  // Whether the offsets say where the weights stand.
  __device__ __forceinline__ bool is_near() const { return (offsets.x & 0xFF) == 0; }
};

// Adds the products of the weights of an octet, which begins at weight `first`, that are in [begin, end). Their columns
// are those of a chunk of x, which begins at `first_column`.
template <class T, int N>
__device__ __forceinline__ void add_octet(float (&sum)[N], const Octet<T>& held, const CompactWeight<T>& weight,
                                          uint32_t first, uint32_t begin, uint32_t end, const Cell<T, N>* x,
                                          uint32_t first_column) {
  // Of the 16 bits that are known of a column, none is missing in a chunk.
  const uint32_t base = (held.base - first_column) & 0xFFFF;
  if (held.is_near() && first >= begin && first + kOctet <= end) {
    const Cell<T, N>* const cells = x + base;
#pragma unroll
    for (int j = 0; j < kOctet; ++j) add_product(sum, held.value(j), cells[held.offset(j)], true);
    return;
  }
  // Without branches around the loads, so that they are under way together.
  const auto counts = [&](int j) { return first + j >= begin && first + j < end; };
  uint32_t cells[kOctet];
  if (held.is_near()) {
#pragma unroll
    for (int j = 0; j < kOctet; ++j) cells[j] = counts(j) ? (base + held.offset(j)) & 0xFFFF : 0;
  } else {
#pragma unroll
    for (int j = 0; j < kOctet; ++j) cells[j] = counts(j) ? weight.columns[first + j] - first_column : 0;
  }
#pragma unroll
  for (int j = 0; j < kOctet; ++j) add_product(sum, held.value(j), x[cells[j]], counts(j));
}

}  // namespace rsn2::cuda
