// Where an operator launches: on the device of its operands, on torch's current stream of that device.
//
// With RSN2_EMULATED the kernels run on the CPU, where there is neither.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#ifndef RSN2_EMULATED
#include <dlfcn.h>
#endif

// As CUDA's headers have it, which are not needed here.
using cudaStream_t = struct CUstream_st*;

namespace rsn2::bindings {

#ifdef RSN2_EMULATED

class DeviceOf {
 public:
  explicit DeviceOf(const torch::stable::Tensor&) {}
};

inline cudaStream_t current_stream(const torch::stable::Tensor&) { return nullptr; }

#else

// Makes the tensor's device the current one as long as it lives.
class DeviceOf {
 public:
  explicit DeviceOf(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// NOTES: torch declares the function only where it was built with CUDA, and it lies in a library that a torch without
// CUDA does not have. Looked up in the library that is loaded, it asks for neither when this one is built. From torch
// 2.13 on, the handle of torch::stable::accelerator::Stream would do as well.
inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  using Find = AOTITorchError (*)(int32_t device_index, void** stream);
  static const Find find = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    STD_TORCH_CHECK(library, "rsn2_cuda: libtorch_cuda.so is not loaded; this torch has no CUDA");
    void* const found = dlsym(library, "aoti_torch_get_current_cuda_stream");
    STD_TORCH_CHECK(found, "rsn2_cuda: this torch does not say which CUDA stream is current");
    return reinterpret_cast<Find>(found);
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(find(tensor.get_device_index(), &stream) == AOTI_TORCH_SUCCESS,
                  "rsn2_cuda: cannot tell which CUDA stream is current");
  return static_cast<cudaStream_t>(stream);
}

#endif

}  // namespace rsn2::bindings
