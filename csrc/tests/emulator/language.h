// CUDA's additions to the language.
#pragma once

#include <cstddef>

#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))

// Blocks run one after the other, so one copy is enough. It holds what the block before left there.
#define __shared__ static

#define RSN2_SHARED_MEMORY(name) unsigned char* const name = ::rsn2::emulator::dynamic_shared_memory()

// On the heap, where a sanitizer guards both ends. The lambda's type tells this array from every other.
#define RSN2_SHARED_ARRAY(type, name, extents) \
  auto& name = ::rsn2::emulator::static_shared<type extents>([] {})

namespace rsn2::emulator {

template <class T, class Unique>
T& static_shared(Unique) {
  static T* const array = static_cast<T*>(allocate_static_shared(sizeof(T), alignof(T)));
  return *array;
}

}  // namespace rsn2::emulator

inline void __syncthreads(const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  rsn2::emulator::barrier(false, "__syncthreads", site);
}
inline int __syncthreads_count(int predicate,
                               const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  return rsn2::emulator::barrier(predicate != 0, "__syncthreads_count", site);
}
inline int __syncthreads_or(int predicate, const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  return rsn2::emulator::barrier(predicate != 0, "__syncthreads_or", site) != 0;
}
inline int __syncthreads_and(int predicate, const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  return rsn2::emulator::barrier(predicate == 0, "__syncthreads_and", site) == 0;
}

// Threads of one block see each other's writes at once, and blocks do not overlap.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

inline void __trap(const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  rsn2::emulator::fail("__trap", site);
}
