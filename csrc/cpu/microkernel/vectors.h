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

// Subtracting zero changes no number, -0 included, so that it costs nothing.
template <class T>
inline typename Lanes<T>::Vector broadcast(T value) {
  return value - typename Lanes<T>::Vector{};
}

}  // namespace
}  // namespace rsn2::cpu::RSN2_ISA
