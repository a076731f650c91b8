// Problems for the tests and their answers from the definition, in loops over every weight position.
//
// A linear layer is a 1 x 1 convolution of 1 x 1 images, so one definition covers all operators.
#pragma once

#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace rsn2::test {

struct Problem {
  int64_t batch;
  int64_t groups, channels, rows;  // channels and rows per group
  int64_t height, width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  double density;

  int64_t all_channels() const { return groups * channels; }
  int64_t all_rows() const { return groups * rows; }
  int64_t cols() const { return channels * kernel[0] * kernel[1]; }
  int64_t output(int axis) const {
    const int64_t input = axis == 0 ? height : width;
    return (input + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) / stride[axis] + 1;
  }
};

inline Problem linear_problem(int64_t batch, int64_t rows, int64_t cols, double density) {
  return {batch, 1, cols, rows, 1, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, density};
}

// Small integers: every product and sum is exact in float, so operators must give equality in any order.
inline double small_integer(std::mt19937& random) { return static_cast<double>(static_cast<int>(random() % 9) - 4); }

inline double any_number(std::mt19937& random) { return std::normal_distribution<double>()(random); }

// A sparse weight in both orders.
struct Weight {
  std::vector<int32_t> crow, col;           // row-major
  std::vector<int32_t> crow_t, row_t, perm;  // column-major
  std::vector<double> values;

  int64_t nnz() const { return static_cast<int64_t>(col.size()); }

  // The positions as bits, 64 columns to a word.
  std::vector<uint64_t> words(int64_t cols) const {
    const int64_t row_words = (cols + 63) / 64, rows = static_cast<int64_t>(crow.size()) - 1;
    std::vector<uint64_t> bits(rows * row_words);
    for (int64_t r = 0; r < rows; ++r) {
      for (int32_t k = crow[r]; k < crow[r + 1]; ++k) bits[r * row_words + col[k] / 64] |= uint64_t{1} << col[k] % 64;
    }
    return bits;
  }

  // Some rows and some columns stay empty, as in real masks.
  template <class Draw>
  Weight(const Problem& p, std::mt19937& random, Draw draw) {
    std::bernoulli_distribution present(p.density), skipped(p.density < 1 ? 0.2 : 0.0);
    std::vector<bool> empty_column(p.cols());
    for (auto&& empty : empty_column) empty = skipped(random);
    crow.push_back(0);
    for (int64_t r = 0; r < p.all_rows(); ++r) {
      const bool empty_row = skipped(random);
      for (int64_t c = 0; c < p.cols(); ++c) {
        if (empty_row || empty_column[c] || !present(random)) continue;
        col.push_back(static_cast<int32_t>(c));
        values.push_back(draw(random));
      }
      crow.push_back(static_cast<int32_t>(nnz()));
    }
    crow_t.assign(p.cols() + 1, 0);
    for (const int32_t c : col) ++crow_t[c + 1];
    std::partial_sum(crow_t.begin(), crow_t.end(), crow_t.begin());
    row_t.resize(nnz());
    perm.resize(nnz());
    std::vector<int32_t> next(crow_t.begin(), crow_t.end() - 1);
    for (int64_t r = 0; r < p.all_rows(); ++r) {
      for (int32_t k = crow[r]; k < crow[r + 1]; ++k) {
        const int32_t place = next[col[k]]++;
        row_t[place] = static_cast<int32_t>(r);
        perm[place] = k;
      }
    }
  }
};

// Contiguous tensors, in torch's order.
struct Answer {
  std::vector<double> y, dx, dvalues;
};

inline Answer answer(const Problem& p, const Weight& weight, const std::vector<double>& x, const std::vector<double>& dy,
                     const std::vector<double>& bias) {
  const int64_t out_h = p.output(0), out_w = p.output(1);
  Answer a{std::vector<double>(dy.size()), std::vector<double>(x.size()), std::vector<double>(weight.col.size())};
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t r = 0; r < p.all_rows(); ++r) {
      for (int64_t q = 0; q < out_h * out_w; ++q) {
        const int64_t o = (n * p.all_rows() + r) * out_h * out_w + q;
        a.y[o] = bias.empty() ? 0 : bias[r];
        for (int32_t k = weight.crow[r]; k < weight.crow[r + 1]; ++k) {
          const int64_t c = weight.col[k] / (p.kernel[0] * p.kernel[1]);
          const int64_t i = weight.col[k] / p.kernel[1] % p.kernel[0], j = weight.col[k] % p.kernel[1];
          const int64_t h = q / out_w * p.stride[0] + i * p.dilation[0] - p.padding[0];
          const int64_t w = q % out_w * p.stride[1] + j * p.dilation[1] - p.padding[1];
          if (h < 0 || h >= p.height || w < 0 || w >= p.width) continue;
          const int64_t channel = r / p.rows * p.channels + c;
          const int64_t in = ((n * p.all_channels() + channel) * p.height + h) * p.width + w;
          a.y[o] += weight.values[k] * x[in];
          a.dx[in] += weight.values[k] * dy[o];
          a.dvalues[k] += dy[o] * x[in];
        }
      }
    }
  }
  return a;
}

}  // namespace rsn2::test
