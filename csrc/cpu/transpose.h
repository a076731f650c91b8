// Blocked transposition of a small dense tile.
#pragma once

#include <cstdint>

#include "simd.h"

namespace rsn2::cpu {
namespace {

// 16-byte registers exist wherever this library compiles, and 4 x 4 already moves data faster than the caches
// beyond the first level deliver it.
template <class T>
constexpr int64_t kTransposeBlock = 16 / static_cast<int64_t>(sizeof(T));

template <class T>
using TransposeVector = typename Simd<T, 16>::Vector;

template <class T>
TransposeVector<T> load16(const T* source) {
  return *reinterpret_cast<const typename Simd<T, 16>::Unaligned*>(source);
}

template <class T>
void store16(T* target, TransposeVector<T> value) {
  *reinterpret_cast<typename Simd<T, 16>::Unaligned*>(target) = value;
}

inline void transpose_block(const float* source, int64_t source_stride, float* target, int64_t target_stride) {
  TransposeVector<float> row[4], pair[4], out[4];
  for (int i = 0; i < 4; ++i) row[i] = load16(source + i * source_stride);
  pair[0] = shuffle<float, 16, 0, 4, 1, 5>(row[0], row[1]);
  pair[1] = shuffle<float, 16, 2, 6, 3, 7>(row[0], row[1]);
  pair[2] = shuffle<float, 16, 0, 4, 1, 5>(row[2], row[3]);
  pair[3] = shuffle<float, 16, 2, 6, 3, 7>(row[2], row[3]);
  out[0] = shuffle<float, 16, 0, 1, 4, 5>(pair[0], pair[2]);
  out[1] = shuffle<float, 16, 2, 3, 6, 7>(pair[0], pair[2]);
  out[2] = shuffle<float, 16, 0, 1, 4, 5>(pair[1], pair[3]);
  out[3] = shuffle<float, 16, 2, 3, 6, 7>(pair[1], pair[3]);
  for (int i = 0; i < 4; ++i) store16(target + i * target_stride, out[i]);
}

inline void transpose_block(const double* source, int64_t source_stride, double* target, int64_t target_stride) {
  TransposeVector<double> out[2];
  const TransposeVector<double> first = load16(source), second = load16(source + source_stride);
  out[0] = shuffle<double, 16, 0, 2>(first, second);
  out[1] = shuffle<double, 16, 1, 3>(first, second);
  for (int i = 0; i < 2; ++i) store16(target + i * target_stride, out[i]);
}

// target[c * target_stride + r] = source[r * source_stride + c] for r in [0, rows), c in [0, cols).
template <class T>
void transpose(const T* source, int64_t source_stride, int64_t rows, int64_t cols, T* target, int64_t target_stride) {
  constexpr int64_t kBlock = kTransposeBlock<T>;
  const int64_t whole_rows = rows / kBlock * kBlock, whole_cols = cols / kBlock * kBlock;
  for (int64_t c = 0; c < whole_cols; c += kBlock) {
    for (int64_t r = 0; r < whole_rows; r += kBlock) {
      transpose_block(source + r * source_stride + c, source_stride, target + c * target_stride + r, target_stride);
    }
  }
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t r = c < whole_cols ? whole_rows : 0; r < rows; ++r) {
      target[c * target_stride + r] = source[r * source_stride + c];
    }
  }
}

}  // namespace
}  // namespace rsn2::cpu
