#include "fibre.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#include "sanitizer.h"

#ifdef RSN2_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif

namespace rsn2::emulator {
namespace {

constexpr size_t kGuardBytes = 64 * 1024;  // a multiple of every page size
#ifdef RSN2_ADDRESS_SANITIZER
constexpr size_t kStackBytes = 256 * 1024;  // red zones make frames several times larger
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// The fibre that was left by the last switch.
Fibre* left = nullptr;

}  // namespace

#if !RSN2_FIBRE_UCONTEXT
// Saves what the ABI says a call preserves, exchanges stacks, restores.
extern "C" void rsn2_emulator_switch(void** from, void* to);
asm(R"(
.pushsection .text
.globl rsn2_emulator_switch
.hidden rsn2_emulator_switch
.type rsn2_emulator_switch, @function
rsn2_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size rsn2_emulator_switch, . - rsn2_emulator_switch
.popsection
)");
#endif

Fibre::Fibre(int number, void (*entry)()) {
  mapping = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping, kGuardBytes, PROT_NONE);  // an overflow stops instead of damaging the neighbour
  stack = static_cast<unsigned char*>(mapping) + kGuardBytes;
  stack_bytes = kStackBytes;
#ifdef RSN2_THREAD_SANITIZER
  sanitizer_fibre = __tsan_create_fiber(0);
#endif
#if RSN2_FIBRE_UCONTEXT
  getcontext(&context);
  context.uc_stack.ss_sp = const_cast<void*>(stack);
  context.uc_stack.ss_size = stack_bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
  static_cast<void>(number);
#else
  // Page-aligned stacks would all have their innermost frames in the same few cache sets.
  const size_t colour = static_cast<size_t>(number) % 32 * 5 % 32 * 128;
  const uintptr_t top = reinterpret_cast<uintptr_t>(stack) + stack_bytes - colour;
  // As after a call: the return address is where the stack is 8 modulo 16. Its zero ends stack traces.
  auto* words = reinterpret_cast<void**>(top);
  *--words = nullptr;
  *--words = reinterpret_cast<void*>(entry);
  for (int preserved = 0; preserved < 6; ++preserved) *--words = nullptr;
  stack_pointer = words;
#endif
}

Fibre::~Fibre() {
  if (mapping != nullptr) munmap(mapping, kGuardBytes + kStackBytes);
#ifdef RSN2_THREAD_SANITIZER
  if (mapping != nullptr) __tsan_destroy_fiber(sanitizer_fibre);
#endif
}

void switch_fibre(Fibre& from, Fibre& to) {
  left = &from;
#ifdef RSN2_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&from.sanitizer_stack, to.stack, to.stack_bytes);
#endif
#ifdef RSN2_THREAD_SANITIZER
  from.sanitizer_fibre = __tsan_get_current_fiber();  // the caller may be on another thread than last time
  __tsan_switch_to_fiber(to.sanitizer_fibre, __tsan_switch_to_fiber_no_sync);
#endif
#if RSN2_FIBRE_UCONTEXT
  swapcontext(&from.context, &to.context);
#else
  rsn2_emulator_switch(&from.stack_pointer, to.stack_pointer);
#endif
#ifdef RSN2_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(from.sanitizer_stack, &left->stack, &left->stack_bytes);
#endif
}

void enter_fibre() {
#ifdef RSN2_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, &left->stack, &left->stack_bytes);
#endif
}

}  // namespace rsn2::emulator
