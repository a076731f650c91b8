// Types of 16 bits, as their bits. This header is included by files compiled for different instruction sets, so it defines
// no function.
#pragma once

#include <stdint.h>

namespace rsn2::cpu {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

}  // namespace rsn2::cpu
