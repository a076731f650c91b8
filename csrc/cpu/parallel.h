// How the kernels ask for threads, without knowing whose they are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

namespace rsn2::cpu {

// Multiply-adds below which another thread costs more than it gives (about 8 microseconds of one core).
inline constexpr int64_t kWorkPerSlot = 1 << 18;

// A slot is one worker of a parallel region. Work is split over slots by position only, so a given number of
// slots always does the same work in the same places.
//
// Bodies must not throw and must not allocate: the caller's thread pool may sit behind a C interface.
class Parallel {
 public:
  // run(slots, body) calls body(slot) once for every slot in [0, slots), possibly at the same time.
  using Run = std::function<void(int64_t slots, const std::function<void(int64_t)>& body)>;

  Parallel(int64_t threads, Run run, int64_t work_per_slot = kWorkPerSlot)
      : threads_(std::max<int64_t>(threads, 1)), work_per_slot_(work_per_slot), run_(std::move(run)) {}

  // Slots worth using for this many multiply-adds.
  int64_t slots_for(int64_t work) const { return std::clamp<int64_t>(work / work_per_slot_, 1, threads_); }

  // Calls body(task, slot) for every task in [0, tasks); each slot gets a contiguous run of tasks.
  template <class Body>
  void for_each(int64_t tasks, int64_t slots, const Body& body) const {
    slots = std::min(slots, tasks);
    if (slots <= 1) {
      for (int64_t task = 0; task < tasks; ++task) body(task, int64_t{0});
      return;
    }
    run_(slots, [&](int64_t slot) {
      const int64_t end = tasks * (slot + 1) / slots;
      for (int64_t task = tasks * slot / slots; task < end; ++task) body(task, slot);
    });
  }

  // Calls body(begin, end) for equal parts of [0, count), as many as slots are worth using for this much work.
  template <class Body>
  void for_parts(int64_t count, int64_t work, const Body& body) const {
    const int64_t parts = std::min(count, slots_for(work));
    for_each(parts, parts, [&](int64_t part, int64_t) { body(count * part / parts, count * (part + 1) / parts); });
  }

 private:
  int64_t threads_, work_per_slot_;
  Run run_;
};

}  // namespace rsn2::cpu
