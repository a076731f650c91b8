// Which copy of the microkernels runs on this machine.
#pragma once

#include <vector>

#include "microkernel.h"

namespace rsn2::cpu {

// The copies this build has and this processor can execute, best first. The last is always the baseline.
std::vector<const Microkernels*> available_microkernels();

// The best available copy not above the cap in the environment variable RSN2_CPU_ISA (avx512_bf16,
// avx512, avx2 or baseline), which is read once. Throws std::invalid_argument if the variable holds another word.
const Microkernels& chosen_microkernels();

}  // namespace rsn2::cpu
