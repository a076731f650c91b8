// Storage types and the type each is accumulated in.
//
// 16-bit values are storage only: they are widened to float when packed and rounded once, to nearest even, when
// a result is stored. The conversions are branch-free integer arithmetic so that the compiler vectorizes them
// for every instruction set, including those without half-precision instructions.
#pragma once

#include <cstdint>
#include <cstring>

namespace rsn2::cpu {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

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

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return float_of(uint32_t{value.bits} << 16); }

inline float widen(Half value) {
  const uint32_t word = uint32_t{value.bits} << 16;
  const uint32_t sign = word & 0x80000000u;
  const uint32_t magnitude = word << 1;
  // Normal numbers, infinity and NaN: move the exponent field, then scale by 2^-112 to correct its bias.
  const float normal = float_of((magnitude >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  // Subnormal numbers: place the mantissa below 0.5 and let the subtraction normalize it.
  const float subnormal = float_of((magnitude >> 17) | (126u << 23)) - 0.5f;
  return float_of(sign | (magnitude < (1u << 27) ? bits_of(subnormal) : bits_of(normal)));
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
  const uint32_t word = bits_of(value);
  const uint32_t sign = word & 0x80000000u;
  const uint32_t magnitude = word << 1;
  // Too large becomes infinity in the first product; the second leaves the number times four.
  const float scaled = (float_of(word & 0x7FFFFFFFu) * 0x1.0p+112f) * 0x1.0p-110f;
  // Adding a power of two chosen from the exponent makes the floating-point unit round at the bit half keeps.
  const uint32_t exponent = magnitude & 0xFF000000u;
  const uint32_t bias = exponent < 0x71000000u ? 0x71000000u : exponent;
  const uint32_t bits = bits_of(float_of((bias >> 1) + 0x07800000u) + scaled);
  const uint32_t rounded = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu);
  const bool is_nan = magnitude > 0xFF000000u;
  out.bits = static_cast<uint16_t>((sign >> 16) | (is_nan ? 0x7E00u : rounded));
}

// dst[i] = src[i * stride], widened.
template <class S, class T>
void widen_run(const S* src, int64_t stride, int64_t count, T* dst) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) dst[i] = widen(src[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) dst[i] = widen(src[i * stride]);
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
