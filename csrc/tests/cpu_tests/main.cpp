// Tests of csrc/cpu without torch, for every instruction set this machine can execute.
#include <cstdio>
#include <vector>

#include "../../cpu/isa.h"
#include "../expect.h"
#include "tests.h"

namespace rsn2::test {
namespace {

// All that this machine executes. Threads share out work above them: races show in the widest and the narrowest alone.
std::vector<const cpu::Microkernels*> instruction_sets() {
  std::vector<const cpu::Microkernels*> found;
  for (const cpu::Microkernels* const kernels : cpu::available_microkernels()) found.push_back(kernels);
#ifdef __SANITIZE_THREAD__
  if (found.size() > 2) found = {found.front(), found.back()};
#endif
  return found;
}


}  // namespace
}  // namespace rsn2::test

int main() {
  using namespace rsn2;
  test::test_row_split();
  for (const cpu::Microkernels* const kernels : test::instruction_sets()) {
    test::test_expansions(*kernels);
    test::test_products(*kernels);
    test::test_groups(*kernels);
    std::printf("%s: done\n", kernels->name);
  }
  std::printf("%d failures\n", test::failures);
  return test::failures ? 1 : 0;
}
