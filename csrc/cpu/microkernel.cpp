// The inner products, compiled once per instruction set. The build defines
//   RSN2_ISA           the namespace of this copy
//   RSN2_VECTOR_BYTES  width of one register
//   RSN2_MAX_VECTORS   registers that hold one row's accumulators
// No C++ standard header and no torch header may be included here: see simd.h.
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

// All rows at kVectors registers of positions starting at q: the panel's part stays in cache while the rows pass.
// Out of line, with what the inner loop needs in locals: otherwise gcc spills the loop's pointers.
template <class T, int kVectors>
__attribute__((noinline)) void multiply_block(const Product<T>& p, int64_t q) {
  const T* const panel = p.panel + q;
  const int64_t scale = p.index_scale;
  for (int64_t r = p.row_begin; r < p.row_end; ++r) {
    typename Lanes<T>::Vector sum[kVectors];
    const T start = p.bias ? p.bias[r] : T{0};
    for (int i = 0; i < kVectors; ++i) sum[i] = typename Lanes<T>::Vector{} + start;
    const T* value = p.values + p.begin[r];
    const T* const last = p.values + p.begin[r + 1];
    const int32_t* index = p.index + p.begin[r];
    for (; value != last; ++value, ++index) {
      const T* const feature = panel + *index * scale;
      for (int i = 0; i < kVectors; ++i) sum[i] += *value * load(feature + i * kLanes<T>);
    }
    T* const out = p.out + (r - p.row_begin) * p.out_stride + q;
    for (int i = 0; i < kVectors; ++i) store(out + i * kLanes<T>, sum[i]);
  }
}

// Blocks of kVectors while they fit, then half as many: a width of one cache line costs one cache line.
template <class T, int kVectors>
void multiply_from(const Product<T>& p, int64_t q) {
  constexpr int64_t kWidth = kVectors * kLanes<T>;
  for (; q + kWidth <= p.width; q += kWidth) multiply_block<T, kVectors>(p, q);
  if constexpr (kVectors > 1) multiply_from<T, kVectors / 2>(p, q);
}

template <class T>
void multiply(const Product<T>& p) {
  multiply_from<T, kMaxVectors>(p, 0);
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

template <class T>
void sample(const SampledProduct<T>& p) {
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

}  // namespace

#define RSN2_STRING(text) #text
#define RSN2_NAME(text) RSN2_STRING(text)

const Microkernels microkernels = {
    RSN2_NAME(RSN2_ISA), multiply<float>, multiply<double>, sample<float>, sample<double>,
};

}  // namespace rsn2::cpu::RSN2_ISA
