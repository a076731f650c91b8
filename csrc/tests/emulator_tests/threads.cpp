// Where a thread is, and in which order threads run.
#include <set>
#include <thread>
#include <vector>

#include "tests.h"

namespace rsn2::test {
namespace {

__global__ void write_place(unsigned* visits, unsigned* places) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned place = block * blockDim.x * blockDim.y * blockDim.z + thread;
  ++visits[place];
  // A lane is a position in the block, in this order.
  const unsigned neighbour = __shfl_xor_sync(kAll, thread, 1);
  __syncthreads();
  places[place] = neighbour;
}

void test_every_thread_runs_once() {
  const dim3 grid(2, 3, 2), block(4, 2, 5);  // 40 threads: the last warp has 8
  std::vector<unsigned> visits(12 * 40), places(visits.size());
  launch(write_place, grid, block, 0, visits.data(), places.data());
  bool once = true, in_order = true;
  for (size_t i = 0; i < visits.size(); ++i) {
    once = once && visits[i] == 1;
    in_order = in_order && places[i] == (i % 40 ^ 1);
  }
  expect(once, "every thread of every block runs once");
  expect(in_order, "x is the fastest index of a thread");
}

__global__ void write_order(unsigned* next, unsigned* order) {
  order[atomicAdd(next, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
  __syncthreads();
  order[atomicAdd(next, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
  __syncwarp();
  order[atomicAdd(next, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
}

void test_the_seed_decides_the_order() {
  const auto order = [](uint64_t seed) {
    emulator::set_seed(seed);
    std::vector<unsigned> order(3 * 5 * 64);
    unsigned next = 0;
    launch(write_order, 5, 64, 0, &next, order.data());
    return order;
  };
  std::set<std::vector<unsigned>> orders;
  std::set<unsigned> first_blocks, first_threads;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const auto o = order(seed);
    expect(o == order(seed), "one seed, one order");
    orders.insert(o);
    first_blocks.insert(o[0] / 64);
    first_threads.insert(o[0] % 64);
  }
  expect(orders.size() == kSeeds, "another seed, another order");
  expect(first_blocks.size() == 5, "any block may be the first");
  expect(first_threads.size() > 10, "any thread may be the first");
}

}  // namespace

__global__ void count(int* counter, int n) {
  for (int i = 0; i < n; ++i) {
    __syncthreads();
    atomicAdd(counter, 1);
  }
}

namespace {

void test_several_host_threads_may_launch() {
  std::vector<int> counters(4);
  std::vector<std::thread> hosts;
  for (int& counter : counters) {
    hosts.emplace_back([&counter] {
      for (int i = 0; i < 5; ++i) launch(count, 3, 64, 0, &counter, 4);
    });
  }
  for (std::thread& host : hosts) host.join();
  expect(counters == std::vector<int>(4, 5 * 3 * 64 * 4), "launches from several threads do not disturb each other");
}

}  // namespace

void run_threads() {
  test_every_thread_runs_once();
  test_the_seed_decides_the_order();
  test_several_host_threads_may_launch();
}

}  // namespace rsn2::test
