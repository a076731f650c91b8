// Storage types and the type each is accumulated in.
//
// 16-bit values are widened to float when packed and rounded once, to nearest even, when a result is stored; those of
// bfloat16 are packed as they are where the processor multiplies them. The conversions are branch-free integer arithmetic so that the compiler vectorizes them
// for every instruction set, including those without half-precision instructions.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "storage.h"

namespace rsn2::cpu {

template <class S>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class S>
using AccumulatorOf = typename Accumulator<S>::type;

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// One of two, by arithmetic: a compiler computes what `condition ? yes : no` needs behind a branch, and vectorizes no loop
// over that.
inline uint32_t choose(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return float_of(uint32_t{value.bits} << 16); }

// Binary16 is sign, 5 bits of exponent with bias 15, 10 bits of fraction; binary32 is sign, 8 with bias 127, 23.
inline constexpr uint32_t kBiasDifference = 127 - 15;
inline constexpr uint32_t kFractionDifference = 23 - 10;

inline float widen(Half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1Fu;
  const uint32_t fraction = value.bits & 0x3FFu;
  // Each of the three kinds of number is computed, and one is chosen.
  const uint32_t normal = ((exponent + kBiasDifference) << 23) | (fraction << kFractionDifference);
  const uint32_t subnormal = bits_of(static_cast<float>(static_cast<int32_t>(fraction)) * 0x1.0p-24f);
  const uint32_t special = 0x7F800000u | (fraction << kFractionDifference);
  return float_of(sign | choose(exponent == 0, subnormal, choose(exponent == 0x1Fu, special, normal)));
}

inline void narrow(float value, float& out) { out = value; }
inline void narrow(double value, double& out) { out = value; }

inline void narrow(float value, BFloat16& out) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  out.bits = static_cast<uint16_t>(is_nan ? 0x7FC0u : rounded);
}

inline void narrow(float value, Half& out) {
  const uint32_t sign = (bits_of(value) >> 16) & 0x8000u;
  const uint32_t bits = bits_of(value) & 0x7FFFFFFFu;
  const float magnitude = float_of(bits);
  // Half of the last kept place, less one where that place is even, carries exactly when rounding goes up.
  const uint32_t rounded = bits + ((1u << (kFractionDifference - 1)) - 1) + ((bits >> kFractionDifference) & 1u);
  const uint32_t normal = (rounded >> kFractionDifference) - (kBiasDifference << 10);
  // From 0.5 on, neighbouring floats are 2^-24 apart, as subnormal halves are: the addition rounds.
  const uint32_t subnormal = bits_of(magnitude + 0.5f) - bits_of(0.5f);
  const uint32_t finite = choose(magnitude < 0x1.0p-14f, subnormal, normal);
  // 65520 is halfway between the largest half and the next power of two.
  const uint32_t number = choose(magnitude < 65520.0f, finite, 0x7C00u);
  out.bits = static_cast<uint16_t>(sign | choose(bits > 0x7F800000u, 0x7E00u, number));
}

// What copies take for an element: 16 bits are 16 bits.
template <class S>
using CopiedAs = std::conditional_t<sizeof(S) == sizeof(uint16_t), uint16_t, S>;

template <class S>
const CopiedAs<S>* as_copied(const S* elements) {
  return reinterpret_cast<const CopiedAs<S>*>(elements);
}
template <class S>
CopiedAs<S>* as_copied(S* elements) {
  return reinterpret_cast<CopiedAs<S>*>(elements);
}

// A value as what is multiplied: as it is stored, or widened.
template <class P, class S>
P as(S value) {
  if constexpr (std::is_same_v<P, S>) {
    return value;
  } else {
    return widen(value);
  }
}

// dst[i] = src[i * stride], as it is or widened.
template <class S, class P>
void widen_run(const S* src, int64_t stride, int64_t count, P* dst) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) dst[i] = as<P>(src[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) dst[i] = as<P>(src[i * stride]);
  }
}

// dst[i * stride] = src[i], narrowed.
template <class S, class T>
void narrow_run(const T* src, int64_t count, S* dst, int64_t stride) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) narrow(src[i], dst[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) narrow(src[i], dst[i * stride]);
  }
}

}  // namespace rsn2::cpu
