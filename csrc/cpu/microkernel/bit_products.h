// Products on few positions by the bits of a mask.
#pragma once

#include "bits.h"

#if defined(__AVX2__)
namespace rsn2::cpu::RSN2_ISA {
namespace {

// A number that is known when compiled.
template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// Values beyond which memory is asked ahead: fewer are in a cache, where asking costs more than it saves.
constexpr int64_t kCachedValues = 1 << 19;
// How far ahead gradients are asked for: later than memory answers, and few enough for the second-level cache.
constexpr int64_t kResultsAhead = 1024;

constexpr int kRegisters = kLanes<float> == 16 ? 32 : 16;

// Rows that pass side by side, so that what a column's products have in common is read once; and registers of a word's
// columns that are summed in one pass over the words: as many as leave all sums in registers.
template <int kPositions>
constexpr int kProductRows = kPositions == 1 ? 4 : kRegisters / 16;
template <int kPositions>
constexpr int kAtOnce = kPositions == 1 ? kSpreads : 8 / kPositions;
// Likewise, with a register for each position's element of each row.
template <int kPositions>
constexpr int kScatterRows = kPositions * 4 < kRegisters / 2 ? 4 : kRegisters / 2 / kPositions;
// Rows that a pass goes over: as many as make it find its share of x in the first-level cache, and as few as let the next
// pass find their values in the second-level one.
constexpr int64_t kPassRows = 16;

// Runs rows(r, count, edge) as for_rows does, for kRows rows at a time (a constant) or one.
template <class S, int kRows, class Rows>
inline __attribute__((always_inline)) void for_rows_together(const int32_t* begin, int64_t first, int64_t last,
                                                             int64_t end, const Rows& rows) {
  Edge<S, true> inside;
  int64_t r = first;
  for (; r + kRows <= last && int64_t{begin[r + kRows]} + kWord <= end; r += kRows) rows(r, Count<kRows>{}, inside);
  for_rows<S>(begin, r, last, end, [&](int64_t row, auto& edge) { rows(row, Count<1>{}, edge); });
}

// Where register j of a word's columns is, of position 0, laid out by quarters; position b's is b * kQuarter behind it.
template <int kPositions>
inline __attribute__((always_inline)) int64_t place_of(int64_t row_words, int64_t word, int j) {
  const int64_t column = j * kLanes<float>;
  return (column / kQuarter * row_words + word) * kPositions * kQuarter + column % kQuarter;
}

inline __attribute__((always_inline)) float sum_of(const Lanes<float>::Vector& vector) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(vector);
#else
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(vector), _mm256_extractf128_ps(vector, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#endif
}

template <int kPositions, class S>
void multiply_bits(const BitProduct<S>& p) {
  constexpr int kOnce = kAtOnce<kPositions>;
  const bool is_large = p.nnz > kCachedValues;
  const int64_t row_words = p.mask.row_words;
  for (int64_t begin = p.row_begin; begin < p.row_end; begin += kPassRows) {
    const int64_t end = begin + kPassRows < p.row_end ? begin + kPassRows : p.row_end;
    Lanes<float>::Vector totals[kPassRows][kPositions] = {};
#pragma GCC unroll 8
    for (int first = 0; first < kSpreads; first += kOnce) {
      for_rows_together<S, kProductRows<kPositions>>(p.mask.begin, begin, end, p.nnz, [&](int64_t r, auto rows, auto& edge) {
        constexpr int kRows = rows.value;
        const uint64_t* const words = p.mask.words + r * row_words;
        const S *ahead = p.values + p.mask.begin[r + kRows], *values[kRows];
        Lanes<float>::Vector sums[kRows][kPositions][kOnce] = {};
        for (int i = 0; i < kRows; ++i) values[i] = p.values + p.mask.begin[r + i];
        for (int64_t w = 0; w < row_words; ++w) {
          if (is_large && first == 0) ask_for<1, 2>(words + kRows * (row_words + w));
#pragma GCC unroll 4
          for (int i = 0; i < kRows; ++i) {
            const uint64_t word = words[i * row_words + w];
            const S* const own = edge.read(values[i], p.values + p.nnz - values[i]);
#pragma GCC unroll 8
            for (int j = 0; j < kOnce; ++j) {
              const Lanes<float>::Vector weights = spread(own, word, first + j);
              const float* const x = p.x + place_of<kPositions>(row_words, w, first + j);
#pragma GCC unroll 8
              for (int b = 0; b < kPositions; ++b) {
                sums[i][b][j] = multiply_add(weights, load(x + b * kQuarter), sums[i][b][j]);
              }
            }
            const int64_t count = __builtin_popcountll(word);
            values[i] += count;
            if (is_large && first == 0) ask_for<2, 2>(ahead += count);
          }
        }
        // One after the other, whatever is summed at once: so a position's sum is the same among few and many.
        for (int i = 0; i < kRows; ++i) {
          for (int b = 0; b < kPositions; ++b) {
#pragma GCC unroll 8
            for (int j = 0; j < kOnce; ++j) totals[r - begin + i][b] += sums[i][b][j];
          }
        }
      });
    }
    for (int64_t r = begin; r < end; ++r) {
      for (int b = 0; b < kPositions; ++b) {
        p.out[b * p.out_stride + r - p.row_begin] = sum_of(totals[r - begin][b]) + (p.bias ? p.bias[r] : 0.0f);
      }
    }
  }
}

template <int kPositions, class S>
void scatter_bits(const BitScatter<S>& p) {
  const bool is_large = p.nnz > kCachedValues;
  const int64_t row_words = p.mask.row_words;
  for_rows_together<S, kScatterRows<kPositions>>(
      p.mask.begin, 0, p.row_count, p.nnz, [&](int64_t r, auto rows, auto& edge) {
        constexpr int kRows = rows.value;
        const uint64_t* const words = p.mask.words + r * row_words;
        const S *ahead = p.values + p.mask.begin[r + kRows], *values[kRows];
        Lanes<float>::Vector factors[kPositions][kRows];
        for (int i = 0; i < kRows; ++i) {
          values[i] = p.values + p.mask.begin[r + i];
          for (int b = 0; b < kPositions; ++b) factors[b][i] = broadcast(p.rows[b * p.row_count + r + i]);
          for (int64_t w = 0; w < p.word_begin; ++w) values[i] += __builtin_popcountll(words[i * row_words + w]);
        }
        for (int64_t w = p.word_begin, end = p.word_end; w < end; ++w) {
          if (is_large) ask_for<1, 2>(words + kRows * (row_words + w));
#pragma GCC unroll 8
          for (int j = 0; j < kSpreads; ++j) {
            Lanes<float>::Vector weights[kRows];
#pragma GCC unroll 4
            for (int i = 0; i < kRows; ++i) {
              weights[i] = spread(edge.read(values[i], p.values + p.nnz - values[i]), words[i * row_words + w], j);
            }
#pragma GCC unroll 8
            for (int b = 0; b < kPositions; ++b) {
              float* const out = p.out + place_of<kPositions>(row_words, w, j) + b * kQuarter;
              Lanes<float>::Vector sum = load(out);
#pragma GCC unroll 4
              for (int i = 0; i < kRows; ++i) sum = multiply_add(weights[i], factors[b][i], sum);
              store(out, sum);
            }
          }
#pragma GCC unroll 4
          for (int i = 0; i < kRows; ++i) {
            const int64_t count = __builtin_popcountll(words[i * row_words + w]);
            values[i] += count;
            if (is_large) ask_for<2, 2>(ahead += count);
          }
        }
      });
}

template <int kPositions, class S>
void sample_bits(const BitSample<S>& p) {
  const int64_t row_words = p.mask.row_words, end = p.mask.begin[p.row_end];
  const bool is_large = end - p.mask.begin[p.row_begin] > kCachedValues;
  const SumPacker packer(p.mask, p.row_begin, p.row_end);
  S* const last = p.out + end;
  for_rows<S>(p.mask.begin, p.row_begin, p.row_end, end, [&](int64_t r, auto& edge) {
    const uint64_t* const words = p.mask.words + r * row_words;
    S* target = p.out + p.mask.begin[r];
    Lanes<float>::Vector factors[kPositions];
    for (int b = 0; b < kPositions; ++b) factors[b] = broadcast(p.rows[b * p.row_count + r]);
    for (int64_t w = 0; w < row_words; ++w) {
      alignas(64) float sums[kWord];
#pragma GCC unroll 8
      for (int j = 0; j < kSpreads; ++j) {
        const float* const columns = p.x + place_of<kPositions>(row_words, w, j);
        Lanes<float>::Vector sum = factors[0] * load(columns);
#pragma GCC unroll 8
        for (int b = 1; b < kPositions; ++b) sum = multiply_add(factors[b], load(columns + b * kQuarter), sum);
        store(sums + j * kLanes<float>, sum);
      }
      const int64_t there = last - target, count = __builtin_popcountll(words[w]);
      packer.pack(sums, words[w], edge.write(target, there));
      edge.finish(target, there, count);
      if (is_large) ask_for<2, 2>(target + kResultsAhead);
      target += count;
    }
  });
}

// Calls body with the number of positions as a constant.
template <class Body>
inline void with_positions(int64_t positions, const Body& body) {
  switch (positions) {
    case 1: return body(Count<1>{});
    case 2: return body(Count<2>{});
    case 4: return body(Count<4>{});
    default: return body(Count<8>{});
  }
}

template <class S>
constexpr BitProducts<S> bit_products() {
  return {
      [](const BitProduct<S>& p) { with_positions(p.positions, [&](auto count) { multiply_bits<count.value>(p); }); },
      [](const BitScatter<S>& p) { with_positions(p.positions, [&](auto count) { scatter_bits<count.value>(p); }); },
      [](const BitSample<S>& p) { with_positions(p.positions, [&](auto count) { sample_bits<count.value>(p); }); },
  };
}

// From here on bits take less time than indices for 1000 x 1000 (Zen 5; for one position also for 4096 x 4096).
#if defined(__AVX512VBMI2__)
constexpr BitWorth kForwardWorth = {7, 12, 7, 3}, kDxWorth = {14, 20, 14, 6}, kDvaluesWorth = {26, 32, 20, 10};
#elif defined(__AVX512F__)
constexpr BitWorth kForwardWorth = {4, 10, 7, 3}, kDxWorth = {11, 15, 14, 6}, kDvaluesWorth = {12, 17, 12, 7};
#else
constexpr BitWorth kForwardWorth = {3, 7, 4, 2}, kDxWorth = {11, 17, 10, 4}, kDvaluesWorth = {7, 13, 8, 5};
#endif

constexpr BitKernels kBitKernels = {
    kForwardWorth,
    kDxWorth,
    kDvaluesWorth,
    bit_products<float>(),
    bit_products<Half>(),
    bit_products<BFloat16>(),
    {expand_bits<float>, gather_bits<float>},
    {expand_bits<uint16_t>, gather_bits<uint16_t>},
};

}  // namespace
}  // namespace rsn2::cpu::RSN2_ISA
#endif
