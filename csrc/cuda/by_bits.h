// Rows of a weight whose columns are told by bits: a thread walks over the ones of 128 columns.
#pragma once

#include "cells.h"
#include "primitives.h"

namespace rsn2::cuda {

// Neighbours from any place on, four at a time. Loads run four to eight ahead of what is taken.
template <class T>
class Stream {
 public:
  __device__ __forceinline__ Stream(const T* values, uint32_t first, uint32_t nnz)
      : values_(values), next_(first / 4 * 4), nnz_(nnz), shift_(first % 4 * 16), held_(quad()), more_(quad()) {}

  __device__ __forceinline__ void take(float (&out)[4]) {
    const bool upper = shift_ & 32;
    const uint32_t a = upper ? held_.y : held_.x, b = upper ? more_.x : held_.y, c = upper ? more_.y : more_.x;
    held_ = more_;
    more_ = quad();
    widen_pair(__funnelshift_r(a, b, shift_ & 31), out[0], out[1]);
    widen_pair(__funnelshift_r(b, c, shift_ & 31), out[2], out[3]);
  }

 private:
  __device__ __forceinline__ uint2 quad() {
    const uint32_t first = next_;
    next_ += 4;
    if (next_ <= nnz_) return *reinterpret_cast<const uint2*>(values_ + first);
    Pack<T, 4> pack = {};
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      if (first + j < nnz_) pack.at[j] = values_[first + j];
    }
    return same_bits<uint2>(pack);
  }

  __device__ __forceinline__ static void widen_pair(uint32_t bits, float& low, float& high) {
    const auto pair = same_bits<Pack<T, 2>>(bits);
    low = widen(pair.at[0]);
    high = widen(pair.at[1]);
  }

  const T* values_;
  uint32_t next_;  // to load
  uint32_t nnz_;
  int shift_;      // bits of the held four that were taken already
  uint2 held_;
  uint2 more_;
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

// Products with a row by bits. A slice's bits are asked for one slice ahead, a row's first ones one row ahead.
template <class T, int N>
class ByBits {
 public:
  __device__ __forceinline__ ByBits(const CompactWeight<T>& weight, int member, int team, Places places)
      : weight_(weight), member_(member), team_(team), places_(places) {}

  // What ByBytes asks for so early is asked for with the bits here.
  __device__ __forceinline__ void announce(const Span&) {}

  // The first bits of a row.
  __device__ __forceinline__ void load(const Span& next) { ahead_.load(weight_, next, member_); }

  __device__ __forceinline__ void multiply(float (&sum)[N], const Span& span, const Span& next, const Cell<T, N>* x) {
    const int slices = span.segments * kSlices;
    if (member_ >= slices) load(next);
    // The two slices of a segment belong to two neighbouring lanes.
    const unsigned pair = 3u << (threadIdx.x % kWarp & ~1u);
    for (int slice = member_; slice < slices; slice += team_) {
      Slice held = ahead_;
      const bool same_row = slice + team_ < slices;
      // Field by field: a choice between two objects would need both in memory.
      const Span of{same_row ? span.cell : next.cell, same_row ? span.segments : next.segments};
      ahead_.load(weight_, of, same_row ? slice + team_ : member_);
      const int count = __popc(held.words[0]) + __popc(held.words[1]) + __popc(held.words[2]) + __popc(held.words[3]);
      const int count_beside = __shfl_xor_sync(pair, count, 1);
      Stream<T> stream(weight_.values, held.start + (slice % kSlices ? count_beside : 0),
                       static_cast<uint32_t>(weight_.nnz));
      uint32_t bases = held.squeeze();
      uint32_t word = held.words[0];
      const auto* const x_slice = reinterpret_cast<const unsigned char*>(x + places_.at(slice, 0));
      const int pitch = static_cast<int>(sizeof *x) << places_.lane_bits;
      for (int left = count; left > 0; left -= 4) {
        float values[4];
        stream.take(values);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool used_up = word == 0;
          bases = used_up ? bases >> 8 : bases;
          word = used_up ? held.words[1] : word;
          held.words[1] = used_up ? held.words[2] : held.words[1];
          held.words[2] = used_up ? held.words[3] : held.words[2];
          // Some bit where none is left: the value does not count then.
          const int bit = __clz(static_cast<int>(word | 1));
          word &= ~(0x80000000u >> bit);
          const int column = static_cast<int>(bases & 0xFF) + bit;
          add_product(sum, values[j], *reinterpret_cast<const Cell<T, N>*>(x_slice + column * pitch), j < left);
        }
      }
    }
  }

 private:
  // The bits of 128 columns, and where the values of its segment begin.
  struct Slice {
    uint32_t words[4] = {};
    uint32_t start = 0;

    __device__ __forceinline__ void load(const CompactWeight<T>& weight, const Span& span, int slice) {
      if (slice >= span.segments * kSlices) return;
      const uint4 bits = load_streaming(reinterpret_cast<const uint4*>(weight.bits) + span.cell * kSlices + slice);
      words[0] = bits.x, words[1] = bits.y, words[2] = bits.z, words[3] = bits.w;
      start = weight.starts[span.cell + slice / kSlices];
    }

    // Moves the words that are zero behind the others, and makes the highest bits the first columns. Returns the
    // columns at which the words begin, a byte each.
    __device__ __forceinline__ uint32_t squeeze() {
      uint32_t bases = 0x60402000u;
#pragma unroll
      for (int k = 2; k >= 0; --k) {
        const bool zero = words[k] == 0;
        const uint32_t kept = (1u << 8 * k) - 1;
        bases = zero ? (bases & kept) | (bases >> 8 & ~kept) : bases;
#pragma unroll
        for (int i = k; i < 3; ++i) words[i] = zero ? words[i + 1] : words[i];
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) words[k] = __brev(words[k]);
      return bases;
    }
  };

  const CompactWeight<T>& weight_;
  int member_;
  int team_;
  Places places_;
  Slice ahead_;
};

}  // namespace rsn2::cuda
