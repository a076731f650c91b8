// Tests of csrc/cuda/bits.cu, executed by the emulator, against loops over single bits.
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../cuda/bits.h"
#include "../cuda/platform.h"
#include "expect.h"
#include "memory.h"

namespace rsn2::test {
namespace {

struct Case {
  int64_t rows, cols;
  int percent;    // of the positions that are set
  size_t offset;  // of the mask from an address aligned to 64 bytes
};

void check(const Case& c) {
  const std::string name = std::to_string(c.rows) + " x " + std::to_string(c.cols) + ", " +
                           std::to_string(c.percent) + " %, offset " + std::to_string(c.offset);
  const int64_t per_row = cuda::words_per_row(c.cols), size = c.rows * per_row;
  std::mt19937_64 random(c.rows * 1000003 + c.cols * 101 + c.percent);
  std::vector<uint8_t> mask(c.rows * c.cols), as_stored(mask.size());
  std::vector<uint64_t> words(size);
  std::vector<int32_t> counts(size), columns;
  std::vector<int64_t> ends(size);
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t col = 0; col < c.cols; ++col) {
      if (static_cast<int>(random() % 100) >= c.percent) continue;
      mask[row * c.cols + col] = 1;
      words[row * per_row + col / 64] |= uint64_t{1} << col % 64;
      ++counts[row * per_row + col / 64];
      columns.push_back(static_cast<int32_t>(col));
    }
  }
  int64_t end = 0;
  for (int64_t i = 0; i < size; ++i) ends[i] = end += counts[i];
  // A bool that another library wrote may be any byte but 0.
  for (size_t i = 0; i < mask.size(); ++i) as_stored[i] = mask[i] ? uint8_t(1u << random() % 8) : uint8_t(0);

  const Memory<uint64_t> packed(size), stored_words(words);
  cuda::pack_bits(Memory<uint8_t>(as_stored, c.offset).data(), c.rows, c.cols, packed.data(), nullptr);
  expect(packed.values() == words, "pack_bits gives every bit and clean padding, " + name);

  const Memory<uint8_t> unpacked(mask.size());
  cuda::unpack_bits(stored_words.data(), c.rows, c.cols, unpacked.data(), nullptr);
  expect(unpacked.values() == mask, "unpack_bits is its inverse, " + name);
  if (c.cols % 64) {
    std::vector<uint64_t> dirty = words;
    for (int64_t row = 0; row < c.rows; ++row) dirty[(row + 1) * per_row - 1] |= ~uint64_t{0} << c.cols % 64;
    cuda::unpack_bits(Memory<uint64_t>(dirty).data(), c.rows, c.cols, unpacked.data(), nullptr);
    expect(unpacked.values() == mask, "unpack_bits ignores the padding, " + name);
  }

  const Memory<int32_t> counted(size);
  cuda::count_bits(stored_words.data(), size, counted.data(), nullptr);
  expect(counted.values() == counts, "count_bits counts each word, " + name);

  const Memory<int32_t> found(columns.size());
  cuda::columns_of_bits(stored_words.data(), Memory<int64_t>(ends).data(), c.rows, per_row, found.data(), nullptr);
  expect(found.values() == columns, "columns_of_bits lists the columns in row-major order, " + name);
}

void check_many_words() {
  const std::vector<uint64_t> words(600000, ~uint64_t{0});
  const Memory<int32_t> counts(words.size());
  cuda::count_bits(Memory<uint64_t>(words).data(), words.size(), counts.data(), nullptr);
  expect(counts.values() == std::vector<int32_t>(words.size(), 64), "count_bits counts every word of many");
}

}  // namespace
}  // namespace rsn2::test

int main() {
  using rsn2::test::check;
  for (const int64_t cols : {1, 2, 7, 15, 16, 17, 31, 63, 64, 65, 100, 128, 777, 1000}) {
    for (const int64_t rows : {1, 2, 3, 16, 33}) {
      for (const int percent : {0, 3, 50, 100}) check({rows, cols, percent, 0});
    }
  }
  // A mask may be a slice of a larger tensor, from any byte on.
  for (size_t offset = 0; offset < 17; ++offset) check({5, 77, 40, offset});
  check({1, 20000, 20, 0});
  check({3000, 3, 50, 0});
  // More than the threads of a launch take at once.
  check({65, (1 << 18) + 77, 20, 3});
  rsn2::test::check_many_words();
  check({2, 0, 0, 0});
  check({0, 5, 0, 0});
  if (rsn2::test::failures == 0) std::printf("all tests of bits passed\n");
  return rsn2::test::failures != 0;
}
