// The machine instructions that CUDA C++ has no name for: asynchronous copies, matrix loads, tensor-core products.
//
// All of them are in every GPU from sm_80 on. The emulator's definitions are in csrc/tests/emulator/primitives.h.
//
//   copy_async<bytes>(shared, global, valid)   cp.async: starts a copy of 4, 8 or 16 bytes into shared memory; the
//                                              bytes from `valid` on become zero and are not read. Both addresses
//                                              must be aligned to `bytes`, also where nothing is valid.
//   commit_copies()                            this thread's copies since the last commit become one group
//   wait_copies<n>()                           all but this thread's n newest groups are done. Other threads see
//                                              the bytes only after a barrier that follows the wait.
//   load_matrices(r, row)                      ldmatrix: r[m] of lane l is elements [l / 4][2 (l % 4) .. + 1] of the
//                                              8 x 8 matrix m of 16-bit elements, whose row i begins at the address
//                                              given by lane 8 m + i, aligned to 16 bytes
//   load_matrices_transposed(r, row)           the same, of the transposed matrices
//   multiply_accumulate(d, a, b, Element{})    mma: d [16, 8] += a [16, 16] * b [16, 8] in float, with a and b of
//                                              Element, __nv_bfloat16 or __half, where lane l holds
//                                                a[0]: row l / 4,     columns 2 (l % 4) .. + 1;  a[1]: row + 8
//                                                a[2]: as a[0], columns + 8;                     a[3]: row + 8
//                                                b[0]: rows 2 (l % 4) .. + 1, column l / 4;      b[1]: rows + 8
//                                                d[0], d[1]: row l / 4, columns 2 (l % 4) .. + 1; d[2], d[3]: row + 8
//                                              load_matrices of a's four 8 x 8 quarters, in the order upper left,
//                                              lower left, upper right, lower right, gives exactly `a`; of b, it is
//                                              load_matrices where b is stored [column][row], else the transposed.
//   load_streaming(pointer)                    ld.global.nc.L1::no_allocate of 4, 8 or 16 bytes that no one writes
//                                              during the kernel, and that are read once
//   store_streaming(pointer, value)            st.global.L1::no_allocate
//
// All 32 lanes of a warp must reach load_matrices and multiply_accumulate together.
#pragma once

#include "platform.h"

#include <cstdint>

#ifdef __CUDACC__

namespace rsn2::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int valid_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  // 16 bytes can bypass L1, where they would only displace what other threads reuse.
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(valid_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "n"(kBytes), "r"(valid_bytes)
                 : "memory");
  }
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kGroups>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}

__device__ __forceinline__ void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                                    __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                                    __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint4 load_streaming(const uint4* pointer) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(pointer)));
  return v;
}

__device__ __forceinline__ uint2 load_streaming(const uint2* pointer) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(v.x), "=r"(v.y)
               : "l"(__cvta_generic_to_global(pointer)));
  return v;
}

__device__ __forceinline__ uint32_t load_streaming(const uint32_t* pointer) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_global(pointer)));
  return v;
}

__device__ __forceinline__ void store_streaming(uint4* pointer, uint4 v) {
  asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(pointer)),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

__device__ __forceinline__ void store_streaming(uint2* pointer, uint2 v) {
  asm volatile("st.global.L1::no_allocate.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(pointer)), "r"(v.x),
               "r"(v.y)
               : "memory");
}

__device__ __forceinline__ void store_streaming(uint32_t* pointer, uint32_t v) {
  asm volatile("st.global.L1::no_allocate.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(pointer)), "r"(v) : "memory");
}

}  // namespace rsn2::cuda

#else

#include "../tests/emulator/primitives.h"

#endif
