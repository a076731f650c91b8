#include "isa.h"

#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

namespace rsn2::cpu {
namespace {

const char* const kNames[] = {"avx512_bf16", "avx512", "avx2", "baseline"};  // best first

#ifdef RSN2_HAVE_X86_KERNELS
const Microkernels& avx512_with_bf16() {
  static const Microkernels kernels = [] {
    Microkernels both = avx512::microkernels;
    both.name = kNames[0];
    both.bfloat16 = &avx512_bf16::kernels;
    both.bits = &avx512_bf16::bit_kernels;
    return both;
  }();
  return kernels;
}
#endif

const Microkernels& choose() {
  const char* const cap = std::getenv("RSN2_CPU_ISA");
  size_t best_allowed = 0;
  if (cap && *cap) {
    while (best_allowed < std::size(kNames) && std::string(cap) != kNames[best_allowed]) ++best_allowed;
    if (best_allowed == std::size(kNames)) {
      throw std::invalid_argument("RSN2_CPU_ISA must be avx512_bf16, avx512, avx2 or baseline; got '" +
                                  std::string(cap) + "'");
    }
  }
  for (const Microkernels* const candidate : available_microkernels()) {
    for (size_t i = best_allowed; i < std::size(kNames); ++i) {
      if (std::string(candidate->name) == kNames[i]) return *candidate;
    }
  }
  return baseline::microkernels;
}

}  // namespace

std::vector<const Microkernels*> available_microkernels() {
  std::vector<const Microkernels*> available;
#ifdef RSN2_HAVE_X86_KERNELS
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("popcnt");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  const bool newer = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vpopcntdq") &&
                     __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
  if (avx512 && avx2 && newer && avx512_bf16::adds_in_order()) available.push_back(&avx512_with_bf16());
  if (avx512 && avx2) available.push_back(&avx512::microkernels);
  if (avx2) available.push_back(&avx2::microkernels);
#endif
  available.push_back(&baseline::microkernels);
  return available;
}

const Microkernels& chosen_microkernels() {
  static const Microkernels& chosen = choose();
  return chosen;
}

}  // namespace rsn2::cpu
