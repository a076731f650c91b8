// Which rows of a product run side by side.
#pragma once

#include "vectors.h"

namespace rsn2::cpu::RSN2_ISA {
namespace {

// Rows are multiplied side by side as far as all of them have weights, so that those beside each other must be alike in
// their number. As tasks choose weights, neighbouring rows are not, and are put in order first: of the rows of a block,
// these and as many weights to come in the second-level cache. Rows that are much alike need few to choose from, and
// fewer are read more nearly in the order of memory.
struct Block {
  int64_t rows, weights;
};
constexpr Block kUnlike{256, 1 << 16}, kAlike{16, 1 << 13};

// Where the numbers of weights of `count` rows lie.
struct Weights {
  int32_t least, most;

  Weights(const int32_t* begin, const int32_t* end, int64_t count) : least(INT32_MAX), most(0) {
    for (int64_t i = 0; i < count; ++i) {
      const int32_t weights = end[i] - begin[i];
      least = weights < least ? weights : least;
      most = weights > most ? weights : most;
    }
  }
};

// Rows as they are, from `first` on.
struct Consecutive {
  int64_t first;
  int64_t operator[](int64_t i) const { return first + i; }
  Consecutive operator+(int64_t i) const { return {first + i}; }
};

// Puts `count` rows from `first` on into order, those of most weights first, by up to 64 classes of their number.
__attribute__((noinline)) void order_rows(const int32_t* begin, const int32_t* end, int64_t first, int64_t count,
                                          const Weights& range, int32_t* order) {
  const int bits = 32 - __builtin_clz((range.most - range.least) | 1), shift = bits > 6 ? bits - 6 : 0;
  int32_t kind[kUnlike.rows];
  for (int64_t i = 0; i < count; ++i) kind[i] = (range.most - (end[first + i] - begin[first + i])) >> shift;
  int32_t place[65] = {};
  for (int64_t i = 0; i < count; ++i) ++place[kind[i] + 1];
  for (int i = 1; i < 64; ++i) place[i] += place[i - 1];
  for (int64_t i = 0; i < count; ++i) order[place[kind[i]]++] = static_cast<int32_t>(first + i);
}

// How many rows from `first` to `last` make a block.
inline int64_t rows_of(const Block& block, const int32_t* begin, const int32_t* end, int64_t first, int64_t last) {
  int64_t count = last - first < block.rows ? last - first : block.rows;
  while (count > 8 && end[first + count - 1] - begin[first] > block.weights) count = (count + 1) / 2;
  return count;
}

// Calls as_they_are(rows, count) or ordered(rows, count, end) for the rows of a product, block by block; `end` is the
// weight behind the block.
template <int kLanes, class Product, class AsTheyAre, class Ordered>
inline void in_blocks(const Product& p, const AsTheyAre& as_they_are, const Ordered& ordered) {
  for (int64_t first = p.row_begin; first < p.row_end;) {
    int64_t count = rows_of(kUnlike, p.begin, p.end, first, p.row_end);
    const Weights range(p.begin + first, p.end + first, count);
    const bool alike = (range.most - range.least) * count <= p.end[first + count - 1] - p.begin[first];
    // Products of many positions have work enough in two rows, and lose more by an order than they wait without.
    if (p.width > 2 * kLanes || (p.width > 1 && alike)) {
      as_they_are(Consecutive{first}, count);
    } else {
      // Of those rows and no others: the order has classes for their numbers of weights alone.
      if (alike) count = rows_of(kAlike, p.begin, p.end, first, first + count);
      int32_t order[kUnlike.rows];
      order_rows(p.begin, p.end, first, count, range, order);
      ordered(static_cast<const int32_t*>(order), count, p.end[first + count - 1]);
    }
    first += count;
  }
}

}  // namespace
}  // namespace rsn2::cpu::RSN2_ISA
