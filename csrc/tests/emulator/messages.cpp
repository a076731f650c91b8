#include "messages.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "sanitizer.h"
#include "state.h"

namespace rsn2::emulator {

std::string text(unsigned x, unsigned y, unsigned z) {
  return std::string("(") + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}
std::string text(const uint3& v) { return text(v.x, v.y, v.z); }

std::string text(const Site& site) {
  const std::string file = site.file_name();
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(site.line());
}

bool same_place(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string text(uint32_t mask) {
  constexpr char digits[] = "0123456789abcdef";
  std::string out = "0x";
  for (int shift = 28; shift >= 0; shift -= 4) out += digits[mask >> shift & 15u];
  return out;
}

namespace {

std::string doing(const Thread& thread) {
  if (thread.finished) return "has finished";
  if (thread.waits_in == nullptr) return "has not come so far";
  return std::string("waits in ") + thread.waits_in + " at " + text(thread.site);
}

// Threads by what they do, with one example each.
std::string everyone() {
  std::vector<std::pair<std::string, std::pair<int, const Thread*>>> kinds;
  for (const Thread& thread : s.threads) {
    const std::string what = doing(thread);
    auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const auto& k) { return k.first == what; });
    if (kind == kinds.end()) kind = kinds.insert(kinds.end(), {what, {0, &thread}});
    ++kind->second.first;
  }
  std::string out;
  for (const auto& [what, who] : kinds) {
    out += std::string("\n  ") + std::to_string(who.first) + " of " + std::to_string(s.threads.size()) +
           " threads, such as " + text(who.second->index) + ": " + what;
  }
  return out;
}

// Unwinds to run_fibre, which ends the launch.
[[noreturn]] void stop(const std::string& text) {
  throw std::runtime_error("CUDA emulator: block " + emulator::text(blockIdx) + ": " + text);
}

}  // namespace

void stop_at_deadlock() {
  std::string text = "deadlock: no thread can continue" + everyone();
  for (size_t w = 0; w < s.warps.size(); ++w) {
    for (const Group& group : s.warps[w].open) {
      text += std::string("\n  warp ") + std::to_string(w) + ": " + group.collective->name + " of lanes " +
              emulator::text(group.mask) + ", where only " + emulator::text(group.arrived) + " came";
    }
  }
  stop(text);
}

void fail(const std::string& text, const Site& site) {
  const EmulatorCode unwatched;
  stop("thread " + emulator::text(threadIdx) + " at " + emulator::text(site) + ": " + text);
}

}  // namespace rsn2::emulator
