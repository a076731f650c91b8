// Memory as kernels get it: aligned as an allocation of torch is, of an exact size that a sanitizer guards.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace rsn2::test {

// `size` elements, garbage at first; or those of a vector. They begin `offset` bytes behind an aligned address.
template <class T>
class Memory {
 public:
  explicit Memory(size_t size, size_t offset = 0)
      : storage_(new (std::align_val_t{kAlignment}) unsigned char[size * sizeof(T) + offset]),
        offset_(offset),
        size_(size) {
    std::memset(storage_.get(), 0xa5, size * sizeof(T) + offset);
  }
  explicit Memory(const std::vector<T>& values, size_t offset = 0) : Memory(values.size(), offset) {
    if (size_) std::memcpy(data(), values.data(), size_ * sizeof(T));
  }

  T* data() const { return reinterpret_cast<T*>(storage_.get() + offset_); }
  std::vector<T> values() const { return {data(), data() + size_}; }

 private:
  static constexpr size_t kAlignment = 64;
  struct Free {
    void operator()(unsigned char* data) const { ::operator delete[](data, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<unsigned char, Free> storage_;
  size_t offset_, size_;
};

}  // namespace rsn2::test
