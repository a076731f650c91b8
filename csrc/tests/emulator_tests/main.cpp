// Tests of the emulator: what every primitive gives, and that planted defects are caught.
//
//   test_emulator              all tests
//   test_emulator <defect>     runs the kernel of planted/ with this defect, for a sanitizer to report it
#include <cstdio>
#include <cstring>

#include "tests.h"

namespace rsn2::test {
namespace {

int run_all() {
  run_threads();
  run_barriers();
  run_warps();
  run_copies();
  run_matrices();
  run_functions();
  test_mistakes_stop_a_launch();
  test_planted_defects();
  std::printf(failures == 0 ? "all emulator tests passed\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace rsn2::test

int main(int count, char** arguments) {
  if (count < 2) return rsn2::test::run_all();
  for (const auto& [name, defect] : rsn2::planted::kDefects) {
    if (std::strcmp(name, arguments[1]) != 0) continue;
    rsn2::test::planted_result(defect);
    std::printf("nothing stopped %s\n", name);
    return 0;
  }
  std::printf("no defect is called %s\n", arguments[1]);
  return 2;
}
