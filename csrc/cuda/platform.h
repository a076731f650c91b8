// What a kernel source includes first: CUDA itself, or the emulator that gives the same source its meaning on a CPU.
//
// A source that includes this header compiles with nvcc and, unchanged, with a C++ compiler (csrc/tests/emulator).
// What both worlds share beyond the language:
//
//   launch(kernel, grid, block, shared_bytes, stream, arguments...)   instead of <<<>>>, which is not C++
//   RSN2_SHARED_MEMORY(name);             the block's dynamic shared memory: unsigned char* name, aligned to 16 bytes
//   RSN2_SHARED_ARRAY(type, name, [N]);   a static shared array: __shared__ type name[N], and filled with garbage
//                                         before each block in the emulator, which cannot do so for plain __shared__
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#define RSN2_SHARED_MEMORY(name)                              \
  extern __shared__ uint4 rsn2_dynamic_shared_memory[];       \
  unsigned char* const name = reinterpret_cast<unsigned char*>(rsn2_dynamic_shared_memory)

#define RSN2_SHARED_ARRAY(type, name, extents) __shared__ type name extents

namespace rsn2::cuda {

// A kernel may use more than 48 KiB of shared memory, static and dynamic together, only after its dynamic part was
// allowed on this device. That costs a driver call, so it is done where the kernel asks for more than ever before.
inline cudaError_t allow_shared_memory(const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const std::lock_guard lock(mutex);
  size_t& limit = allowed[{kernel, device}];
  if (bytes <= limit) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error == cudaSuccess) limit = bytes;
  return error;
}

// Enqueues the kernel on the stream; does not wait, and may be captured into a graph. Throws std::runtime_error if
// the launch is refused. What goes wrong while the kernel runs shows at the next synchronization, as always.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "one argument per kernel parameter");
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = shared_bytes > 0 ? allow_shared_memory(function, shared_bytes) : cudaSuccess;
  if (error == cudaSuccess) {
    std::tuple<std::remove_cv_t<Params>...> values(std::forward<Args>(args)...);
    error = std::apply(
        [&](auto&... value) {
          void* pointers[sizeof...(Params) + 1] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
          return cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream);
        },
        values);
  }
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next caller to ask would be told of our error
  const auto text = [](dim3 d) {
    return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
  };
  throw std::runtime_error(std::string("CUDA kernel launch failed: ") + cudaGetErrorString(error) + " (grid " +
                           text(grid) + ", block " + text(block) + ", " + std::to_string(shared_bytes) +
                           " bytes of dynamic shared memory)");
}

}  // namespace rsn2::cuda

#else

#include "../tests/emulator/emulator.h"

#endif
