// The inner products, compiled once per instruction set. The build defines
//   RSN2_ISA           the namespace of this copy
//   RSN2_VECTOR_BYTES  width of one register
//   RSN2_MAX_VECTORS   registers that hold one row's accumulators
// and compiles without contraction: see multiply_add in simd.h.
// No C++ standard header and no torch header may be included here: see simd.h.
// Vectors wider than a register are passed between functions of this file alone.
#pragma GCC diagnostic ignored "-Wpsabi"

#include "microkernel.h"
#include "simd.h"

namespace rsn2::cpu::RSN2_ISA {
namespace {

constexpr int kMaxVectors = RSN2_MAX_VECTORS;

template <class T>
using Lanes = Simd<T, RSN2_VECTOR_BYTES>;
template <class T>
constexpr int kLanes = RSN2_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <class T>
inline typename Lanes<T>::Vector load(const T* source) {
  return *reinterpret_cast<const typename Lanes<T>::Unaligned*>(source);
}

template <class T>
inline void store(T* target, typename Lanes<T>::Vector value) {
  *reinterpret_cast<typename Lanes<T>::Unaligned*>(target) = value;
}

// Subtracting zero changes no number, -0 included, so that it costs nothing.
template <class T>
inline typename Lanes<T>::Vector broadcast(T value) {
  return value - typename Lanes<T>::Vector{};
}

// One row of a product on kVectors registers of positions.
template <class T, int kVectors>
struct Sums {
  typename Lanes<T>::Vector sum[kVectors];

  inline __attribute__((always_inline)) void start(T value) {
    for (int i = 0; i < kVectors; ++i) sum[i] = broadcast(value);
  }
  inline __attribute__((always_inline)) void add(T value, const T* feature) {
    for (int i = 0; i < kVectors; ++i) sum[i] = multiply_add(broadcast(value), load(feature + i * kLanes<T>), sum[i]);
  }
  inline __attribute__((always_inline)) void finish(T* out) const {
    for (int i = 0; i < kVectors; ++i) store(out + i * kLanes<T>, sum[i]);
  }
};

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

  Weights(const int32_t* begin, int64_t count) : least(INT32_MAX), most(0) {
    for (int64_t i = 0; i < count; ++i) {
      const int32_t weights = begin[i + 1] - begin[i];
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
__attribute__((noinline)) void order_rows(const int32_t* begin, int64_t first, int64_t count, const Weights& range,
                                          int32_t* order) {
  const int bits = 32 - __builtin_clz((range.most - range.least) | 1), shift = bits > 6 ? bits - 6 : 0;
  int32_t kind[kUnlike.rows];
  for (int64_t i = 0; i < count; ++i) kind[i] = (range.most - (begin[first + i + 1] - begin[first + i])) >> shift;
  int32_t place[65] = {};
  for (int64_t i = 0; i < count; ++i) ++place[kind[i] + 1];
  for (int i = 1; i < 64; ++i) place[i] += place[i - 1];
  for (int64_t i = 0; i < count; ++i) order[place[kind[i]]++] = static_cast<int32_t>(first + i);
}

// Rows order[0], ..., order[count - 1], kRows of them side by side: a row's sums wait for each other, the rows do not.
// Returns how many are done: what is left is less than kRows.
// Out of line, with what the inner loop needs in locals: otherwise gcc spills the loop's pointers.
template <class T, class I, int kVectors, int kRows, class Order>
__attribute__((noinline)) int64_t multiply_rows(const Product<T, I>& p, int64_t q, Order order, int64_t count) {
  const T* const panel = p.panel + q;
  const int64_t scale = p.index_scale;
  int64_t done = 0;
  for (; done + kRows <= count; done += kRows, order = order + kRows) {
    Sums<T, kVectors> sums[kRows];
    const T* value[kRows];
    const I* index[kRows];
    int64_t common = INT32_MAX;
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const int32_t* const begin = p.begin + order[i];
      value[i] = p.values + begin[0];
      index[i] = p.index + begin[0];
      const int64_t weights = begin[1] - begin[0];
      common = weights < common ? weights : common;
      sums[i].start(p.bias ? p.bias[order[i]] : T{0});
    }
    int64_t j = 0;
    for (; j < common; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) sums[i].add(value[i][j], panel + index[i][j] * scale);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const int64_t weights = p.begin[order[i] + 1] - p.begin[order[i]];
      for (int64_t rest = j; rest < weights; ++rest) sums[i].add(value[i][rest], panel + index[i][rest] * scale);
      sums[i].finish(p.out + (order[i] - p.row_begin) * p.out_stride + q);
    }
  }
  return done;
}

// Rows at kVectors registers of positions starting at q: the panel's part stays in cache while the rows pass.
template <class T, class I, int kVectors, class Order>
void multiply_block(const Product<T, I>& p, int64_t q, Order order, int64_t count) {
  constexpr int kRows = kVectors <= 2 ? 4 : kVectors == 4 ? 2 : 1;
  const int64_t done = multiply_rows<T, I, kVectors, kRows>(p, q, order, count);
  if constexpr (kRows > 1) multiply_rows<T, I, kVectors, 1>(p, q, order + done, count - done);
}

// Blocks of kVectors while they fit, then half as many: a width of one cache line costs one cache line.
template <class T, class I, int kVectors, class Order>
void multiply_from(const Product<T, I>& p, int64_t q, Order order, int64_t count) {
  constexpr int64_t kWidth = kVectors * kLanes<T>;
  for (; q + kWidth <= p.width; q += kWidth) multiply_block<T, I, kVectors>(p, q, order, count);
  if constexpr (kVectors > 1) multiply_from<T, I, kVectors / 2>(p, q, order, count);
}

// A row on a single position, from its weight `done` on.
template <class T, class I>
inline __attribute__((always_inline)) void finish_single(const Product<T, I>& p, int64_t r, int64_t done, T sum) {
  for (int64_t k = p.begin[r] + done; k < p.begin[r + 1]; ++k) {
    sum = multiply_add(p.values[k], p.panel[p.index[k]], sum);
  }
  p.out[(r - p.row_begin) * p.out_stride] = sum;
}

// Four neighbouring indices in registers, loaded at once where they are that small.
template <class I>
struct FourIndices {
  const I* index;
  explicit FourIndices(const I* index) : index(index) {}
  int64_t operator[](int i) const { return index[i]; }
};
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
template <>
struct FourIndices<uint16_t> {
  uint64_t bits;
  explicit FourIndices(const uint16_t* index) { __builtin_memcpy(&bits, index, sizeof bits); }
  int64_t operator[](int i) const { return static_cast<int64_t>(bits >> 16 * i & 0xFFFF); }
};
#endif

// Rows of a product on a single position, a row in each lane of vectors of four.
//
// Four neighbouring values of four rows are four loads and a transposition instead of sixteen loads. A row's additions
// wait for each other, so that two vectors pass side by side.
template <class T>
struct Quad {
  typedef typename Simd<T, 4 * sizeof(T)>::Vector Vector;

  static inline Vector load(const T* source) {
    return *reinterpret_cast<const typename Simd<T, 4 * sizeof(T)>::Unaligned*>(source);
  }
  template <int... kSource>
  static inline __attribute__((always_inline)) Vector pick(const Vector& a, const Vector& b) {
    return shuffle<T, 4 * sizeof(T), kSource...>(a, b);
  }
  // sum + weights `step` of the four rows times their features.
  template <class I>
  static inline __attribute__((always_inline)) Vector add(const Vector& sum, const Vector& value, const T* panel,
                                                          const FourIndices<I>* index, int step) {
    const Vector feature = {panel[index[0][step]], panel[index[1][step]], panel[index[2][step]], panel[index[3][step]]};
    return multiply_add(value, feature, sum);
  }
};

// The rows order[0], order[1], ... prefetch: the weight from which on memory is asked for what comes later.
template <class T, class I, int kQuads>
__attribute__((noinline)) void multiply_quads(const Product<T, I>& p, const int32_t* order, int64_t& prefetch) {
  using Q = Quad<T>;
  constexpr int kRows = 4 * kQuads;
  const T* const panel = p.panel;
  typename Q::Vector sum[kQuads];
  // Volatile: read again from the cache in every step, because there are not registers for all of them.
  volatile int32_t begin[kRows];
  int64_t common = INT32_MAX;
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    const int32_t r = order[i];
    begin[i] = p.begin[r];
    const int64_t count = p.begin[r + 1] - p.begin[r];
    common = count < common ? count : common;
    sum[i / 4][i % 4] = p.bias ? p.bias[r] : T{0};
  }
  common -= common % 4;
  const T* value = p.values;
  const I* index = p.index;
  const T* next_value = value + prefetch;
  const I* next_index = index + prefetch;
  prefetch += kRows * common;
  for (const T* const end = value + common; value != end; value += 4, index += 4) {
    for (int i = 0; i < kRows * 4; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(next_value + i, 0, 2);
    for (int i = 0; i < kRows * 4; i += 64 / static_cast<int>(sizeof(I))) __builtin_prefetch(next_index + i, 0, 2);
    next_value += 4 * kRows;
    next_index += 4 * kRows;
#pragma GCC unroll 8
    for (int i = 0; i < kQuads; ++i) {
      const int64_t row[] = {begin[4 * i], begin[4 * i + 1], begin[4 * i + 2], begin[4 * i + 3]};
      const typename Q::Vector a = Q::load(value + row[0]), b = Q::load(value + row[1]);
      const typename Q::Vector c = Q::load(value + row[2]), d = Q::load(value + row[3]);
      const FourIndices<I> four[] = {FourIndices<I>(index + row[0]), FourIndices<I>(index + row[1]),
                                     FourIndices<I>(index + row[2]), FourIndices<I>(index + row[3])};
      const auto low_ab = Q::template pick<0, 4, 1, 5>(a, b), low_cd = Q::template pick<0, 4, 1, 5>(c, d);
      const auto high_ab = Q::template pick<2, 6, 3, 7>(a, b), high_cd = Q::template pick<2, 6, 3, 7>(c, d);
      sum[i] = Q::add(sum[i], Q::template pick<0, 1, 4, 5>(low_ab, low_cd), panel, four, 0);
      sum[i] = Q::add(sum[i], Q::template pick<2, 3, 6, 7>(low_ab, low_cd), panel, four, 1);
      sum[i] = Q::add(sum[i], Q::template pick<0, 1, 4, 5>(high_ab, high_cd), panel, four, 2);
      sum[i] = Q::add(sum[i], Q::template pick<2, 3, 6, 7>(high_ab, high_cd), panel, four, 3);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) finish_single(p, order[i], common, sum[i / 4][i % 4]);
}

// Rows order[0], ..., order[count - 1], with as many weights behind them asked for from memory meanwhile.
template <class T, class I>
void multiply_single(const Product<T, I>& p, const int32_t* order, int64_t count, int64_t prefetch) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) multiply_quads<T, I, 2>(p, order + i, prefetch);
  for (; i + 4 <= count; i += 4) multiply_quads<T, I, 1>(p, order + i, prefetch);
  for (; i < count; ++i) finish_single(p, order[i], 0, p.bias ? p.bias[order[i]] : T{0});
}

// How many rows from `first` on make a block.
inline int64_t rows_of(const Block& block, const int32_t* begin, int64_t first, int64_t end) {
  int64_t count = end - first < block.rows ? end - first : block.rows;
  while (count > 8 && begin[first + count] - begin[first] > block.weights) count = (count + 1) / 2;
  return count;
}

template <class T, class I>
void multiply(const Product<T, I>& p) {
  for (int64_t first = p.row_begin; first < p.row_end;) {
    int64_t count = rows_of(kUnlike, p.begin, first, p.row_end);
    const Weights range(p.begin + first, count);
    const bool alike = (range.most - range.least) * count <= p.begin[first + count] - p.begin[first];
    // Products of many positions have work enough in two rows, and lose more by an order than they wait without.
    if (p.width > 2 * kLanes<T> || (p.width > 1 && alike)) {
      multiply_from<T, I, kMaxVectors>(p, 0, Consecutive{first}, count);
    } else {
      if (alike) count = rows_of(kAlike, p.begin, first, p.row_end);
      int32_t order[kUnlike.rows];
      order_rows(p.begin, first, count, range, order);
      if (p.width == 1) {
        multiply_single(p, order, count, p.begin[first + count]);
      } else {
        multiply_from<T, I, kMaxVectors>(p, 0, static_cast<const int32_t*>(order), count);
      }
    }
    first += count;
  }
}

// Weights whose dot products run side by side: enough independent sums to hide the latency of one addition.
constexpr int kGroup = 8;

// Lane i of the result is the sum of lanes 2i and 2i + 1 of a and b taken as one long vector.
template <class T, int... kLane>
inline typename Lanes<T>::Vector add_pairs(const typename Lanes<T>::Vector& a, const typename Lanes<T>::Vector& b,
                                           LaneList<kLane...>) {
  return shuffle<T, RSN2_VECTOR_BYTES, (2 * kLane)...>(a, b) + shuffle<T, RSN2_VECTOR_BYTES, (2 * kLane + 1)...>(a, b);
}

// Folds kVectors vectors, whose sums spread over kSpread lanes each, until every sum is one lane. Adding neighbours
// keeps the sums in order and gives each the same tree of additions, whatever its place in the group. The recursion
// is over constants so that the vectors stay in registers. Returns how many vectors are left.
template <class T, int kVectors, int kSpread>
inline __attribute__((always_inline)) int fold(typename Lanes<T>::Vector* sums) {
  if constexpr (kSpread == 1) {
    return kVectors;
  } else {
    constexpr int kHalf = kVectors > 1 ? kVectors / 2 : 1;
    const typename MakeLaneList<kLanes<T>>::Type lanes;
    for (int i = 0; i < kHalf; ++i) sums[i] = add_pairs<T>(sums[2 * i], sums[kVectors > 1 ? 2 * i + 1 : 0], lanes);
    return fold<T, kHalf, kSpread / 2>(sums);
  }
}

template <class T, class I>
void sample_wide(const SampledProduct<T, I>& p) {
  int64_t r = p.row_begin;
  for (int64_t k = p.k_begin; k < p.k_end;) {
    while (p.begin[r + 1] <= k) ++r;
    const int64_t row_end = p.begin[r + 1] < p.k_end ? p.begin[r + 1] : p.k_end;
    const T* const row = p.rows + r * p.row_stride;
    for (; k < row_end; k += kGroup) {
      const int count = row_end - k < kGroup ? static_cast<int>(row_end - k) : kGroup;
      const T* feature[kGroup];
      typename Lanes<T>::Vector sums[kGroup] = {};
      // A short group repeats its last weight, so that the loop below has one shape.
      for (int j = 0; j < kGroup; ++j) feature[j] = p.panel + p.index[k + (j < count ? j : count - 1)] * p.index_scale;
      for (int64_t q = 0; q < p.width; q += kLanes<T>) {
        const typename Lanes<T>::Vector factor = load(row + q);
        for (int j = 0; j < kGroup; ++j) sums[j] = multiply_add(factor, load(feature[j] + q), sums[j]);
      }
      T totals[kGroup > kLanes<T> ? kGroup : kLanes<T>];
      const int left = fold<T, kGroup, kLanes<T>>(sums);
      for (int i = 0; i < left; ++i) store(totals + i * kLanes<T>, sums[i]);
      for (int j = 0; j < count; ++j) p.out[k + j] += totals[j];
    }
    k = row_end;
  }
}

// The sum of one product each: a row of the outer product of dy and x, where it is owned.
template <class T, class I>
void sample_one(const SampledProduct<T, I>& p) {
  int64_t r = p.row_begin;
  for (int64_t k = p.k_begin; k < p.k_end; ++r) {
    const int64_t row_end = p.begin[r + 1] < p.k_end ? p.begin[r + 1] : p.k_end;
    const T factor = p.rows[r * p.row_stride];
    for (; k < row_end; ++k) p.out[k] = multiply_add(factor, p.panel[p.index[k]], p.out[k]);
  }
}

template <class T, class I>
void sample(const SampledProduct<T, I>& p) {
  if (p.width == 1) {
    sample_one(p);
  } else {
    sample_wide(p);
  }
}

// The first k in [begin, end) whose index is at least `least`.
template <class I>
int64_t first_from(const I* index, int64_t begin, int64_t end, int64_t least) {
  if (least == 0) return begin;
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (index[middle] < least) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// A row's values are read in order, its results lie in a cache: nothing waits for memory but the first row.
template <class T, class I, int kVectors>
void scatter_rows(const ScatteredProduct<T, I>& p) {
  constexpr int64_t kWidth = kVectors == 0 ? 1 : kVectors * kLanes<T>;
  // In locals, because for all the compiler knows a store could change what p points to.
  T* const out = p.out;
  const T* const values = p.values;
  const I* const index = p.index;
  const int64_t index_end = p.index_end;
  for (int64_t r = 0; r < p.row_count; ++r) {
    const T* const row = p.rows + r * kWidth;
    const int64_t end = p.begin[r + 1];
    for (int64_t k = first_from(index, p.begin[r], end, p.index_begin); k < end && index[k] < index_end; ++k) {
      T* const target = out + index[k] * kWidth;
      if constexpr (kVectors == 0) {
        *target = multiply_add(values[k], *row, *target);
      } else {
        for (int i = 0; i < kVectors; ++i) {
          const typename Lanes<T>::Vector sum = load(target + i * kLanes<T>), factor = load(row + i * kLanes<T>);
          store(target + i * kLanes<T>, multiply_add(broadcast(values[k]), factor, sum));
        }
      }
    }
  }
}

template <class T, class I>
void scatter(const ScatteredProduct<T, I>& p) {
  if (p.width == 1) {
    scatter_rows<T, I, 0>(p);
  } else {
    scatter_rows<T, I, 64 / RSN2_VECTOR_BYTES>(p);
  }
}

// Exchanges the off-diagonal halves of every 2 * kHalf lanes of two rows that stand kHalf apart.
template <class T, int kHalf, int... kLane>
inline __attribute__((always_inline)) void exchange(typename Lanes<T>::Vector& upper, typename Lanes<T>::Vector& lower,
                                                    LaneList<kLane...>) {
  const typename Lanes<T>::Vector a = upper, b = lower;
  upper = shuffle<T, RSN2_VECTOR_BYTES, ((kLane & kHalf) == 0 ? kLane : kLane - kHalf + kLanes<T>)...>(a, b);
  lower = shuffle<T, RSN2_VECTOR_BYTES, ((kLane & kHalf) == 0 ? kLane + kHalf : kLane + kLanes<T>)...>(a, b);
}

// Transposes a square of registers in place: its quarters, then their quarters, and so on.
template <class T, int kHalf>
inline __attribute__((always_inline)) void transpose_square(typename Lanes<T>::Vector* rows) {
  const typename MakeLaneList<kLanes<T>>::Type lanes;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) {
    if ((i & kHalf) == 0) exchange<T, kHalf>(rows[i], rows[i + kHalf], lanes);
  }
  if constexpr (kHalf > 1) transpose_square<T, kHalf / 2>(rows);
}

// Whole registers in both directions: a cache line is read once and written once, whatever the strides alias.
template <class T>
void transpose(const Transposition<T>& t) {
  constexpr int64_t kSide = kLanes<T>;
  const int64_t whole_rows = t.rows / kSide * kSide, whole_cols = t.cols / kSide * kSide;
  for (int64_t c = 0; c < whole_cols; c += kSide) {
    for (int64_t r = 0; r < whole_rows; r += kSide) {
      typename Lanes<T>::Vector square[kSide];
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) square[i] = load(t.source + (r + i) * t.source_stride + c);
      transpose_square<T, kSide / 2>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) store(t.target + (c + i) * t.target_stride + r, square[i]);
    }
  }
  for (int64_t c = 0; c < t.cols; ++c) {
    for (int64_t r = c < whole_cols ? whole_rows : 0; r < t.rows; ++r) {
      t.target[c * t.target_stride + r] = t.source[r * t.source_stride + c];
    }
  }
}

// A run's last register overlaps the one before it: no scalar tail.
template <class T>
void copy_runs(const RunCopy<T>& c) {
  for (int64_t i = 0; i < c.count; ++i) {
    const Run& run = c.runs[i];
    const T* const source = c.source + run.source;
    T* const target = c.target + run.target;
    const int64_t last = run.cells - kLanes<T>;
    if (last < 0) {
      for (int64_t q = 0; q < run.cells; ++q) target[q] = source[q];
    } else {
      for (int64_t q = 0; q < last; q += kLanes<T>) store(target + q, load(source + q));
      store(target + last, load(source + last));
    }
    for (int64_t q = run.cells; q < run.cells + run.zeros; ++q) target[q] = T{0};
  }
}

}  // namespace

#define RSN2_STRING(text) #text
#define RSN2_NAME(text) RSN2_STRING(text)

const Microkernels microkernels = {
    RSN2_NAME(RSN2_ISA),
    {multiply<float, int32_t>, sample<float, int32_t>, scatter<float, int32_t>},
    {multiply<float, uint16_t>, sample<float, uint16_t>, scatter<float, uint16_t>},
    {multiply<double, int32_t>, sample<double, int32_t>, scatter<double, int32_t>},
    {multiply<double, uint16_t>, sample<double, uint16_t>, scatter<double, uint16_t>},
    {transpose<float>, copy_runs<float>},
    {transpose<double>, copy_runs<double>},
};

}  // namespace rsn2::cpu::RSN2_ISA
