// What host code and kernels both know; no CUDA header, so that any C++ compiler can read it.
#pragma once

#include <cstddef>
#include <cstdint>

// As CUDA's headers have it: whoever includes this one need not have them.
using cudaStream_t = struct CUstream_st*;

namespace rsn2::cuda {

// Storage types; scalar.h does arithmetic with them.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// What a launch must know of the GPU that it goes to.
struct Device {
  int multiprocessors;
  size_t shared_bytes;  // that one block may have
};

// The current device. Throws std::runtime_error if there is none.
Device current_device();

}  // namespace rsn2::cuda
