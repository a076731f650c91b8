// Weights where the bits of a mask say that they stand: registers of neighbouring columns, and copies into and out of dense
// rows.
//
// From some density on it is quicker to put the weights of neighbouring columns where they belong in a register than to
// look each weight's feature up. The work is that of all columns, whatever the density.
#pragma once

#include "../microkernel.h"
#include "vectors.h"

#if defined(__AVX2__)
namespace rsn2::cpu::RSN2_ISA {
namespace {

constexpr int kWord = 64;  // columns of a word: what stands together is at most so much

// For each octet of bits: which of the packed values belongs to each of its eight columns, and which column each of the
// packed values. kNone where there is none: a shuffle of bytes makes 0 of it, and other shuffles can be told to.
constexpr uint8_t kNone = 0x90;
struct Places {
  uint8_t value[256][8], column[256][8];
  uint8_t value_bytes[256][16], column_bytes[256][16];  // the same for elements of two bytes
  // Two octets' values are those of the first octet plus those of the second, which come behind the first one's.
  uint8_t first_value[256][16], second_value[256][16];
};
constexpr Places make_places() {
  Places places{};
  for (int bits = 0; bits < 256; ++bits) {
    int count = 0;
    for (int i = 0; i < 8; ++i) {
      const bool owned = bits >> i & 1;
      places.value[bits][i] = static_cast<uint8_t>(owned ? count : kNone);
      places.first_value[bits][i] = places.second_value[bits][8 + i] = places.value[bits][i];
      if (owned) places.column[bits][count++] = static_cast<uint8_t>(i);
    }
    for (int i = 8; i < 16; ++i) places.first_value[bits][i] = static_cast<uint8_t>(count);
    for (int i = 0; i < 16; ++i) {
      const uint8_t value = places.value[bits][i / 2], column = places.column[bits][i / 2];
      places.value_bytes[bits][i] = static_cast<uint8_t>(value == kNone ? kNone : 2 * value + i % 2);
      places.column_bytes[bits][i] = static_cast<uint8_t>(2 * column + i % 2);
    }
  }
  return places;
}
alignas(64) constexpr Places kPlaces = make_places();

// Bits of a word below `column`.
inline int64_t count_below(uint64_t word, int column) {
  return column == 0 ? 0 : __builtin_popcountll(word << (kWord - column));
}
inline int octet(uint64_t word, int i) { return static_cast<int>(word >> 8 * i & 0xFF); }
inline __m128i eight_bytes(const uint8_t* bytes) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)); }
inline __m128i all_bytes(const uint8_t* bytes) { return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes)); }

// A register of neighbouring elements as floats, and eight floats as elements, rounded to nearest even.
inline Lanes<float>::Vector load_wide(const float* source) { return load(source); }
inline void store_eight(float* target, __m256 value) { _mm256_storeu_ps(target, value); }
inline void store_eight(Half* target, __m256 value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store_eight(BFloat16* target, __m256 value) {
  const __m256i bits = _mm256_castps_si256(value), last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), last);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i kept = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7FC0), nan);
  const __m128i narrow = _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), narrow);
}
#if defined(__AVX512F__)
inline __m512 load_wide(const Half* source) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}
inline __m512 load_wide(const BFloat16* source) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
#else
inline __m256 load_wide(const Half* source) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
}
inline __m256 load_wide(const BFloat16* source) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
#endif

#if defined(__AVX512VBMI2__)
// first + i / kEach.
template <int kEach>
inline __m512i bytes_from(int first) {
  struct Bytes {
    alignas(kWord) uint8_t of[kWord];
  };
  static constexpr Bytes kBytes = [] {
    Bytes bytes{};
    for (int i = 0; i < kWord; ++i) bytes.of[i] = static_cast<uint8_t>(i / kEach);
    return bytes;
  }();
  return _mm512_add_epi8(_mm512_load_si512(kBytes.of), _mm512_set1_epi8(static_cast<char>(first)));
}

// The numbers of the columns that a word owns, 0 behind the last; and for each column how many are owned before it.
inline __m512i owned_columns(uint64_t word) { return _mm512_maskz_compress_epi8(word, bytes_from<1>(0)); }
inline __m512i owned_before(uint64_t word) { return _mm512_maskz_expand_epi8(word, bytes_from<1>(0)); }

// Bytes 16 * kPart to 16 * kPart + 15 as 32 bits each, or 32 * kPart to 32 * kPart + 31 as 16: one shuffle, not two.
template <int kPart>
inline __m512i sixteen_of(__m512i bytes) {
  return _mm512_maskz_permutexvar_epi8(0x1111'1111'1111'1111, bytes_from<4>(16 * kPart), bytes);
}
template <int kPart>
inline __m512i half_of(__m512i bytes) {
  return _mm512_maskz_permutexvar_epi8(0x5555'5555'5555'5555, bytes_from<2>(32 * kPart), bytes);
}

inline void store_wide(float* target, __m512 value) { _mm512_storeu_ps(target, value); }
template <class S>
inline void store_wide(S* target, __m512 value) {
  store_eight(target, _mm512_castps512_ps256(value));
  store_eight(target + 8, _mm512_extractf32x8_ps(value, 1));
}
#endif

#if defined(__AVX512VPOPCNTDQ__)
// Lane c: bit c.
inline __m512i sixteen_bits() {
  return _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
#endif

// Register `i` of a word's columns: of `values`, which are the word's, each where its bit is, and 0 elsewhere.
template <class S>
inline __attribute__((always_inline)) Lanes<float>::Vector spread(const S* values, uint64_t word, int i) {
#if defined(__AVX512VPOPCNTDQ__)
  // A column's value comes behind as many as there are owned columns before it. 1000 x 1000 at density 0.2 takes 35 us, with
  // what is below 45 (Zen 5).
  const __m512i half = _mm512_set1_epi32(static_cast<int>(word >> 32 * (i / 2)));
  const __m512i own_bit = _mm512_slli_epi32(sixteen_bits(), i % 2 * 16);
  const __m512i below = _mm512_slli_epi32(_mm512_sub_epi32(sixteen_bits(), _mm512_set1_epi32(1)), i % 2 * 16);
  const __m512i places = _mm512_popcnt_epi32(_mm512_and_si512(half, below));
  return _mm512_maskz_permutexvar_ps(_mm512_test_epi32_mask(half, own_bit), places,
                                     load_wide(values + count_below(word, 16 * i)));
#elif defined(__AVX512F__)
  const __m512 own = load_wide(values + count_below(word, 16 * i));
  // An expansion takes Zen 4 and Zen 5 many cycles, and waits for other units than the loads and the shuffle below: with
  // both in turn Zen 4 multiplies 1000 x 1000 in 58 us, with either alone in 114 or 66.
  if (i % 2 == 0) return _mm512_maskz_expand_ps(static_cast<__mmask16>(word >> 16 * i), own);
  const __m128i places = _mm_add_epi8(all_bytes(kPlaces.first_value[octet(word, 2 * i)]),
                                      all_bytes(kPlaces.second_value[octet(word, 2 * i + 1)]));
  return _mm512_permutex2var_ps(own, _mm512_cvtepu8_epi32(places), _mm512_setzero_ps());
#else
  const __m256i places = _mm256_cvtepi8_epi32(eight_bytes(kPlaces.value[octet(word, i)]));
  const __m256 found = _mm256_permutevar8x32_ps(load_wide(values + count_below(word, 8 * i)), places);
  return _mm256_blendv_ps(found, _mm256_setzero_ps(), _mm256_castsi256_ps(places));
#endif
}
constexpr int kSpreads = kWord / kLanes<float>;

inline __attribute__((always_inline)) void spread_eight(const uint16_t* values, uint64_t word, int i, uint16_t* dense) {
  const __m128i places = all_bytes(kPlaces.value_bytes[octet(word, i)]);
  const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + count_below(word, 8 * i)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(dense + 8 * i), _mm_shuffle_epi8(own, places));
}

// Of eight columns those that are owned, side by side; garbage behind them.
inline __attribute__((always_inline)) __m256 packed_eight(const float* dense, uint64_t word, int i) {
  const __m256i places = _mm256_cvtepu8_epi32(eight_bytes(kPlaces.column[octet(word, i)]));
  return _mm256_permutevar8x32_ps(_mm256_loadu_ps(dense + 8 * i), places);
}

inline __attribute__((always_inline)) void pack_eight(const uint16_t* dense, uint64_t word, int i, uint16_t* values) {
  const __m128i places = all_bytes(kPlaces.column_bytes[octet(word, i)]);
  const __m128i columns = _mm_loadu_si128(reinterpret_cast<const __m128i*>(dense + 8 * i));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(values + count_below(word, 8 * i)), _mm_shuffle_epi8(columns, places));
}

// A word's elements are read and written whole. Where they are not all there, they pass through here; elsewhere, kInside,
// nothing is asked.
template <class S, bool kInside>
struct Edge {
  S elements[kWord];

  inline __attribute__((always_inline)) const S* read(const S* source, int64_t there) {
    if (kInside || there >= kWord) return source;
    for (int64_t i = 0; i < kWord; ++i) elements[i] = i < there ? source[i] : S{};
    return elements;
  }
  inline __attribute__((always_inline)) S* write(S* target, int64_t there) {
    return kInside || there >= kWord ? target : elements;
  }
  // Of what was written, `count` elements belong to the target.
  inline __attribute__((always_inline)) void finish(S* target, int64_t there, int64_t count) const {
    if (kInside || there >= kWord) return;
    for (int64_t i = 0; i < count; ++i) target[i] = elements[i];
  }
};

inline __attribute__((always_inline)) void spread_word(const float* values, uint64_t word, float* dense) {
#pragma GCC unroll 8
  for (int i = 0; i < kSpreads; ++i) store(dense + i * kLanes<float>, spread(values, word, i));
}
inline __attribute__((always_inline)) void spread_word(const uint16_t* values, uint64_t word, uint16_t* dense) {
#if defined(__AVX512VBMI2__)
  const __m512i first = _mm512_loadu_si512(values), last = _mm512_loadu_si512(values + 32), places = owned_before(word);
  const __mmask32 low = static_cast<__mmask32>(word), high = static_cast<__mmask32>(word >> 32);
  _mm512_storeu_si512(dense, _mm512_maskz_permutex2var_epi16(low, first, half_of<0>(places), last));
  _mm512_storeu_si512(dense + 32, _mm512_maskz_permutex2var_epi16(high, first, half_of<1>(places), last));
#else
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) spread_eight(values, word, i, dense);
#endif
}
template <class S>
inline __attribute__((always_inline)) void pack_word(const float* dense, uint64_t word, S* values) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) store_eight(values + count_below(word, 8 * i), packed_eight(dense, word, i));
}
inline __attribute__((always_inline)) void pack_word(const uint16_t* dense, uint64_t word, uint16_t* values) {
#if defined(__AVX512VBMI2__)
  const __m512i first = _mm512_loadu_si512(dense), last = _mm512_loadu_si512(dense + 32), columns = owned_columns(word);
  _mm512_storeu_si512(values, _mm512_permutex2var_epi16(first, half_of<0>(columns), last));
  _mm512_storeu_si512(values + 32, _mm512_permutex2var_epi16(first, half_of<1>(columns), last));
#else
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) pack_eight(dense, word, i, values);
#endif
}

// Packs the sums of a word's columns, which are in registers or soon will be. 1000 x 1000 of one position at density 0.2 / 0.5
// takes 32 / 50 us, with pack_word 55 / 57; copies out of memory are no quicker by it (Zen 5).
struct SumPacker {
  // So many of a word's columns are packed whether it owns them or not, that few words own more: a branch that nothing
  // foretells takes longer than it saves.
  int64_t anyway;

  SumPacker(const BitMask& mask, int64_t row_begin, int64_t row_end) {
    const auto words = static_cast<double>((row_end - row_begin) * mask.row_words);
    const double mean = (mask.begin[row_end] - mask.begin[row_begin]) / words;
    anyway = static_cast<int64_t>(mean + 1.2 * __builtin_sqrt(mean * (1 - mean / kWord)));
  }

  template <class S>
  inline __attribute__((always_inline)) void pack(const float* sums, uint64_t word, S* values) const {
#if defined(__AVX512VBMI2__)
    const __m512i columns = owned_columns(word);
    const int64_t owned = __builtin_popcountll(word), count = owned < anyway ? anyway : owned;
    pack_sixteen<0>(sums, columns, values);
    if (count > 16) pack_sixteen<1>(sums, columns, values);
    if (count > 32) pack_sixteen<2>(sums, columns, values);
    if (count > 48) pack_sixteen<3>(sums, columns, values);
#else
    pack_word(sums, word, values);
#endif
  }

#if defined(__AVX512VBMI2__)
 private:
  template <int kPart, class S>
  static inline __attribute__((always_inline)) void pack_sixteen(const float* sums, __m512i columns, S* values) {
    const __m512i own = sixteen_of<kPart>(columns);
    const __m512 low = _mm512_permutex2var_ps(load(sums), own, load(sums + 16));
    const __m512 high = _mm512_permutex2var_ps(load(sums + 32), own, load(sums + 48));
    store_wide(values + 16 * kPart, _mm512_mask_mov_ps(low, _mm512_test_epi32_mask(own, _mm512_set1_epi32(32)), high));
  }
#endif
};

// Runs row(r, edge) for the rows: those behind which a word of values has room before position `end`, then the others.
template <class S, class Row>
inline __attribute__((always_inline)) void for_rows(const int32_t* begin, int64_t first, int64_t last, int64_t end,
                                                    const Row& row) {
  Edge<S, true> inside;
  Edge<S, false> edge;
  int64_t r = first;
  for (; r < last && int64_t{begin[r + 1]} + kWord <= end; ++r) row(r, inside);
  for (; r < last; ++r) row(r, edge);
}

template <class S>
void expand_bits(const BitExpansion<S>& e) {
  const int64_t whole_words = e.cols / kWord, rest = e.cols % kWord;
  for_rows<S>(e.mask.begin, e.row_begin, e.row_end, e.nnz, [&](int64_t r, auto& edge) {
    const uint64_t* const words = e.mask.words + r * e.mask.row_words;
    S* const row = e.dense + r * e.cols;
    const S *values = e.values + e.mask.begin[r], *const end = e.values + e.nnz;
    for (int64_t w = 0; w < whole_words; ++w) {
      spread_word(edge.read(values, end - values), words[w], row + w * kWord);
      values += __builtin_popcountll(words[w]);
    }
    if (rest == 0) return;
    S last[kWord];
    spread_word(edge.read(values, end - values), words[whole_words], last);
    for (int64_t c = 0; c < rest; ++c) row[whole_words * kWord + c] = last[c];
  });
}

template <class S>
void gather_bits(const BitGather<S>& g) {
  const int64_t whole_words = g.cols / kWord, rest = g.cols % kWord, end = g.mask.begin[g.row_end];
  for_rows<S>(g.mask.begin, g.row_begin, g.row_end, end, [&](int64_t r, auto& edge) {
    const uint64_t* const words = g.mask.words + r * g.mask.row_words;
    const S* const row = g.dense + r * g.cols;
    S *target = g.values + g.mask.begin[r], *const last = g.values + end;
    const auto pack = [&](const S* dense, uint64_t word) __attribute__((always_inline)) {
      const int64_t there = last - target, count = __builtin_popcountll(word);
      pack_word(dense, word, edge.write(target, there));
      edge.finish(target, there, count);
      target += count;
    };
    for (int64_t w = 0; w < whole_words; ++w) pack(row + w * kWord, words[w]);
    if (rest == 0) return;
    S columns[kWord] = {};
    for (int64_t c = 0; c < rest; ++c) columns[c] = row[whole_words * kWord + c];
    pack(columns, words[whole_words]);
  });
}

}  // namespace
}  // namespace rsn2::cpu::RSN2_ISA
#endif
