// Products of bfloat16 on several positions, with the instruction of AVX512-BF16 that multiplies pairs; and the kernels that
// go by bits, for processors that count them (AVX512-VPOPCNTDQ) and list them (AVX512-VBMI2): Zen 4, Sapphire Rapids and what
// came after them have all three.
//
// Each 32-bit lane adds the product of its upper halves, then that of its lower ones, rounding after each: with weights k
// and k + 1 in the upper and the lower halves, a sum runs in the order of k, as that of floats does. Numbers below the
// smallest normal one count as 0.
#pragma GCC diagnostic ignored "-Wpsabi"

#include <immintrin.h>

#include "microkernel.h"
#include "microkernel/bit_products.h"
#include "microkernel/product_wide.h"
#include "microkernel/sampled_product.h"

namespace rsn2::cpu::RSN2_ISA {
namespace {

inline __m512bh pairs(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }

// One row of a product on kVectors times 32 positions: what multiply_rows adds up.
template <class P, int kVectors>
struct PairSums {
  static constexpr int kPositions = kVectors * kLanes<P>;
  static constexpr int kSums = 2 * kVectors;
  static constexpr int kTogether = 2;

  // Of every eight positions the first four, and the others: as the features of two weights are interleaved.
  __m512 first[kVectors], second[kVectors];

  inline __attribute__((always_inline)) void start(float value) {
    for (int i = 0; i < kVectors; ++i) first[i] = second[i] = _mm512_set1_ps(value);
  }
  inline __attribute__((always_inline)) void resume(const float* out) {
    const __m512i lower = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    const __m512i upper = _mm512_setr_epi32(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    for (int i = 0; i < kVectors; ++i) {
      const __m512 low = _mm512_loadu_ps(out + i * kLanes<P>), high = _mm512_loadu_ps(out + i * kLanes<P> + kLanes<float>);
      first[i] = _mm512_permutex2var_ps(low, lower, high);
      second[i] = _mm512_permutex2var_ps(low, upper, high);
    }
  }
  template <class I>
  inline __attribute__((always_inline)) void add(const P* value, const I* index, const P* panel, int64_t scale) {
    uint32_t both;
    __builtin_memcpy(&both, value, sizeof both);
    const __m512bh factor = pairs(_mm512_set1_epi32(static_cast<int>(both << 16 | both >> 16)));
    const P* const upper = panel + index[0] * scale;
    const P* const lower = panel + index[1] * scale;
    for (int i = 0; i < kVectors; ++i) add(factor, loaded(upper, i), loaded(lower, i), i);
  }
  // A last weight without another: -0 * 0 added to a number is that number, -0 included.
  template <class I>
  inline __attribute__((always_inline)) void add_last(const P* value, const I* index, const P* panel, int64_t scale) {
    constexpr uint32_t kMinusZero = 0x8000;
    const __m512bh factor = pairs(_mm512_set1_epi32(static_cast<int>(uint32_t{*value} << 16 | kMinusZero)));
    const P* const upper = panel + *index * scale;
    for (int i = 0; i < kVectors; ++i) add(factor, loaded(upper, i), _mm512_setzero_si512(), i);
  }
  inline __attribute__((always_inline)) void finish(float* out) const {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < kVectors; ++i) {
      _mm512_storeu_ps(out + i * kLanes<P>, _mm512_permutex2var_ps(first[i], low, second[i]));
      _mm512_storeu_ps(out + i * kLanes<P> + kLanes<float>, _mm512_permutex2var_ps(first[i], high, second[i]));
    }
  }

 private:
  static inline __m512i loaded(const P* feature, int i) { return _mm512_loadu_si512(feature + i * kLanes<P>); }
  inline __attribute__((always_inline)) void add(__m512bh factor, __m512i upper, __m512i lower, int i) {
    first[i] = _mm512_dpbf16_ps(first[i], pairs(_mm512_unpacklo_epi16(lower, upper)), factor);
    second[i] = _mm512_dpbf16_ps(second[i], pairs(_mm512_unpackhi_epi16(lower, upper)), factor);
  }
};

template <class I>
void multiply(const Product<float, I, uint16_t>& p) {
  const auto several = [&](auto rows, int64_t count) { multiply_from<PairSums, kMaxVectors>(p, 0, rows, count); };
  in_blocks<kLanes<uint16_t>>(p, several, [&](const int32_t* rows, int64_t count, int64_t) { several(rows, count); });
}

template <class I>
void sample(const SampledProduct<float, I, uint16_t>& p) {
  sample_wide(p);
}

}  // namespace

bool adds_in_order() {
  // 1, to which 2^-24 adds nothing and 2^-23 adds one unit: the order shows, and whether each sum is rounded.
  const uint16_t one = 0x3F80, tiny = 0x3380, unit = 0x3400, minus_one = 0xBF80;
  const struct {
    uint16_t upper, lower;
    float start, sum;
  } cases[] = {
      {tiny, tiny, 1.0f, 1.0f},               // together they would be a unit
      {minus_one, tiny, 1.0f, 0x1.0p-24f},    // the other way round 0
      {tiny, minus_one, 1.0f, 0.0f},          // the other way round 2^-24
      {unit, unit, 1.0f, 1.0f + 0x1.0p-22f},  // both of them
  };
  for (const auto& each : cases) {
    const uint32_t both = uint32_t{each.upper} << 16 | each.lower, ones = uint32_t{one} << 16 | one;
    const __m512 sum = _mm512_dpbf16_ps(_mm512_set1_ps(each.start), pairs(_mm512_set1_epi32(static_cast<int>(both))),
                                        pairs(_mm512_set1_epi32(static_cast<int>(ones))));
    if (_mm512_cvtss_f32(sum) != each.sum) return false;
  }
  return true;
}

const Bfloat16Kernels kernels = {
    {multiply<int32_t>, sample<int32_t>},
    {multiply<uint16_t>, sample<uint16_t>},
};

const BitKernels bit_kernels = kBitKernels;

}  // namespace rsn2::cpu::RSN2_ISA
