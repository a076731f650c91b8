#include "scheduler.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "fibre.h"
#include "sanitizer.h"

#ifdef __ELF__
// Where the linker puts arrays declared plain __shared__, among others: this library's zero-initialized data.
extern "C" __attribute__((visibility("hidden"))) char __bss_start[], _end[];
#endif

namespace rsn2::emulator {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
// The largest a block can have on any GPU so far, sm_90 and sm_100.
constexpr size_t kMaxSharedBytes = 227 * 1024;

// --- the order ---------------------------------------------------------------------------------------------------

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {  // SplitMix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>((next() >> 32) * bound >> 32); }

  template <class T>
  void permute(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(static_cast<uint32_t>(i))]);
  }

 private:
  uint64_t state_;
};

uint64_t seed_of_environment() {
  const char* text = std::getenv("RSN2_EMULATOR_SEED");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 0);
}

// --- the state of a launch, and what outlives it -----------------------------------------------------------------

// Lanes of a warp that are on their way to one collective.
struct Group {
  uint32_t mask, arrived;
  const Collective* collective;
  Site site;
  void* lanes[kWarp];
  char* order;  // token
};

struct Warp {
  uint32_t lanes;           // that exist
  std::vector<Group> open;  // collectives some lane waits in
  // One token per collective. After so many, all lanes have left the one whose turn it was before.
  char orders[2 * kWarp];
  uint32_t collectives = 0;  // begun so far
};

struct StaticShared {
  std::unique_ptr<void, decltype(&std::free)> memory;
  size_t bytes;
};

struct State {
  std::mutex mutex;  // held by the launch
  uint64_t seed = seed_of_environment();
  uint64_t launches = 0;  // with this seed
  uint64_t switches = 0;
  Random random{0};

  Fibre caller;
  std::vector<std::unique_ptr<Fibre>> fibres;
  std::vector<Fibre*> idle, spent;  // spent: by a thread of this block
  std::vector<StaticShared> static_shared;
  std::unique_ptr<void, decltype(&std::free)> dynamic_shared{nullptr, std::free};
  size_t dynamic_bytes = 0;

  void (*body)(void*) = nullptr;
  void* arguments = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Thread*> ready;
  bool depth_first = false;  // the newest ready thread continues, not any
  uint32_t unfinished = 0;
  char block_begin = 0, block_end = 0;  // tokens
  char barrier_orders[2] = {};          // tokens of this barrier and of the last one, in turn
  int barriers = 0;
  std::vector<Thread*> at_barrier;
  int barrier_count = 0;   // of true predicates so far, at this barrier
  int barrier_result = 0;  // of all, at the last one
  const char* barrier_name = nullptr;
  Site barrier_site;
  std::string error;       // why the launch must stop
  bool abandoned = false;  // it has been stopped: whoever continues must leave
};

// Never destroyed: the process may end while another of its threads is in a launch.
State& s = *new State;

// --- messages ----------------------------------------------------------------------------------------------------

std::string text(unsigned x, unsigned y, unsigned z) {
  return std::string("(") + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}
std::string text(const uint3& v) { return text(v.x, v.y, v.z); }

std::string text(const Site& site) {
  const std::string file = site.file_name();
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(site.line());
}

bool same_place(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string text(uint32_t mask) {
  constexpr char digits[] = "0123456789abcdef";
  std::string out = "0x";
  for (int shift = 28; shift >= 0; shift -= 4) out += digits[mask >> shift & 15u];
  return out;
}

std::string doing(const Thread& thread) {
  if (thread.finished) return "has finished";
  if (thread.waits_in == nullptr) return "has not come so far";
  return std::string("waits in ") + thread.waits_in + " at " + text(thread.site);
}

// Threads by what they do, with one example each.
std::string everyone() {
  std::vector<std::pair<std::string, std::pair<int, const Thread*>>> kinds;
  for (const Thread& thread : s.threads) {
    const std::string what = doing(thread);
    auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const auto& k) { return k.first == what; });
    if (kind == kinds.end()) kind = kinds.insert(kinds.end(), {what, {0, &thread}});
    ++kind->second.first;
  }
  std::string out;
  for (const auto& [what, who] : kinds) {
    out += std::string("\n  ") + std::to_string(who.first) + " of " + std::to_string(s.threads.size()) +
           " threads, such as " + text(who.second->index) + ": " + what;
  }
  return out;
}

// Unwinds to run_fibre, which ends the launch.
[[noreturn]] void stop(const std::string& text) {
  throw std::runtime_error("CUDA emulator: block " + emulator::text(blockIdx) + ": " + text);
}

[[noreturn]] void stop_at_deadlock() {
  std::string text = "deadlock: no thread can continue" + everyone();
  for (size_t w = 0; w < s.warps.size(); ++w) {
    for (const Group& group : s.warps[w].open) {
      text += std::string("\n  warp ") + std::to_string(w) + ": " + group.collective->name + " of lanes " +
              emulator::text(group.mask) + ", where only " + emulator::text(group.arrived) + " came";
    }
  }
  stop(text);
}

// --- scheduling --------------------------------------------------------------------------------------------------

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

// Lets the next ready thread run. Returns when it is this one's turn again.
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

void meet(const Collective& collective, uint32_t mask, void* lane_data, const Site& site) {
  const EmulatorCode unwatched;
  Thread& self = *current;
  Warp& warp = s.warps[static_cast<size_t>(self.rank) / kWarp];
  const int l = lane();
  const uint32_t bit = 1u << l;
  if ((mask & bit) == 0) {
    fail(std::string(collective.name) + " by lane " + std::to_string(l) + ", which its mask " + text(mask) +
             " does not name",
         site);
  }
  if (collective.aligned && warp.lanes != 0xffffffffu) {
    fail(std::string(collective.name) + " in a warp of fewer than 32 threads", site);
  }
  size_t g = 0;
  while (g < warp.open.size() && warp.open[g].mask != mask) ++g;
  if (g == warp.open.size()) {
    Group& group = warp.open.emplace_back();
    group.mask = mask;
    group.arrived = 0;
    group.collective = &collective;
    group.site = site;
    group.order = &warp.orders[warp.collectives++ % sizeof(warp.orders)];
  }
  Group& group = warp.open[g];
  const bool elsewhere = collective.aligned && !same_place(group.site, site);
  if (group.collective != &collective || elsewhere) {
    fail("lanes of one warp with mask " + text(mask) + " call different collectives: " + collective.name + " here, " +
             group.collective->name + " at " + text(group.site),
         site);
  }
  char* const order = group.order;
  if (collective.orders_memory) release(order);
  group.lanes[l] = lane_data;
  group.arrived |= bit;
  self.waits_in = collective.name;
  self.site = site;
  if (group.arrived == (mask & warp.lanes)) {
    collective.perform(group.lanes, group.arrived);
    const uint32_t arrived = group.arrived;
    if (g + 1 != warp.open.size()) group = warp.open.back();
    warp.open.pop_back();
    // Any lane may come directly after any other: from a random one, in random odd steps.
    const uint32_t random = s.random.below(1u << 10);
    uint32_t next = random & 31u;
    const uint32_t step = random >> 5 | 1u;
    Thread* const first = &self - l;
    for (int i = 0; i < kWarp; ++i, next = (next + step) & 31u) {
      if ((arrived >> next & 1u) == 0) continue;
      first[next].waits_in = nullptr;
      s.ready.push_back(first + next);
    }
  }
  suspend();
  if (collective.orders_memory) acquire(order);
}

int barrier(bool predicate, const char* name, const Site& site) {
  const EmulatorCode unwatched;
  if (s.at_barrier.empty()) {
    s.barrier_name = name;
    s.barrier_site = site;
  } else if (!same_place(s.barrier_site, site) || std::strcmp(s.barrier_name, name) != 0) {
    fail(std::string("divergent barrier: ") + name + " here, while " + std::to_string(s.at_barrier.size()) +
             " threads wait in " + s.barrier_name + " at " + text(s.barrier_site),
         site);
  }
  char* const order = &s.barrier_orders[s.barriers % 2];
  release(order);
  current->waits_in = name;
  current->site = site;
  s.at_barrier.push_back(current);
  s.barrier_count += predicate ? 1 : 0;
  if (s.at_barrier.size() == s.threads.size()) {
    s.barrier_result = std::exchange(s.barrier_count, 0);
    if (s.depth_first) s.random.permute(s.at_barrier);  // else next_thread draws
    for (Thread* const thread : s.at_barrier) {
      thread->waits_in = nullptr;
      s.ready.push_back(thread);
    }
    s.at_barrier.clear();
    ++s.barriers;
  }
  suspend();
  acquire(order);
  // Still that of this barrier: the next one completes only after this thread has come there.
  return s.barrier_result;
}

void pause() {
  const EmulatorCode unwatched;
  s.ready.push_back(current);
  std::swap(s.ready.back(), s.ready[s.random.below(static_cast<uint32_t>(s.ready.size()))]);
  suspend();
}

void fail(const std::string& text, const Site& site) {
  const EmulatorCode unwatched;
  stop("thread " + emulator::text(threadIdx) + " at " + emulator::text(site) + ": " + text);
}

unsigned char* dynamic_shared_memory() {
  const EmulatorCode unwatched;
  return static_cast<unsigned char*>(s.dynamic_shared.get());
}

void* allocate_static_shared(size_t bytes, size_t alignment) {
  const EmulatorCode unwatched;
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max<size_t>(alignment, 16), bytes) != 0) throw std::bad_alloc();
  std::memset(memory, kGarbage, bytes);
  s.static_shared.push_back({{memory, std::free}, bytes});
  return memory;
}

bool may_be_shared(const void* address) {
  const EmulatorCode unwatched;
  const auto* const byte = static_cast<const unsigned char*>(address);
  const auto within = [&](const void* memory, size_t bytes) {
    return byte >= memory && byte < static_cast<const unsigned char*>(memory) + bytes;
  };
  if (within(s.dynamic_shared.get(), s.dynamic_bytes)) return true;
  for (const StaticShared& array : s.static_shared) {
    if (within(array.memory.get(), array.bytes)) return true;
  }
#ifdef __ELF__
  return byte >= reinterpret_cast<unsigned char*>(__bss_start) && byte < reinterpret_cast<unsigned char*>(_end);
#else
  return true;
#endif
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
