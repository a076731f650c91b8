// The inner products, compiled once per instruction set. The build defines
//   RSN2_ISA           the namespace of this copy
//   RSN2_VECTOR_BYTES  width of one register
//   RSN2_MAX_VECTORS   registers that hold one row's accumulators
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

// a * b + c, rounded as the compiler rounds it for vectors: once where there is an instruction for it. Told to choose,
// it would split the multiplications of a loop from the additions.
#if defined(__FMA__) || defined(__aarch64__)
inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
template <class T>
inline T multiply_add(T a, T b, T c) {
  return a * b + c;
}
#endif

// One row of a product on kVectors registers of positions.
template <class T, int kVectors>
struct Sums {
  typename Lanes<T>::Vector sum[kVectors];

  inline __attribute__((always_inline)) void start(T value) {
    for (int i = 0; i < kVectors; ++i) sum[i] = typename Lanes<T>::Vector{} + value;
  }
  inline __attribute__((always_inline)) void add(T value, const T* feature) {
    for (int i = 0; i < kVectors; ++i) sum[i] += value * load(feature + i * kLanes<T>);
  }
  inline __attribute__((always_inline)) void finish(T* out) const {
    for (int i = 0; i < kVectors; ++i) store(out + i * kLanes<T>, sum[i]);
  }
};

// kRows rows from r on, side by side: a row's sums wait for each other, the rows do not.
// Out of line, with what the inner loop needs in locals: otherwise gcc spills the loop's pointers.
template <class T, class I, int kVectors, int kRows>
__attribute__((noinline)) void multiply_rows(const Product<T, I>& p, int64_t q, int64_t row_begin, int64_t row_end) {
  const T* const panel = p.panel + q;
  const int64_t scale = p.index_scale;
  for (int64_t r = row_begin; r < row_end; r += kRows) {
    Sums<T, kVectors> sums[kRows];
    const T* value[kRows];
    const I* index[kRows];
    const int32_t* const begin = p.begin + r;
    int64_t common = begin[1] - begin[0];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      value[i] = p.values + begin[i];
      index[i] = p.index + begin[i];
      const int64_t count = begin[i + 1] - begin[i];
      common = count < common ? count : common;
      sums[i].start(p.bias ? p.bias[r + i] : T{0});
    }
    int64_t j = 0;
    for (; j < common; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) sums[i].add(value[i][j], panel + index[i][j] * scale);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const int64_t count = begin[i + 1] - begin[i];
      for (int64_t rest = j; rest < count; ++rest) sums[i].add(value[i][rest], panel + index[i][rest] * scale);
      sums[i].finish(p.out + (r + i - p.row_begin) * p.out_stride + q);
    }
  }
}

// All rows at kVectors registers of positions starting at q: the panel's part stays in cache while the rows pass.
template <class T, class I, int kVectors>
void multiply_block(const Product<T, I>& p, int64_t q) {
  constexpr int kRows = kVectors <= 2 ? 4 : kVectors == 4 ? 2 : 1;
  const int64_t grouped = p.row_end - (p.row_end - p.row_begin) % kRows;
  multiply_rows<T, I, kVectors, kRows>(p, q, p.row_begin, grouped);
  if constexpr (kRows > 1) multiply_rows<T, I, kVectors, 1>(p, q, grouped, p.row_end);
}

// Blocks of kVectors while they fit, then half as many: a width of one cache line costs one cache line.
template <class T, class I, int kVectors>
void multiply_from(const Product<T, I>& p, int64_t q) {
  constexpr int64_t kWidth = kVectors * kLanes<T>;
  for (; q + kWidth <= p.width; q += kWidth) multiply_block<T, I, kVectors>(p, q);
  if constexpr (kVectors > 1) multiply_from<T, I, kVectors / 2>(p, q);
}

// Rows of a product on a single position, four at a time, a row in each lane.
//
// Loads bound this product: for each weight one of its value and one of a feature. Four neighbouring values of four
// rows are four loads and a transposition instead of sixteen loads: 7 % faster at 4096 x 4096.
template <class T>
struct Quad {
  typedef T Vector __attribute__((vector_size(4 * sizeof(T))));
  typedef T Unaligned __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));

  static inline Vector load(const T* source) { return *reinterpret_cast<const Unaligned*>(source); }
  template <int... kSource>
  static inline __attribute__((always_inline)) Vector pick(const Vector& a, const Vector& b) {
    return shuffle<T, 4 * sizeof(T), kSource...>(a, b);
  }
  // sum + weights `step` of the four rows times their features.
  template <class I>
  static inline __attribute__((always_inline)) Vector add(const Vector& sum, const Vector& value, const T* panel,
                                                          const I* const* index, int64_t step) {
    const Vector feature = {panel[index[0][step]], panel[index[1][step]], panel[index[2][step]], panel[index[3][step]]};
    return sum + value * feature;
  }
};

template <class T, class I>
__attribute__((noinline)) void multiply_four_single(const Product<T, I>& p, int64_t r) {
  using Q = Quad<T>;
  const T* const panel = p.panel;
  const int32_t* const begin = p.begin + r;
  typename Q::Vector sum;
  const T* value[4];
  const I* index[4];
  int64_t common = begin[1] - begin[0];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    value[i] = p.values + begin[i];
    index[i] = p.index + begin[i];
    const int64_t count = begin[i + 1] - begin[i];
    common = count < common ? count : common;
    sum[i] = p.bias ? p.bias[r + i] : T{0};
  }
  int64_t j = 0;
  for (; j + 4 <= common; j += 4) {
    // As much of the next rows as this step takes of these.
    __builtin_prefetch(p.values + begin[4] + 4 * j);
    __builtin_prefetch(p.index + begin[4] + 4 * j);
    const typename Q::Vector a = Q::load(value[0] + j), b = Q::load(value[1] + j);
    const typename Q::Vector c = Q::load(value[2] + j), d = Q::load(value[3] + j);
    const auto low_ab = Q::template pick<0, 4, 1, 5>(a, b), low_cd = Q::template pick<0, 4, 1, 5>(c, d);
    const auto high_ab = Q::template pick<2, 6, 3, 7>(a, b), high_cd = Q::template pick<2, 6, 3, 7>(c, d);
    sum = Q::add(sum, Q::template pick<0, 1, 4, 5>(low_ab, low_cd), panel, index, j);
    sum = Q::add(sum, Q::template pick<2, 3, 6, 7>(low_ab, low_cd), panel, index, j + 1);
    sum = Q::add(sum, Q::template pick<0, 1, 4, 5>(high_ab, high_cd), panel, index, j + 2);
    sum = Q::add(sum, Q::template pick<2, 3, 6, 7>(high_ab, high_cd), panel, index, j + 3);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    T total = sum[i];
    const int64_t count = begin[i + 1] - begin[i];
    for (int64_t rest = j; rest < count; ++rest) total = multiply_add(value[i][rest], panel[index[i][rest]], total);
    p.out[(r + i - p.row_begin) * p.out_stride] = total;
  }
}

template <class T, class I>
void multiply_single(const Product<T, I>& p) {
  int64_t r = p.row_begin;
  for (; r + 4 <= p.row_end; r += 4) multiply_four_single(p, r);
  for (; r < p.row_end; ++r) {
    T sum = p.bias ? p.bias[r] : T{0};
    for (int64_t k = p.begin[r]; k < p.begin[r + 1]; ++k) sum = multiply_add(p.values[k], p.panel[p.index[k]], sum);
    p.out[(r - p.row_begin) * p.out_stride] = sum;
  }
}

template <class T, class I>
void multiply(const Product<T, I>& p) {
  if (p.width == 1) {
    multiply_single(p);
  } else {
    multiply_from<T, I, kMaxVectors>(p, 0);
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
        for (int j = 0; j < kGroup; ++j) sums[j] += factor * load(feature[j] + q);
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
    for (; k < row_end; ++k) p.out[k] += factor * p.panel[p.index[k]];
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
  T* const out = p.out;
  for (int64_t r = 0; r < p.row_count; ++r) {
    const T* const row = p.rows + r * kWidth;
    const int64_t end = p.begin[r + 1];
    for (int64_t k = first_from(p.index, p.begin[r], end, p.index_begin); k < end && p.index[k] < p.index_end; ++k) {
      T* const target = out + p.index[k] * kWidth;
      if constexpr (kVectors == 0) {
        *target = multiply_add(p.values[k], *row, *target);
      } else {
        for (int i = 0; i < kVectors; ++i) {
          const typename Lanes<T>::Vector sum = load(target + i * kLanes<T>);
          store(target + i * kLanes<T>, sum + p.values[k] * load(row + i * kLanes<T>));
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
