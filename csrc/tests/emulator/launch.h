// Launches, with the signature csrc/cuda/platform.h documents.
#pragma once

#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime.h"
#include "scheduler.h"

namespace rsn2::cuda {

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "one argument per kernel parameter");
  using Values = std::tuple<std::remove_cv_t<Params>...>;
  struct Call {
    void (*kernel)(Params...);
    Values values;
  } call{kernel, Values(std::forward<Args>(args)...)};
  const auto body = [](void* pointer) {
    const auto& [function, values] = *static_cast<const Call*>(pointer);
    std::apply(function, values);
  };
  emulator::run(grid, block, shared_bytes, body, &call);
}

}  // namespace rsn2::cuda
