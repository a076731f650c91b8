// Warp collectives: every lane of the mask gives its operand and waits; the last to come computes all results.
//
// Only __syncwarp orders memory, as CUDA says. A result CUDA leaves undefined (a shuffle from a lane outside the mask)
// is garbage.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "scheduler.h"

namespace rsn2::emulator {

enum class Shuffle { index, up, down, exclusive_or };

// The source lane as PTX's shfl defines it. Beyond the segment of `width` lanes a lane gets its own value.
inline int shuffle_source(Shuffle kind, int lane, int operand, int width) {
  const int first = lane & ~(width - 1), last = first | (width - 1);
  operand &= 31;
  switch (kind) {
    case Shuffle::index: return first | (operand & (width - 1));
    case Shuffle::up: return lane - operand >= first ? lane - operand : lane;
    case Shuffle::down: return lane + operand <= last ? lane + operand : lane;
    case Shuffle::exclusive_or: return (lane ^ operand) <= last ? lane ^ operand : lane;
  }
  return lane;
}

template <class T>
struct ShuffleLane {
  T value, result;
  int source;
};

template <class T>
void perform_shuffle(void* const* lanes, uint32_t mask) {
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    auto& lane = *static_cast<ShuffleLane<T>*>(lanes[std::countr_zero(rest)]);
    if (mask >> lane.source & 1) {
      lane.result = static_cast<const ShuffleLane<T>*>(lanes[lane.source])->value;
    } else {
      std::memset(&lane.result, kGarbage, sizeof(T));
    }
  }
}

inline const char* shuffle_name(Shuffle kind) {
  constexpr const char* names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
  return names[static_cast<int>(kind)];
}

template <Shuffle kKind, class T>
T shuffle(uint32_t mask, T value, int operand, int width, const Site& site) {
  static_assert((sizeof(T) == 4 || sizeof(T) == 8) && std::is_trivially_copyable_v<T>,
                "CUDA shuffles 4 or 8 bytes; a smaller type must be converted");
  static const Collective collective{shuffle_name(kKind), false, false, perform_shuffle<T>};
  if (width > 32 || !std::has_single_bit(static_cast<unsigned>(width))) {
    fail("the width of a shuffle must be 1, 2, 4, 8, 16 or 32, not " + std::to_string(width), site);
  }
  ShuffleLane<T> mine{value, value, shuffle_source(kKind, lane(), operand, width)};
  meet(collective, mask, &mine, site);
  return mine.result;
}

// Collectives in which all lanes get results of all operands.
template <class T, class Result>
struct VoteLane {
  T value;
  Result result;
};

// Op: Result(values, mask, lane), where values[l] is lane l's.
template <class T, class Result, Result (*kOp)(const T*, uint32_t, int)>
void perform_vote(void* const* lanes, uint32_t mask) {
  T values[32] = {};
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    values[lane] = static_cast<VoteLane<T, Result>*>(lanes[lane])->value;
  }
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    static_cast<VoteLane<T, Result>*>(lanes[lane])->result = kOp(values, mask, lane);
  }
}

template <class T, class Result, Result (*kOp)(const T*, uint32_t, int)>
Result vote(const char* name, uint32_t mask, T value, const Site& site) {
  static const Collective collective{name, false, false, perform_vote<T, Result, kOp>};
  VoteLane<T, Result> mine{value, {}};
  meet(collective, mask, &mine, site);
  return mine.result;
}

inline uint32_t ballot_of(const bool* values, uint32_t mask, int) {
  uint32_t ballot = 0;
  for (int l = 0; l < 32; ++l) ballot |= static_cast<uint32_t>(values[l] && (mask >> l & 1)) << l;
  return ballot;
}
inline int any_of(const bool* values, uint32_t mask, int) { return ballot_of(values, mask, 0) != 0; }
inline int all_of(const bool* values, uint32_t mask, int) { return ballot_of(values, mask, 0) == mask; }

template <class T>
uint32_t match_of(const T* values, uint32_t mask, int lane) {
  uint32_t equal = 0;
  for (int l = 0; l < 32; ++l) equal |= static_cast<uint32_t>((mask >> l & 1) && values[l] == values[lane]) << l;
  return equal;
}

enum class Reduction { add, min, max, bit_and, bit_or, bit_xor };

template <Reduction kKind, class T>
T reduction_of(const T* values, uint32_t mask, int) {
  T result = values[std::countr_zero(mask)];
  for (uint32_t rest = mask & (mask - 1); rest != 0; rest &= rest - 1) {
    const T value = values[std::countr_zero(rest)];
    switch (kKind) {
      // Wraps, for int, too.
      case Reduction::add: result = static_cast<T>(static_cast<uint32_t>(result) + static_cast<uint32_t>(value)); break;
      case Reduction::min: result = value < result ? value : result; break;
      case Reduction::max: result = value > result ? value : result; break;
      case Reduction::bit_and: result = result & value; break;
      case Reduction::bit_or: result = result | value; break;
      case Reduction::bit_xor: result = result ^ value; break;
    }
  }
  return result;
}

inline void perform_nothing(void* const*, uint32_t) {}

}  // namespace rsn2::emulator

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  static constexpr rsn2::emulator::Collective collective{"__syncwarp", false, true, rsn2::emulator::perform_nothing};
  rsn2::emulator::meet(collective, mask, nullptr, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  return rsn2::emulator::shuffle<rsn2::emulator::Shuffle::index>(mask, value, source, width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  return rsn2::emulator::shuffle<rsn2::emulator::Shuffle::up>(mask, value, static_cast<int>(delta), width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  return rsn2::emulator::shuffle<rsn2::emulator::Shuffle::down>(mask, value, static_cast<int>(delta), width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  return rsn2::emulator::shuffle<rsn2::emulator::Shuffle::exclusive_or>(mask, value, lanes, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  return rsn2::emulator::vote<bool, uint32_t, rsn2::emulator::ballot_of>("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate,
                      const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  return rsn2::emulator::vote<bool, int, rsn2::emulator::any_of>("__any_sync", mask, predicate != 0, site);
}
inline int __all_sync(unsigned mask, int predicate,
                      const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  return rsn2::emulator::vote<bool, int, rsn2::emulator::all_of>("__all_sync", mask, predicate != 0, site);
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value,
                          const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {
  return rsn2::emulator::vote<T, uint32_t, rsn2::emulator::match_of<T>>("__match_any_sync", mask, value, site);
}

#define RSN2_REDUCTION(name, kind, type)                                                                  \
  inline type name(unsigned mask, type value,                                                             \
                   const rsn2::emulator::Site& site = rsn2::emulator::Site::current()) {                  \
    return rsn2::emulator::vote<type, type,                                                               \
                                rsn2::emulator::reduction_of<rsn2::emulator::Reduction::kind, type>>(     \
        #name, mask, value, site);                                                                        \
  }
RSN2_REDUCTION(__reduce_add_sync, add, int)
RSN2_REDUCTION(__reduce_add_sync, add, unsigned)
RSN2_REDUCTION(__reduce_min_sync, min, int)
RSN2_REDUCTION(__reduce_min_sync, min, unsigned)
RSN2_REDUCTION(__reduce_max_sync, max, int)
RSN2_REDUCTION(__reduce_max_sync, max, unsigned)
RSN2_REDUCTION(__reduce_and_sync, bit_and, unsigned)
RSN2_REDUCTION(__reduce_or_sync, bit_or, unsigned)
RSN2_REDUCTION(__reduce_xor_sync, bit_xor, unsigned)
#undef RSN2_REDUCTION
