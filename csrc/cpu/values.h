// Weight values in the type that a product takes, in the order it visits them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "buffer.h"
#include "parallel.h"
#include "scalar.h"

namespace rsn2::cpu {

inline constexpr int64_t kValueChunk = 4096;  // elements converted by one task

// Calls body(begin, end) for chunks that cover [0, count).
template <class Body>
void for_chunks(const Parallel& parallel, int64_t count, const Body& body) {
  parallel.for_each(ceil_div(count, kValueChunk), parallel.slots_for(count), [&](int64_t chunk, int64_t) {
    body(chunk * kValueChunk, std::min(count, (chunk + 1) * kValueChunk));
  });
}

// Borrows the array where it already has the type that is multiplied, else holds a widened copy.
template <class S, class P = AccumulatorOf<S>>
class WidenedValues {
 public:
  WidenedValues(const Parallel& parallel, const S* values, int64_t count) {
    if constexpr (std::is_same_v<S, P>) {
      data_ = values;
    } else if (values) {
      copy_ = Buffer<P>(count);
      data_ = copy_.data();
      for_chunks(parallel, count, [&](int64_t begin, int64_t end) {
        widen_run(values + begin, 1, end - begin, copy_.data() + begin);
      });
    }
  }

  const P* data() const { return data_; }

 private:
  Buffer<P> copy_;
  const P* data_ = nullptr;
};

// Accumulators that are narrowed into the result by finish().
template <class S>
class NarrowedValues {
 public:
  using T = AccumulatorOf<S>;

  NarrowedValues(S* result, int64_t count) : result_(result), count_(count) {
    if constexpr (std::is_same_v<S, T>) {
      data_ = result;
    } else {
      copy_ = Buffer<T>(count);
      data_ = copy_.data();
    }
  }

  void clear() const { std::fill_n(data_, count_, T{0}); }
  T* data() const { return data_; }

  void finish(const Parallel& parallel) const {
    if constexpr (!std::is_same_v<S, T>) {
      for_chunks(parallel, count_, [&](int64_t begin, int64_t end) {
        narrow_run(data_ + begin, end - begin, result_ + begin, 1);
      });
    }
  }

 private:
  S* result_;
  int64_t count_;
  Buffer<T> copy_;
  T* data_;
};

}  // namespace rsn2::cpu
