// What csrc/cuda/primitives.h wraps, on the CPU.
//
// The bytes of a copy are written at the wait and are garbage before. A product is summed in double and rounded once,
// which is closer to the true sum than a tensor core comes.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>

#include "arithmetic.h"
#include "narrow.h"
#include "scheduler.h"
#include "vectors.h"

namespace rsn2::emulator {

inline void copy_async(void* shared, const void* global, int bytes, int valid_bytes, const Site& site) {
  require_aligned(shared, static_cast<size_t>(bytes), "copy_async to shared memory", site);
  require_aligned(global, static_cast<size_t>(bytes), "copy_async from global memory", site);
  if (valid_bytes < 0 || valid_bytes > bytes) {
    fail("copy_async of " + std::to_string(valid_bytes) + " valid bytes of " + std::to_string(bytes), site);
  }
  if (!may_be_shared(shared)) fail("copy_async to an address that is not in shared memory", site);
  PendingCopy& copy = current->copies.emplace_back();
  copy.target = shared;
  copy.bytes = bytes;
  std::memset(copy.data, 0, sizeof(copy.data));
  if (valid_bytes > 0) std::memcpy(copy.data, global, static_cast<size_t>(valid_bytes));
  std::memset(shared, kGarbage, static_cast<size_t>(bytes));
  ++current->uncommitted_copies;
}

inline void commit_copies() {
  current->copy_groups.push_back(current->uncommitted_copies);
  current->uncommitted_copies = 0;
}

inline void wait_copies(size_t newest) {
  Thread& thread = *current;
  if (thread.copy_groups.size() > newest) {
    size_t copies = 0;
    const auto last = thread.copy_groups.end() - static_cast<std::ptrdiff_t>(newest);
    for (auto group = thread.copy_groups.begin(); group != last; ++group) copies += *group;
    for (size_t i = 0; i < copies; ++i) {
      const PendingCopy& copy = thread.copies[i];
      std::memcpy(copy.target, copy.data, static_cast<size_t>(copy.bytes));
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(copies));
    thread.copy_groups.erase(thread.copy_groups.begin(), last);
  }
  pause();
}

struct LoadLane {
  const void* row;
  uint32_t* r;
};

template <int kMatrices, bool kTransposed>
void perform_load(void* const* lanes, uint32_t) {
  uint16_t matrix[8][8];
  for (int m = 0; m < kMatrices; ++m) {
    for (int row = 0; row < 8; ++row) {
      std::memcpy(matrix[row], static_cast<const LoadLane*>(lanes[8 * m + row])->row, sizeof(matrix[row]));
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const uint32_t low = kTransposed ? matrix[column][row] : matrix[row][column];
      const uint32_t high = kTransposed ? matrix[column + 1][row] : matrix[row][column + 1];
      static_cast<const LoadLane*>(lanes[lane])->r[m] = low | high << 16;
    }
  }
}

template <int kMatrices, bool kTransposed>
void load_matrices(uint32_t (&r)[kMatrices], const void* shared_row, const Site& site) {
  static constexpr Collective collective{kTransposed ? "load_matrices_transposed" : "load_matrices", true, false,
                                         perform_load<kMatrices, kTransposed>};
  // The rows of an .x2 come from the lower half of the warp; the other addresses are not looked at.
  if (lane() < 8 * kMatrices) {
    require_aligned(shared_row, 16, "load_matrices", site);
    if (!may_be_shared(shared_row)) fail("load_matrices from an address that is not in shared memory", site);
    // For sanitizers: it is this lane that reads the row, not the one that comes last.
    const volatile auto* const row = static_cast<const volatile unsigned char*>(shared_row);
    for (int i = 0; i < 16; ++i) static_cast<void>(row[i]);
  }
  LoadLane mine{shared_row, r};
  meet(collective, 0xffffffffu, &mine, site);
}

struct ProductLane {
  float (*d)[4];
  const uint32_t (*a)[4];
  const uint32_t (*b)[2];
};

inline float widen(__nv_bfloat16, uint32_t bits) { return float_from_bfloat16(static_cast<uint16_t>(bits)); }
inline float widen(__half, uint32_t bits) { return float_from_half(static_cast<uint16_t>(bits)); }

template <class Element>
void perform_product(void* const* lanes, uint32_t) {
  float a[16][16], b[8][16];  // [row][k], [column][k]
  for (int l = 0; l < 32; ++l) {
    const auto& lane = *static_cast<const ProductLane*>(lanes[l]);
    for (int part = 0; part < 2; ++part) {
      const int outer = l / 4, k = l % 4 * 2 + part, shift = 16 * part;
      for (int i = 0; i < 4; ++i) a[outer + i % 2 * 8][k + i / 2 * 8] = widen(Element{}, (*lane.a)[i] >> shift);
      for (int i = 0; i < 2; ++i) b[outer][k + i * 8] = widen(Element{}, (*lane.b)[i] >> shift);
    }
  }
  for (int l = 0; l < 32; ++l) {
    const auto& lane = *static_cast<const ProductLane*>(lanes[l]);
    for (int i = 0; i < 4; ++i) {
      const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
      double sum = (*lane.d)[i];
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[row][k]) * b[column][k];
      (*lane.d)[i] = static_cast<float>(sum);
    }
  }
}

template <class Element>
void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Site& site) {
  static constexpr Collective collective{"multiply_accumulate", true, false, perform_product<Element>};
  ProductLane mine{&d, &a, &b};
  meet(collective, 0xffffffffu, &mine, site);
}

}  // namespace rsn2::emulator

namespace rsn2::cuda {

template <int kBytes>
void copy_async(void* shared, const void* global, int valid_bytes = kBytes,
                const emulator::Site& site = emulator::Site::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulator::copy_async(shared, global, kBytes, valid_bytes, site);
}

inline void commit_copies() { emulator::commit_copies(); }

template <int kGroups>
void wait_copies() {
  emulator::wait_copies(kGroups);
}

inline void load_matrices(uint32_t (&r)[4], const void* shared_row,
                          const emulator::Site& site = emulator::Site::current()) {
  emulator::load_matrices<4, false>(r, shared_row, site);
}
inline void load_matrices(uint32_t (&r)[2], const void* shared_row,
                          const emulator::Site& site = emulator::Site::current()) {
  emulator::load_matrices<2, false>(r, shared_row, site);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* shared_row,
                                     const emulator::Site& site = emulator::Site::current()) {
  emulator::load_matrices<4, true>(r, shared_row, site);
}
inline void load_matrices_transposed(uint32_t (&r)[2], const void* shared_row,
                                     const emulator::Site& site = emulator::Site::current()) {
  emulator::load_matrices<2, true>(r, shared_row, site);
}

inline void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16,
                                const emulator::Site& site = emulator::Site::current()) {
  emulator::multiply_accumulate<__nv_bfloat16>(d, a, b, site);
}
inline void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half,
                                const emulator::Site& site = emulator::Site::current()) {
  emulator::multiply_accumulate<__half>(d, a, b, site);
}

#define RSN2_STREAMING(type)                                                                                          \
  inline type load_streaming(const type* pointer, const emulator::Site& site = emulator::Site::current()) {           \
    emulator::require_aligned(pointer, sizeof(type), "load_streaming", site);                                         \
    return *pointer;                                                                                                  \
  }                                                                                                                   \
  inline void store_streaming(type* pointer, type value, const emulator::Site& site = emulator::Site::current()) {    \
    emulator::require_aligned(pointer, sizeof(type), "store_streaming", site);                                        \
    *pointer = value;                                                                                                 \
  }
RSN2_STREAMING(uint4)
RSN2_STREAMING(uint2)
RSN2_STREAMING(uint32_t)
#undef RSN2_STREAMING

}  // namespace rsn2::cuda
