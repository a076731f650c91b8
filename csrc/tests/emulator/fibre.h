// Execution contexts with their own stacks, and the switch between them.
//
// On x86-64 the switch is a dozen instructions. Elsewhere, or with RSN2_FIBRE_UCONTEXT=1, it is swapcontext, which
// is portable and ten times slower, because it saves the signal mask.
#pragma once

#include <cstddef>

#ifndef RSN2_FIBRE_UCONTEXT
#if defined(__x86_64__) && defined(__ELF__)
#define RSN2_FIBRE_UCONTEXT 0
#else
#define RSN2_FIBRE_UCONTEXT 1
#endif
#endif

#if RSN2_FIBRE_UCONTEXT
#include <ucontext.h>
#endif

namespace rsn2::emulator {

struct Fibre {
  // The context of the caller: it has a stack, but is not known until the first switch away from it.
  Fibre() = default;
  // A fibre that will execute `entry`, which must not return. Numbers tell fibres apart.
  Fibre(int number, void (*entry)());
  ~Fibre();
  Fibre(const Fibre&) = delete;

  void* mapping = nullptr;  // guard page and stack; null for the caller
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  // What the address and the thread sanitizer keep per context.
  void* sanitizer_stack = nullptr;
  void* sanitizer_fibre = nullptr;
#if RSN2_FIBRE_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
};

// Continues `to`; returns when something switches back to `from`, which must be what runs now.
void switch_fibre(Fibre& from, Fibre& to);
// What a fibre must call first of all.
void enter_fibre();

}  // namespace rsn2::emulator
