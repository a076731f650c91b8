// Masks as bools, as bits and as column indices.
//
// Bit c % 64 of word c / 64 of a row holds column c; a row has ceil(cols / 64) words, and the bits past its last
// column are 0. All arrays are row-major without gaps. Everything is enqueued on `stream`; nothing waits.
#pragma once

#include <cstdint>

#include "types.h"

namespace rsn2::cuda {

inline constexpr int64_t kWordBits = 64;

inline constexpr int64_t words_per_row(int64_t cols) { return (cols + kWordBits - 1) / kWordBits; }

// mask [rows, cols], one byte each, 0 or not -> words [rows, words_per_row(cols)].
void pack_bits(const uint8_t* mask, int64_t rows, int64_t cols, uint64_t* words, cudaStream_t stream);

// The inverse; mask is aligned to 16 bytes. Bits past the last column are ignored.
void unpack_bits(const uint64_t* words, int64_t rows, int64_t cols, uint8_t* mask, cudaStream_t stream);

// counts[i]: the bits that are set in word i of `size`.
void count_bits(const uint64_t* words, int64_t size, int32_t* counts, cudaStream_t stream);

// The column of each bit that is set in words [rows, per_row], in row-major order.
// ends [rows, per_row]: the sum of the counts of all words up to and with this one; the last one is the size of col.
void columns_of_bits(const uint64_t* words, const int64_t* ends, int64_t rows, int64_t per_row, int32_t* col,
                     cudaStream_t stream);

}  // namespace rsn2::cuda
