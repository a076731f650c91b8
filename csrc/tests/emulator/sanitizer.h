// What sanitizers must be told about fibres.
//
// The thread sanitizer takes each CUDA thread for a thread of its own: the switches between fibres order nothing,
// barriers order memory as CUDA says, and what the emulator does itself is not watched. So it finds the races of a
// kernel between the threads of a block, even where no order of threads would show them. Blocks count as ordered.
#pragma once

// gcc defines macros for its sanitizers, clang has features.
#ifndef __has_feature
#define __has_feature(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define RSN2_ADDRESS_SANITIZER
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define RSN2_THREAD_SANITIZER
#endif

#ifdef RSN2_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace rsn2::emulator {

#ifdef RSN2_THREAD_SANITIZER
inline constexpr bool kThreadSanitizer = true;

// What happened before release(token) has happened for whoever comes to acquire(token) later.
inline void release(void* token) { __tsan_release(token); }
inline void acquire(void* token) { __tsan_acquire(token); }

inline void watch(bool on) {
  if (on) {
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  } else {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
}
#else
inline constexpr bool kThreadSanitizer = false;

inline void release(void*) {}
inline void acquire(void*) {}
inline void watch(bool) {}
#endif

// While one lives, the accesses of this fibre are the emulator's; those of the kernel if `kKernel`.
template <bool kKernel>
struct Doing {
  Doing() { watch(kKernel); }
  ~Doing() { watch(!kKernel); }
  Doing(const Doing&) = delete;
};
using EmulatorCode = Doing<false>;
using KernelCode = Doing<true>;

}  // namespace rsn2::emulator
