// Barriers and shared memory.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests.h"

namespace rsn2::test {
namespace {

__global__ void reverse(const int* in, int* out) {
  RSN2_SHARED_MEMORY(memory);
  RSN2_SHARED_ARRAY(int, array, [128]);
  __shared__ int plain[128];
  int* const dynamic = reinterpret_cast<int*>(memory);
  const unsigned n = blockDim.x, i = threadIdx.x, mine = blockIdx.x * n + i;
  dynamic[i] = in[mine];
  __syncthreads();
  array[i] = dynamic[n - 1 - i];
  __syncthreads();
  plain[i] = array[n - 1 - i];
  __syncthreads();
  out[mine] = plain[n - 1 - i];
}

}  // namespace

void test_a_barrier_orders_writes_and_reads() {
  for (const unsigned threads : {1u, 31u, 32u, 40u, 128u}) {
    std::vector<int> in(3 * threads), out(in.size());
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int>(i * i);
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      emulator::set_seed(seed);
      launch(reverse, 3, threads, threads * sizeof(int), in.data(), out.data());
      bool reversed = true;
      for (size_t i = 0; i < in.size(); ++i) {
        reversed = reversed && out[i] == in[i / threads * threads + threads - 1 - i % threads];
      }
      expect(reversed, "what is written before a barrier is read after it, by " + std::to_string(threads) + " threads");
    }
  }
}

namespace {

__global__ void count_at_barrier(const int* predicates, int* out) {
  for (int round = 0; round < 4; ++round) {
    const int mine = predicates[round * 96 + static_cast<int>(threadIdx.x)];
    const int results[3] = {__syncthreads_count(mine), __syncthreads_or(mine), __syncthreads_and(mine)};
    for (int i = 0; i < 3; ++i) out[(round * 3 + i) * 96 + static_cast<int>(threadIdx.x)] = results[i];
  }
}

void test_barriers_that_count() {
  std::vector<int> predicates(4 * 96), out(4 * 3 * 96);
  for (int i = 0; i < 96; ++i) {
    predicates[i] = 0;
    predicates[96 + i] = i == 50;
    predicates[2 * 96 + i] = i != 50 ? 7 : 0;
    predicates[3 * 96 + i] = -1;
  }
  launch(count_at_barrier, 1, 96, 0, predicates.data(), out.data());
  const int expected[4][3] = {{0, 0, 0}, {1, 1, 0}, {95, 1, 0}, {96, 1, 1}};
  bool right = true;
  for (int i = 0; i < 4 * 3 * 96; ++i) right = right && out[i] == expected[i / 96 / 3][i / 96 % 3];
  expect(right, "__syncthreads_count, _or and _and see the whole block");
}

__global__ void read_before_writing(float* out) {
  RSN2_SHARED_MEMORY(memory);
  RSN2_SHARED_ARRAY(float, array, [1]);
  out[2 * blockIdx.x] = *reinterpret_cast<float*>(memory);
  out[2 * blockIdx.x + 1] = array[0];
  *reinterpret_cast<float*>(memory) = array[0] = 1.0f;
}

void test_shared_memory_starts_as_garbage() {
  std::vector<float> out(2 * 8, 0.0f);
  launch(read_before_writing, 8, 1, 4, out.data());
  expect(std::all_of(out.begin(), out.end(), [](float x) { return std::isnan(x); }),
         "each block starts with garbage in shared memory");
}

}  // namespace

void run_barriers() {
  test_a_barrier_orders_writes_and_reads();
  test_barriers_that_count();
  test_shared_memory_starts_as_garbage();
}

}  // namespace rsn2::test
