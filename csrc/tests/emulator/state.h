// The state of a launch, and what outlives it: of the emulator's own files alone.
#pragma once

#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "fibre.h"
#include "scheduler.h"

namespace rsn2::emulator {

inline constexpr int kWarp = 32;

// Draws the order in which threads and blocks run.
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

inline uint64_t seed_of_environment() {
  const char* text = std::getenv("RSN2_EMULATOR_SEED");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 0);
}

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
inline State& s = *new State;

// Lets the next ready thread run. Returns when it is this one's turn again.
void suspend();

}  // namespace rsn2::emulator
