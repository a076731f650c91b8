#include "scheduler.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fibre.h"
#include "messages.h"
#include "sanitizer.h"
#include "state.h"

namespace rsn2::emulator {
namespace {

constexpr int kMaxThreads = 1024;
// The largest a block can have on any GPU so far, sm_90 and sm_100.
constexpr size_t kMaxSharedBytes = 227 * 1024;

Thread* next_thread() {
  if (s.ready.empty()) stop_at_deadlock();
  if (!s.depth_first) {
    std::swap(s.ready.back(), s.ready[s.random.below(static_cast<uint32_t>(s.ready.size()))]);
  }
  Thread* const next = s.ready.back();
  s.ready.pop_back();
  return next;
}

void run_fibre();

// Makes this the thread whose code runs, once its fibre does.
void select(Thread* thread) {
  current = thread;
  threadIdx = thread->index;
}

Fibre* idle_fibre() {
  if (s.idle.empty()) {
    s.fibres.push_back(std::make_unique<Fibre>(static_cast<int>(s.fibres.size()), run_fibre));
    return s.fibres.back().get();
  }
  Fibre* const fibre = s.idle.back();
  s.idle.pop_back();
  return fibre;
}

// Unwinds a thread of a stopped launch.
struct Abandoned {};

void run_kernel(void (*body)(void*), void* arguments) {
  const KernelCode watched;
  body(arguments);
}

void finish() {
  release(&s.block_end);
  current->finished = true;
}

// Runs the current thread, and after it others that have not started: one that never waits costs no switch. Returns
// the fibre that is to continue when `mine` has nothing left to do.
Fibre* run_threads(Fibre* mine) {
  while (true) {
    acquire(&s.block_begin);
    run_kernel(s.body, s.arguments);
    finish();
    if (--s.unfinished == 0) return &s.caller;
    select(next_thread());
    // To the thread sanitizer a fibre is a thread, so each thread of a block needs its own.
    if (current->fibre == nullptr) current->fibre = kThreadSanitizer ? idle_fibre() : mine;
    if (current->fibre != mine) return current->fibre;
  }
}

// What every fibre executes.
void run_fibre() {
  enter_fibre();
  const EmulatorCode unwatched;
  while (true) {
    Fibre* const mine = current->fibre;
    Fibre* to = &s.caller;
    try {
      to = run_threads(mine);
    } catch (const Abandoned&) {
      finish();
    } catch (const std::exception& error) {
      s.error = error.what();
      finish();
    }
    (kThreadSanitizer ? s.spent : s.idle).push_back(mine);
    ++s.switches;
    switch_fibre(*mine, *to);
  }
}

void run_block() {
  for (const StaticShared& array : s.static_shared) std::memset(array.memory.get(), kGarbage, array.bytes);
  if (s.dynamic_bytes > 0) std::memset(s.dynamic_shared.get(), kGarbage, s.dynamic_bytes);
  s.ready.clear();
  for (Thread& thread : s.threads) {
    thread.fibre = nullptr;
    thread.finished = false;
    thread.waits_in = nullptr;
    thread.copies.clear();
    thread.copy_groups.clear();
    thread.uncommitted_copies = 0;
    s.ready.push_back(&thread);
  }
  s.random.permute(s.ready);
  s.depth_first = s.random.next() >> 63 != 0;
  s.unfinished = static_cast<uint32_t>(s.threads.size());
  Thread* const first = next_thread();
  select(first);
  first->fibre = idle_fibre();
  release(&s.block_begin);
  switch_fibre(s.caller, *first->fibre);
  acquire(&s.block_end);
  s.idle.insert(s.idle.end(), s.spent.begin(), s.spent.end());
  s.spent.clear();
}

// Lets the fibres that still wait leave their kernel, and forgets what they waited for.
void abandon_threads() {
  s.abandoned = true;
  for (Thread& thread : s.threads) {
    if (thread.finished || thread.fibre == nullptr) continue;
    select(&thread);
    switch_fibre(s.caller, *thread.fibre);
  }
  s.abandoned = false;
  acquire(&s.block_end);
  s.idle.insert(s.idle.end(), s.spent.begin(), s.spent.end());
  s.spent.clear();
  for (Warp& warp : s.warps) warp.open.clear();
  s.at_barrier.clear();
  s.barrier_count = 0;
}

void require_launchable(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  const bool valid = grid.x >= 1 && grid.x <= 0x7fffffffu && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 &&
                     grid.z <= 65535 && threads >= 1 && threads <= kMaxThreads && block.x <= 1024 && block.y <= 1024 &&
                     block.z <= 64 && shared_bytes <= kMaxSharedBytes;
  if (valid) return;
  throw std::runtime_error("CUDA kernel launch failed: invalid configuration (grid " + text(grid.x, grid.y, grid.z) +
                           ", block " + text(block.x, block.y, block.z) + ", " + std::to_string(shared_bytes) +
                           " bytes of dynamic shared memory)");
}

}  // namespace

void suspend() {
  Thread* const self = current;
  Thread* const next = next_thread();
  if (next == self) return;
  select(next);
  if (next->fibre == nullptr) next->fibre = idle_fibre();
  ++s.switches;
  switch_fibre(*self->fibre, *next->fibre);
  if (s.abandoned) throw Abandoned();
}

void set_seed(uint64_t seed) {
  const std::lock_guard lock(s.mutex);
  s.seed = seed;
  s.launches = 0;
}

uint64_t switches() { return s.switches; }

void run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* arguments) {
  const EmulatorCode unwatched;
  require_launchable(grid, block, shared_bytes);
  const std::lock_guard lock(s.mutex);
  s.random = Random(s.seed * 0x2545f4914f6cdd1du + s.launches++);
  s.body = body;
  s.arguments = arguments;
  gridDim = grid;
  blockDim = block;

  const size_t count = static_cast<size_t>(block.x) * block.y * block.z;
  s.threads.resize(count);
  for (size_t rank = 0; rank < count; ++rank) {
    Thread& thread = s.threads[rank];
    const auto r = static_cast<unsigned>(rank);
    thread.index = {r % block.x, r / block.x % block.y, r / block.x / block.y};
    thread.rank = static_cast<int>(rank);
  }
  s.warps.resize((count + kWarp - 1) / kWarp);
  for (size_t w = 0; w < s.warps.size(); ++w) {
    const size_t lanes = std::min<size_t>(count - w * kWarp, kWarp);
    s.warps[w].lanes = lanes == kWarp ? 0xffffffffu : (1u << lanes) - 1;
  }
  // Exactly as large as asked for, so that a sanitizer guards both ends.
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, shared_bytes) != 0) throw std::bad_alloc();
  s.dynamic_shared.reset(memory);
  s.dynamic_bytes = shared_bytes;

  std::vector<uint32_t> blocks(static_cast<size_t>(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0u);
  s.random.permute(blocks);
  s.error.clear();
  for (const uint32_t b : blocks) {
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    run_block();
    if (s.error.empty()) continue;
    abandon_threads();
    throw std::runtime_error(s.error);
  }
}

}  // namespace rsn2::emulator
