// CUDA's built-in functions that concern one thread: bits, arithmetic, loads, atomics.
//
// Threads change only where they wait, so a read followed by a write is atomic. Both are marked for the thread
// sanitizer, as stronger than CUDA's, which order memory only together with fences: those it does not understand.
#pragma once

#include <math.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <string>
#include <type_traits>

#include "scheduler.h"

namespace rsn2::emulator {

inline void require_aligned(const void* address, size_t bytes, const char* what, const Site& site) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  fail(std::string(what) + " needs an address aligned to " + std::to_string(bytes) + " bytes", site);
}

}  // namespace rsn2::emulator

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline int __ffsll(long long x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(x)) + 1; }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1u) << (31 - i);
  return y;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32); }
inline int __mulhi(int x, int y) { return static_cast<int>(static_cast<int64_t>(x) * y >> 32); }

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

// CUDA's overloads of min and max: two types meet in the one C++ would convert both to.
#define RSN2_MIN_MAX(a, b)                                                                                     \
  inline std::common_type_t<a, b> min(a x, b y) {                                                              \
    using T = std::common_type_t<a, b>;                                                                        \
    return static_cast<T>(x) < static_cast<T>(y) ? static_cast<T>(x) : static_cast<T>(y);                      \
  }                                                                                                            \
  inline std::common_type_t<a, b> max(a x, b y) {                                                              \
    using T = std::common_type_t<a, b>;                                                                        \
    return static_cast<T>(x) > static_cast<T>(y) ? static_cast<T>(x) : static_cast<T>(y);                      \
  }
RSN2_MIN_MAX(int, int)
RSN2_MIN_MAX(unsigned, unsigned)
RSN2_MIN_MAX(int, unsigned)
RSN2_MIN_MAX(unsigned, int)
RSN2_MIN_MAX(long, long)
RSN2_MIN_MAX(unsigned long, unsigned long)
RSN2_MIN_MAX(long, unsigned long)
RSN2_MIN_MAX(unsigned long, long)
RSN2_MIN_MAX(long long, long long)
RSN2_MIN_MAX(unsigned long long, unsigned long long)
RSN2_MIN_MAX(long long, unsigned long long)
RSN2_MIN_MAX(unsigned long long, long long)
#undef RSN2_MIN_MAX
// A NaN loses.
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }

template <class T>
T __ldg(const T* address, const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  rsn2::emulator::require_aligned(address, alignof(T), "__ldg", site);
  return *address;
}
template <class T>
T __ldcs(const T* address, const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  rsn2::emulator::require_aligned(address, alignof(T), "__ldcs", site);
  return *address;
}
template <class T>
T __ldcg(const T* address, const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  rsn2::emulator::require_aligned(address, alignof(T), "__ldcg", site);
  return *address;
}
template <class T>
void __stcs(T* address, T value, const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  rsn2::emulator::require_aligned(address, alignof(T), "__stcs", site);
  *address = value;
}

#define RSN2_ATOMIC(name, type, expression)                                \
  inline type name(type* address, type value) {                            \
    type old;                                                              \
    __atomic_load(address, &old, __ATOMIC_ACQUIRE);                        \
    type result = (expression);                                            \
    __atomic_store(address, &result, __ATOMIC_RELEASE);                    \
    return old;                                                            \
  }
RSN2_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
RSN2_ATOMIC(atomicAdd, unsigned, old + value)
RSN2_ATOMIC(atomicAdd, unsigned long long, old + value)
RSN2_ATOMIC(atomicAdd, float, old + value)
RSN2_ATOMIC(atomicAdd, double, old + value)
RSN2_ATOMIC(atomicSub, int, static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
RSN2_ATOMIC(atomicSub, unsigned, old - value)
RSN2_ATOMIC(atomicOr, int, old | value)
RSN2_ATOMIC(atomicOr, unsigned, old | value)
RSN2_ATOMIC(atomicOr, unsigned long long, old | value)
RSN2_ATOMIC(atomicAnd, int, old & value)
RSN2_ATOMIC(atomicAnd, unsigned, old & value)
RSN2_ATOMIC(atomicAnd, unsigned long long, old & value)
RSN2_ATOMIC(atomicXor, int, old ^ value)
RSN2_ATOMIC(atomicXor, unsigned, old ^ value)
RSN2_ATOMIC(atomicXor, unsigned long long, old ^ value)
RSN2_ATOMIC(atomicMin, int, value < old ? value : old)
RSN2_ATOMIC(atomicMin, unsigned, value < old ? value : old)
RSN2_ATOMIC(atomicMin, long long, value < old ? value : old)
RSN2_ATOMIC(atomicMin, unsigned long long, value < old ? value : old)
RSN2_ATOMIC(atomicMax, int, value > old ? value : old)
RSN2_ATOMIC(atomicMax, unsigned, value > old ? value : old)
RSN2_ATOMIC(atomicMax, long long, value > old ? value : old)
RSN2_ATOMIC(atomicMax, unsigned long long, value > old ? value : old)
RSN2_ATOMIC(atomicExch, int, value)
RSN2_ATOMIC(atomicExch, unsigned, value)
RSN2_ATOMIC(atomicExch, unsigned long long, value)
RSN2_ATOMIC(atomicExch, float, value)
// Counters that wrap to zero after `value`, and from zero to `value`.
RSN2_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
RSN2_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
#undef RSN2_ATOMIC

template <class T>
T atomicCAS(T* address, T expected, T value) {
  T old;
  __atomic_load(address, &old, __ATOMIC_ACQUIRE);
  if (old == expected) __atomic_store(address, &value, __ATOMIC_RELEASE);
  return old;
}
