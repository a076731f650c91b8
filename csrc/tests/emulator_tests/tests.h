// What the files of this program share: how they launch, and what each gives to the others.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../cuda/platform.h"
#include "../expect.h"
#include "../planted/row_sums.h"

namespace rsn2::test {

inline constexpr unsigned kAll = 0xffffffffu;
inline constexpr uint64_t kSeeds = 20;

inline std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Args... args) {
  cuda::launch(kernel, grid, block, shared_bytes, nullptr, args...);
}

// All tests of the file of that name, in its order.
void run_threads();
void run_barriers();
void run_warps();
void run_copies();
void run_matrices();
void run_functions();

// launches.cpp
void test_mistakes_stop_a_launch();

// planted.cpp; main.cpp runs one defect alone.
void test_planted_defects();
std::vector<float> planted_result(planted::Defect defect);

// Of threads.cpp and barriers.cpp, for launches.cpp as well.
__global__ void count(int* counter, int n);
void test_a_barrier_orders_writes_and_reads();

}  // namespace rsn2::test
