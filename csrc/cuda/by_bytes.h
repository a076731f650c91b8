// Rows of a weight whose columns are told by bytes: the work is shared out over the owned weights, wherever they stand.
#pragma once

#include <cstring>

#include "cells.h"
#include "primitives.h"

namespace rsn2::cuda {

// Eight neighbouring weights, in words: elements of 16 bits apart would each take a register.
template <class T>
struct Octet {
  static constexpr int kPack = 4 / sizeof(T);
  static constexpr int kWords = kOctet / kPack;
  uint32_t words[kWords];
  uint2 columns;  // bytes

  // From `first` on, a multiple of eight, where it is before `end`. What lies past nnz is not read.
  __device__ __forceinline__ void load(const CompactWeight<T>& weight, uint32_t first, uint32_t end) {
    if (first >= end) return;
    const T* const from = weight.values + first;
    if (first + kOctet <= static_cast<uint32_t>(weight.nnz)) {
#pragma unroll
      for (int w = 0; w < kWords; w += 4) {
        const uint4 quad = load_streaming(reinterpret_cast<const uint4*>(from + w * kPack));
        words[w] = quad.x, words[w + 1] = quad.y, words[w + 2] = quad.z, words[w + 3] = quad.w;
      }
      columns = load_streaming(reinterpret_cast<const uint2*>(weight.bytes + first));
      return;
    }
    *this = {};
#pragma unroll 1
    for (int j = 0; j < static_cast<int>(weight.nnz - first); ++j) {
      uint32_t bits = 0;
      memcpy(&bits, from + j, sizeof(T));
#pragma unroll
      for (int w = 0; w < kWords; ++w) words[w] |= w == j / kPack ? bits << 8 * sizeof(T) * (j % kPack) : 0;
      (j < 4 ? columns.x : columns.y) |= uint32_t{weight.bytes[first + j]} << 8 * (j % 4);
    }
  }

  __device__ __forceinline__ float value(int j) const {
    return widen(same_bits<Pack<T, kPack>>(words[j / kPack]).at[j % kPack]);
  }
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

// Products with a row by bytes. The bounds of a row are asked for two rows ahead and its first weights one row ahead,
// so that they are on their way while other rows are multiplied.
template <class T, int N>
class ByBytes {
 public:
  __device__ __forceinline__ ByBytes(const CompactWeight<T>& weight, int member, int team)
      : weight_(weight), member_(member), team_(team) {}

  // To be called for each row, two rows before multiply() is.
  __device__ __forceinline__ void announce(const Span& span) {
    now_ = then_;
    then_ = later_;
    later_ = {};
    if (span.segments == 0) return;
    later_.begin = weight_.starts[span.cell];
    later_.end = weight_.starts[span.cell + span.segments];
  }

  // The first weights of the row that was announced before the last.
  __device__ __forceinline__ void load(const Span&) { ahead_.load(weight_, first_octet(then_), then_.end); }

  // Adds the products of the row that was announced before the last two; the one after it is `next`. All lanes of a
  // warp call it together.
  __device__ __forceinline__ void multiply(float (&sum)[N], const Span& span, const Span& next, const Cell<T, N>* x) {
    const int32_t* const starts = weight_.starts + span.cell;
    const uint32_t begin = now_.begin, end = now_.end;
    const int lanes = min(team_, kWarp), lane = member_ % kWarp;
    uint32_t octet = first_octet(now_);
    if (octet >= end) load(next);
    int reached = 0;  // a segment that does not begin behind the first lane's octet
    for (; __any_sync(kAllLanes, octet < end); octet += kOctet * team_) {
      const Octet<T> held = ahead_;
      if (octet < end) {
        const uint32_t following = octet + kOctet * team_;
        const bool same_row = following < end;
        ahead_.load(weight_, same_row ? following : first_octet(then_), same_row ? end : then_.end);
      }
      // Each lane looks at one of the next segments' beginnings, and then for its own weights' among them.
      const uint32_t bound = starts[min(reached + 1 + lane, span.segments)];
      const uint32_t first = max(octet, begin);
      int passed = 0;
#pragma unroll
      for (int step = kWarp / 2; step > 0; step /= 2) {
        const uint32_t middle = __shfl_sync(kAllLanes, bound, passed + step - 1, lanes);
        passed += step < lanes && middle <= first ? step : 0;
      }
      int segment = reached + passed;
      if (octet < end) {
        if (passed == lanes - 1) segment = segment_of(starts, segment, span.segments, first);
        multiply(sum, held, octet, segment, starts, x);
      }
      reached = __shfl_sync(kAllLanes, segment, lanes - 1, lanes);
    }
  }

 private:
  struct Bounds {
    uint32_t begin = 0, end = 0;
  };

  // This thread's first; not before the end where the row has no weight.
  __device__ __forceinline__ uint32_t first_octet(const Bounds& bounds) const {
    return bounds.begin < bounds.end ? bounds.begin / kOctet * kOctet + kOctet * member_ : bounds.end;
  }

  // The weights of an octet that are the row's, where the first of these is of `segment`.
  __device__ __forceinline__ void multiply(float (&sum)[N], const Octet<T>& held, uint32_t octet, int segment,
                                           const int32_t* starts, const Cell<T, N>* x) const {
    const uint32_t stop = min(octet + kOctet, now_.end);
    // The segment of each weight, a byte each: a new one counts for all weights from its beginning on.
    uint64_t segments = static_cast<uint32_t>(segment) * 0x0101010101010101ull;
    for (uint32_t next = starts[segment + 1]; next < stop; next = starts[++segment + 1]) {
      segments += 0x0101010101010101ull << 8 * (next - octet);
    }
    const uint32_t skipped = max(octet, now_.begin) - octet;
    const uint32_t owned = 0xFFu >> (octet + kOctet - stop) & 0xFFu << skipped;
#pragma unroll
    for (int j = 0; j < kOctet; j += 2) {
      // Two columns of the chunk: a byte of the segment above a byte of the column, twice.
      const uint32_t columns = __byte_perm(j < 4 ? held.columns.x : held.columns.y,
                                           static_cast<uint32_t>(j < 4 ? segments : segments >> 32),
                                           j % 4 == 0 ? 0x5140 : 0x7362);
      add_product(sum, held.value(j), x[columns & 0xFFFF], owned >> j & 1);
      add_product(sum, held.value(j + 1), x[columns >> 16], owned >> (j + 1) & 1);
    }
  }

  const CompactWeight<T>& weight_;
  int member_;
  int team_;
  Bounds now_, then_, later_;
  Octet<T> ahead_ = {};
};

}  // namespace rsn2::cuda
