// Uninitialized scratch memory, aligned to a cache line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace rsn2::cpu {

inline constexpr int64_t kCacheLine = 64;  // bytes; also the widest vector any kernel loads

// Elements of T in one cache line: every panel width is a multiple of it, so no kernel needs a scalar tail.
template <class T>
inline constexpr int64_t kLineElements = kCacheLine / static_cast<int64_t>(sizeof(T));

inline constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t{kCacheLine}))) {}

  T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t{kCacheLine}); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace rsn2::cpu
