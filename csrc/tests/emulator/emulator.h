// CUDA's language on a CPU, for tests: the other half of csrc/cuda/platform.h.
//
// A kernel source compiled by a C++ compiler gets here instead of to CUDA's headers. A launch then executes the
// kernel: each thread of a block is a fibre, blocks run one after the other, and all of it happens inside launch().
// Threads change only where CUDA makes them wait for each other (barriers, warp collectives, waits for copies);
// which of them continues, and in which order the blocks run, is drawn from a seed. A kernel without races gives
// the same result for every seed.
//
// What stops a launch, with the place in the source and the threads concerned, as a std::runtime_error: barriers and
// collectives that some of their threads never reach or reach elsewhere, misaligned vector accesses of primitives,
// launches that CUDA would refuse. Shared memory is garbage when a block starts. Under -fsanitize=address,undefined
// every access outside a buffer is found, in shared memory, too; under -fsanitize=thread every race within a block.
//
// Not here: threads that wait for other blocks, or for other threads by reading memory in a loop.
//
//   RSN2_EMULATOR_SEED   the seed, if set_seed is not called; 0 by default
#pragma once

#include "arithmetic.h"
#include "language.h"
#include "launch.h"
#include "narrow.h"
#include "runtime.h"
#include "sanitizer.h"
#include "scheduler.h"
#include "vectors.h"
#include "warp.h"
