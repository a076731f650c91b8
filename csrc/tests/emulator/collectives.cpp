// Where the threads of a block wait for each other.
#include <cstring>
#include <string>
#include <utility>

#include "messages.h"
#include "sanitizer.h"
#include "state.h"

namespace rsn2::emulator {

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

}  // namespace rsn2::emulator
