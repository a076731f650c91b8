#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "sanitizer.h"
#include "state.h"

#ifdef __ELF__
// Where the linker puts arrays declared plain __shared__, among others: this library's zero-initialized data.
extern "C" __attribute__((visibility("hidden"))) char __bss_start[], _end[];
#endif

namespace rsn2::emulator {

unsigned char* dynamic_shared_memory() {
  const EmulatorCode unwatched;
  return static_cast<unsigned char*>(s.dynamic_shared.get());
}

void* allocate_static_shared(size_t bytes, size_t alignment) {
  const EmulatorCode unwatched;
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max<size_t>(alignment, 16), bytes) != 0) throw std::bad_alloc();
  std::memset(memory, kGarbage, bytes);
  s.static_shared.push_back({{memory, std::free}, bytes});
  return memory;
}

bool may_be_shared(const void* address) {
  const EmulatorCode unwatched;
  const auto* const byte = static_cast<const unsigned char*>(address);
  const auto within = [&](const void* memory, size_t bytes) {
    return byte >= memory && byte < static_cast<const unsigned char*>(memory) + bytes;
  };
  if (within(s.dynamic_shared.get(), s.dynamic_bytes)) return true;
  for (const StaticShared& array : s.static_shared) {
    if (within(array.memory.get(), array.bytes)) return true;
  }
#ifdef __ELF__
  return byte >= reinterpret_cast<unsigned char*>(__bss_start) && byte < reinterpret_cast<unsigned char*>(_end);
#else
  return true;
#endif
}

}  // namespace rsn2::emulator
