// Arithmetic with the storage types, which are all multiplied and summed in float, and their movement in packs.
#pragma once

#include <cstring>

#include "platform.h"
#include "types.h"

namespace rsn2::cuda {

// The storage type as CUDA names it.
template <class T>
struct Native;
template <>
struct Native<BFloat16> {
  using type = __nv_bfloat16;
};
template <>
struct Native<Half> {
  using type = __half;
};

template <class To, class From>
__device__ __forceinline__ To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(BFloat16 value) { return __uint_as_float(uint32_t{value.bits} << 16); }
__device__ __forceinline__ float widen(Half value) { return __half2float(same_bits<__half>(value)); }

template <class T>
__device__ __forceinline__ T narrow(float value);
template <>
__device__ __forceinline__ float narrow<float>(float value) { return value; }
template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float value) {
  return same_bits<BFloat16>(__float2bfloat16_rn(value));
}
template <>
__device__ __forceinline__ Half narrow<Half>(float value) { return same_bits<Half>(__float2half_rn(value)); }

// COUNT neighbours that are moved as one word of memory; COUNT * sizeof(T) is a power of two, at most 16.
template <class T, int COUNT>
struct alignas(COUNT * sizeof(T)) Pack {
  T at[COUNT];
};

template <class T, int COUNT>
__device__ __forceinline__ Pack<T, COUNT> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, COUNT>*>(from);
}

}  // namespace rsn2::cuda
