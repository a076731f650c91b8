// The threads of a block as fibres, and the places where they wait for each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

#include "vectors.h"

namespace rsn2::emulator {

using Site = std::source_location;

// What CUDA would do before anyone has written there: reads as NaN in every floating type, and as no sane index.
inline constexpr unsigned char kGarbage = 0xff;

// A copy into shared memory that has been started and not been waited for.
struct PendingCopy {
  void* target;
  int bytes;
  unsigned char data[16];
};

struct Fibre;

struct Thread {
  uint3 index;
  int rank;              // within the block
  Fibre* fibre;          // null before it starts
  bool finished;
  const char* waits_in;  // null while it can run
  Site site;             // of what it waits in

  std::vector<PendingCopy> copies;
  std::vector<size_t> copy_groups;  // sizes of the committed groups, oldest first
  size_t uncommitted_copies;
};

// The thread whose code runs now.
inline Thread* current = nullptr;

inline int lane() { return current->rank % 32; }

// A warp collective: `perform` is called once the last lane of `mask` has come, with what each lane gave to meet().
struct Collective {
  const char* name;
  bool aligned;        // in PTX's sense: the whole warp together, at one place in the source
  bool orders_memory;  // what a lane wrote before is read by the others after
  void (*perform)(void* const* lanes, uint32_t mask);
};

// Waits until all lanes of the mask have called this with the same collective and the same mask.
void meet(const Collective& collective, uint32_t mask, void* lane, const Site& site);

// Waits until all threads of the block have come. Returns how many of them gave true.
int barrier(bool predicate, const char* name, const Site& site);

// Lets other threads run first, perhaps.
void pause();

// Stops the launch, which throws std::runtime_error with the block, the thread and the place before the text.
[[noreturn]] void fail(const std::string& text, const Site& site);

// The block's dynamic shared memory.
unsigned char* dynamic_shared_memory();
// A static shared array: storage that is filled with garbage before each block, from the next one on.
void* allocate_static_shared(size_t bytes, size_t alignment);
// Whether an address may be in shared memory: not for certain, if the source has arrays declared plain __shared__.
bool may_be_shared(const void* address);

// From now on threads and blocks run in the order given by this seed.
void set_seed(uint64_t seed);
// Fibre switches of all launches so far.
uint64_t switches();

// Runs body(arguments) once per thread. Throws std::runtime_error if CUDA would refuse the launch, or by fail().
void run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* arguments);

}  // namespace rsn2::emulator

// CUDA's names for where a thread is. They change with every fibre switch.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;
