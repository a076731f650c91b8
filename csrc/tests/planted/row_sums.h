// A small kernel of the usual make, and copies of it with one defect each: what the emulator must catch.
#pragma once

#include <cstdint>

namespace rsn2::planted {

enum class Defect {
  none,
  // Races: the result depends on the order in which threads run.
  no_barrier_after_load,      // tiles are read before all of them is written
  no_barrier_before_load,     // tiles are overwritten while they are read
  no_warp_barrier,            // a lane reads what its neighbours have not written
  no_wait_for_copies,         // a tile is read before its asynchronous copies are done
  // Wrong whatever the order.
  wrong_shuffle_width,        // the lanes of two rows are added up
  // Threads that do not come to where others wait.
  return_before_barrier,
  barriers_in_both_branches,
  shuffle_in_branch,
  // Accesses outside of a buffer.
  read_past_global,
  read_past_shared,
  write_past_shared_array,
  misaligned_read,
};

struct Named {
  const char* name;
  Defect defect;
};

inline constexpr Named kDefects[] = {
    {"none", Defect::none},
    {"no_barrier_after_load", Defect::no_barrier_after_load},
    {"no_barrier_before_load", Defect::no_barrier_before_load},
    {"no_warp_barrier", Defect::no_warp_barrier},
    {"no_wait_for_copies", Defect::no_wait_for_copies},
    {"wrong_shuffle_width", Defect::wrong_shuffle_width},
    {"return_before_barrier", Defect::return_before_barrier},
    {"barriers_in_both_branches", Defect::barriers_in_both_branches},
    {"shuffle_in_branch", Defect::shuffle_in_branch},
    {"read_past_global", Defect::read_past_global},
    {"read_past_shared", Defect::read_past_shared},
    {"write_past_shared_array", Defect::write_past_shared_array},
    {"misaligned_read", Defect::misaligned_read},
};

// product = a b and row_sums[row] = the sum of that row's products over the first 16 columns, where a is [m, k],
// b [k, n] and product [m, n], n a multiple of 4. All buffers are exactly as large.
void run(Defect defect, const float* a, const float* b, float* product, float* row_sums, int m, int n, int k);

}  // namespace rsn2::planted
