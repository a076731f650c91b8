// The properties of the current device.
#include <stdexcept>
#include <string>

#include "platform.h"
#include "types.h"

namespace rsn2::cuda {

Device current_device() {
  int device = 0, multiprocessors = 0, shared_bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error != cudaSuccess) throw std::runtime_error(std::string("no CUDA device: ") + cudaGetErrorString(error));
  return {multiprocessors, static_cast<size_t>(shared_bytes)};
}

}  // namespace rsn2::cuda
