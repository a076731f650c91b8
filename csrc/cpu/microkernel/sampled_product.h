// The gradients of the values: a dot product for each weight.
#pragma once

#include "../microkernel.h"
#include "vectors.h"

namespace rsn2::cpu::RSN2_ISA {
namespace {

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

template <class T, class I, class P>
void sample_wide(const SampledProduct<T, I, P>& p) {
  const bool apart = p.end != p.begin + 1;  // as for multiply_rows
  for (int64_t r = p.row_begin; r < p.row_end; ++r) {
    const int64_t first = p.begin[r] > p.k_begin ? p.begin[r] : p.k_begin;
    const int64_t row_end = p.end[r] < p.k_end ? p.end[r] : p.k_end;
    const P* const row = p.rows + r * p.row_stride;
    if (apart && r + 1 < p.row_end) {
      const int64_t next = p.begin[r + 1];
      ask_for<4>(p.out + next);
      ask_for<3>(p.index + next);
      for (int64_t q = 0; q < p.width; q += kLanes<P>) ask_for<1>(row + p.row_stride + q);
    }
    for (int64_t k = first; k < row_end; k += kGroup) {
      const int count = row_end - k < kGroup ? static_cast<int>(row_end - k) : kGroup;
      const P* feature[kGroup];
      typename Lanes<T>::Vector sums[kGroup] = {};
      // A short group repeats its last weight, so that the loop below has one shape.
      for (int j = 0; j < kGroup; ++j) feature[j] = p.panel + p.index[k + (j < count ? j : count - 1)] * p.index_scale;
      for (int64_t q = 0; q < p.width; q += kLanes<P>) {
        const typename Lanes<P>::Vector factor = load(row + q);
        for (int j = 0; j < kGroup; ++j) sums[j] = multiply_add(factor, load(feature[j] + q), sums[j]);
      }
      T totals[kGroup > kLanes<T> ? kGroup : kLanes<T>];
      const int left = fold<T, kGroup, kLanes<T>>(sums);
      for (int i = 0; i < left; ++i) store(totals + i * kLanes<T>, sums[i]);
      for (int j = 0; j < count; ++j) p.out[k + j] += totals[j];
    }
  }
}

// The sum of one product each: a row of the outer product of dy and x, where it is owned.
template <class T, class I>
void sample_one(const SampledProduct<T, I>& p) {
  for (int64_t r = p.row_begin; r < p.row_end; ++r) {
    const int64_t first = p.begin[r] > p.k_begin ? p.begin[r] : p.k_begin;
    const int64_t row_end = p.end[r] < p.k_end ? p.end[r] : p.k_end;
    const T factor = p.rows[r * p.row_stride];
    for (int64_t k = first; k < row_end; ++k) p.out[k] = multiply_add(factor, p.panel[p.index[k]], p.out[k]);
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

}  // namespace
}  // namespace rsn2::cpu::RSN2_ISA
