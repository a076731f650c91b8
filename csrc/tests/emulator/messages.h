// What the emulator says when a launch must stop.
#pragma once

#include <cstdint>
#include <string>

#include "scheduler.h"

namespace rsn2::emulator {

std::string text(unsigned x, unsigned y, unsigned z);
std::string text(const uint3& v);
std::string text(const Site& site);
std::string text(uint32_t mask);

bool same_place(const Site& a, const Site& b);

// Stops the launch, with the place of every thread.
[[noreturn]] void stop_at_deadlock();

}  // namespace rsn2::emulator
