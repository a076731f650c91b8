// Registers of the instruction set that this copy is compiled for.
#pragma once

#include "../simd.h"

namespace rsn2::cpu::RSN2_ISA {
namespace {

constexpr int kMaxVectors = RSN2_MAX_VECTORS;

template <class T>
using Lanes = Simd<T, RSN2_VECTOR_BYTES>;
template <class T>
constexpr int kLanes = RSN2_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <class T>
inline typename Lanes<T>::Vector load(const T* source) {
  return *reinterpret_cast<const typename Lanes<T>::Unaligned*>(source);
}

template <class T>
inline void store(T* target, typename Lanes<T>::Vector value) {
  *reinterpret_cast<typename Lanes<T>::Unaligned*>(target) = value;
}

// Asks for lines that a loop comes to later: kLevel of the caches is to have them then.
template <int kLines, int kLevel = 1, class T>
inline void ask_for(const T* first) {
  for (int line = 0; line < kLines; ++line) {
    __builtin_prefetch(first + line * (64 / static_cast<int>(sizeof(T))), 0, 4 - kLevel);
  }
}

// Subtracting zero changes no number, -0 included, so that it costs nothing.
template <class T>
inline typename Lanes<T>::Vector broadcast(T value) {
  return value - typename Lanes<T>::Vector{};
}

}  // namespace
}  // namespace rsn2::cpu::RSN2_ISA
