// Rows cut by the index of their weights, so that a product reads one part of a large panel at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "buffer.h"
#include "parallel.h"

namespace rsn2::cpu {

// Part p of row r is the weights k in [begin(p)[r], end(p)[r]): those of the p-th of `parts` equal ranges of features.
template <class I>
class CutRows {
 public:
  CutRows(const Parallel& parallel, const int32_t* begin, const I* index, int64_t rows, int64_t features, int64_t parts)
      : begin_(begin), rows_(rows), parts_(parts), cuts_(rows * (parts - 1)) {
    if (parts == 1) return;
    parallel.for_parts(rows, begin[rows] - begin[0], [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        const I* cut = index + begin[r];
        for (int64_t part = 1; part < parts; ++part) {
          cut = std::lower_bound(cut, index + begin[r + 1], features * part / parts);
          cuts_.data()[(part - 1) * rows + r] = static_cast<int32_t>(cut - index);
        }
      }
    });
  }

  int64_t parts() const { return parts_; }
  const int32_t* begin(int64_t part) const { return part == 0 ? begin_ : cuts_.data() + (part - 1) * rows_; }
  const int32_t* end(int64_t part) const { return part == parts_ - 1 ? begin_ + 1 : cuts_.data() + part * rows_; }

 private:
  const int32_t* begin_;
  int64_t rows_, parts_;
  Buffer<int32_t> cuts_;
};

}  // namespace rsn2::cpu
