// Launches that must stop.
#include <memory>
#include <string>
#include <vector>

#include "../../cuda/primitives.h"
#include "tests.h"

namespace rsn2::test {
namespace {

enum class Mistake {
  barrier_in_branch, barrier_and_return, other_barrier, lanes_missing, lanes_returned, other_collective, not_in_mask,
  product_in_branch, misaligned_copy, misaligned_source, too_many_valid, copy_to_global, misaligned_load, load_global,
  misaligned_streaming, bad_width, trap,
};

__global__ void mistaken(Mistake mistake, unsigned char* global) {
  RSN2_SHARED_MEMORY(memory);
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t a[4] = {}, b[2] = {};
  float d[4] = {};
  switch (mistake) {
    case Mistake::barrier_in_branch:
      if (lane < 16) __syncthreads();
      __syncwarp();
      break;
    case Mistake::barrier_and_return:
      if (lane < 16) return;
      __syncthreads();
      break;
    case Mistake::other_barrier:
      if (lane < 16) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case Mistake::lanes_missing:
      if (lane < 16) __ballot_sync(kAll, 1);
      __syncthreads();
      break;
    case Mistake::lanes_returned:
      if (lane < 16) __ballot_sync(kAll, 1);
      break;
    case Mistake::other_collective:
      if (lane < 16) __shfl_sync(kAll, lane, 0);
      else __shfl_xor_sync(kAll, 1.0f, 1);
      break;
    case Mistake::not_in_mask: __ballot_sync(0xffffu, 1); break;
    case Mistake::product_in_branch:
      if (lane < 16) {
        cuda::multiply_accumulate(d, a, b, __half{});
      } else {
        cuda::multiply_accumulate(d, a, b, __half{});
      }
      break;
    case Mistake::misaligned_copy: cuda::copy_async<8>(memory + 4, global); break;
    case Mistake::misaligned_source: cuda::copy_async<8>(memory, global + 4, 4); break;
    case Mistake::too_many_valid: cuda::copy_async<8>(memory, global, 9); break;
    case Mistake::copy_to_global: cuda::copy_async<8>(global + 8, global); break;
    case Mistake::misaligned_load: cuda::load_matrices(a, memory + lane * 8); break;
    case Mistake::load_global: cuda::load_matrices(a, global); break;
    case Mistake::misaligned_streaming: cuda::load_streaming(reinterpret_cast<const uint2*>(global + 4)); break;
    case Mistake::bad_width: __shfl_sync(kAll, lane, 0, 12); break;
    case Mistake::trap:
      if (lane == 5) __trap();
      break;
  }
}

}  // namespace

void test_mistakes_stop_a_launch() {
  const auto global = std::make_unique<uint4[]>(4);
  const auto message = [&](Mistake mistake, unsigned threads) {
    auto* const bytes = reinterpret_cast<unsigned char*>(global.get());
    return error_of([&] { launch(mistaken, 2, threads, 512, mistake, bytes); });
  };
  const struct {
    Mistake mistake;
    std::vector<std::string> says;
  } cases[] = {
      {Mistake::barrier_in_branch, {"deadlock", "16 of 32 threads", "waits in __syncthreads at launches.cpp:"}},
      {Mistake::barrier_and_return, {"deadlock", "\n  16 of 32 threads, such as (16, 0, 0): waits in __syncthreads"}},
      {Mistake::other_barrier, {"divergent barrier: __syncthreads here", "wait in __syncthreads at launches.cpp"}},
      {Mistake::lanes_missing, {"deadlock", "__ballot_sync of lanes 0xffffffff, where only 0x0000ffff came"}},
      {Mistake::lanes_returned, {"0x0000ffff came", "\n  16 of 32 threads, such as (16, 0, 0): has finished"}},
      {Mistake::other_collective, {"different collectives: __shfl_", "with mask 0xffffffff"}},
      {Mistake::not_in_mask, {"which its mask 0x0000ffff does not name"}},
      {Mistake::product_in_branch, {"different collectives: multiply_accumulate here, multiply_accumulate at"}},
      {Mistake::misaligned_copy, {"copy_async to shared memory needs an address aligned to 8 bytes"}},
      {Mistake::misaligned_source, {"copy_async from global memory needs an address aligned to 8 bytes"}},
      {Mistake::too_many_valid, {"9 valid bytes of 8"}},
      {Mistake::copy_to_global, {"copy_async to an address that is not in shared memory"}},
      {Mistake::misaligned_load, {"load_matrices needs an address aligned to 16 bytes"}},
      {Mistake::load_global, {"load_matrices from an address that is not in shared memory"}},
      {Mistake::misaligned_streaming, {"load_streaming needs an address aligned to 8 bytes"}},
      {Mistake::bad_width, {"the width of a shuffle"}},
      {Mistake::trap, {"thread (5, 0, 0)", "__trap", "block ("}},
  };
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    emulator::set_seed(seed);
    for (const auto& c : cases) {
      const std::string got = message(c.mistake, 32);
      for (const std::string& part : c.says) {
        expect(got.find(part) != std::string::npos, "a mistake is reported as '" + part + "', not as '" + got + "'");
      }
    }
  }
  expect(message(Mistake::product_in_branch, 16).find("in a warp of fewer than 32 threads") != std::string::npos,
         "matrix instructions need a whole warp");
  // After all that, a kernel runs as if nothing had been.
  test_a_barrier_orders_writes_and_reads();

  const auto refused = [](dim3 grid, dim3 block, size_t bytes) {
    const std::string error = error_of([&] { launch(count, grid, block, bytes, static_cast<int*>(nullptr), 0); });
    return error.find("launch failed") != std::string::npos;
  };
  expect(!refused(1, 1024, 227 * 1024) && !refused(1, 1, 0), "what CUDA accepts is launched");
  expect(refused(0, 32, 0) && refused(1, 0, 0) && refused(1, 1025, 0) && refused(dim3(1, 65536), 1, 0) &&
             refused(1, dim3(1, 1, 65), 0) && refused(1, 32, 227 * 1024 + 1),
         "what CUDA refuses is refused");
}

}  // namespace rsn2::test
