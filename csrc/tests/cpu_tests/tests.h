// The tests of csrc/cpu, a file for each part; every one is run for every instruction set that this machine executes.
#pragma once

#include "../../cpu/microkernel.h"
#include "../../cpu/scalar.h"

namespace rsn2::test {

void test_row_split();
void test_expansions(const cpu::Microkernels& kernels);
void test_products(const cpu::Microkernels& kernels);
void test_groups(const cpu::Microkernels& kernels);

// Calls body(S{}) for every type of tensor.
template <class Body>
void for_types(const Body& body) {
  body(float{});
  body(double{});
  body(cpu::Half{});
  body(cpu::BFloat16{});
}

}  // namespace rsn2::test
