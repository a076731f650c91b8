// Tests of csrc/cuda/gemv.cu and gemm.cu, executed by the emulator, against sums in double.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "../cuda/linear.h"
#include "../cuda/platform.h"
#include "../cuda/scalar.h"
#include "expect.h"
#include "memory.h"

namespace rsn2::test {
namespace {

using cuda::BFloat16;
using cuda::Half;

template <class T>
constexpr double kRoundoff = 0;
template <>
constexpr double kRoundoff<float> = 0x1p-24;
template <>
constexpr double kRoundoff<BFloat16> = 0x1p-8;
template <>
constexpr double kRoundoff<Half> = 0x1p-11;
template <class T>
const char* const kName = "float";
template <>
const char* const kName<BFloat16> = "bfloat16";
template <>
const char* const kName<Half> = "half";

struct Case {
  int stacks, rows, cols, batch;
  double density;
};

// A product with its operands in memory that a sanitizer guards, and the exact result.
template <class T>
class Problem {
 public:
  Problem(const Case& c, cuda::Activation activation, bool with_bias, unsigned seed)
      : case_(c), random_(seed), stride_((c.cols + 7) / 8 * 8) {
    const int segments = (c.cols + cuda::kSegment - 1) / cuda::kSegment;
    std::vector<T> values;
    std::vector<int32_t> starts;
    std::vector<int32_t> columns;
    dense_.resize(size_t(c.stacks) * c.rows * c.cols);
    for (int row = 0; row < c.stacks * c.rows; ++row) {
      // Rows differ much in what they own, some own nothing.
      const double density = c.density == 1.0 ? 1.0 : row % 3 == 2 ? 0.0 : std::min(1.0, c.density * (row % 3 + 0.5));
      for (int column = 0; column < segments * cuda::kSegment; ++column) {
        if (column % cuda::kSegment == 0) starts.push_back(static_cast<int32_t>(values.size()));
        if (column >= c.cols || std::uniform_real_distribution<>()(random_) >= density) continue;
        values.push_back(draw());
        dense_[size_t(row) * c.cols + column] = cuda::widen(values.back());
        columns.push_back(column);
      }
    }
    starts.push_back(static_cast<int32_t>(values.size()));
    std::vector<T> x;
    for (int i = 0; i < c.batch * stride_; ++i) {
      // The gaps between rows must not be read.
      x.push_back(i % stride_ < c.cols ? draw() : cuda::narrow<T>(std::numeric_limits<float>::quiet_NaN()));
    }
    if (c.batch > 0) x.resize(x.size() - (stride_ - c.cols));
    std::vector<T> bias;
    for (int i = 0; with_bias && i < c.stacks * c.rows; ++i) bias.push_back(draw());

    std::vector<uint16_t> bases;
    std::vector<uint8_t> offsets;
    for (size_t first = 0; first < columns.size(); first += cuda::kOctet) {
      bases.push_back(static_cast<uint16_t>(columns[first]));
      bool near = true;
      for (size_t k = first; k < first + cuda::kOctet; ++k) {
        const int further = k < columns.size() ? columns[k] - columns[first] : 0;
        near = near && further >= 0 && further < 256;
        offsets.push_back(static_cast<uint8_t>(further));
      }
      if (!near) offsets[first] = 1;
    }

    values_ = Memory<T>(values), starts_ = Memory<int32_t>(starts), x_ = Memory<T>(x), bias_ = Memory<T>(bias);
    columns_ = Memory<int32_t>(columns), bases_ = Memory<uint16_t>(bases), offsets_ = Memory<uint8_t>(offsets);
    product = {{values_.data(), columns_.data(), starts_.data(), bases_.data(), offsets_.data(),
                static_cast<int64_t>(values.size()), c.stacks, c.rows, c.cols, segments},
               x_.data(), stride_, c.batch, {with_bias ? bias_.data() : nullptr, activation}, nullptr};
  }

  // Runs the product and says whether it came out exact up to roundoff.
  template <class Run>
  std::vector<T> result(const Run& run) {
    Memory<T> y(size_t(case_.batch) * case_.rows);
    product.y = y.data();
    run(product);
    return y.values();
  }

  bool exact(const std::vector<T>& y, const std::vector<int64_t>& task_of_row = {}) const {
    for (int b = 0; b < case_.batch; ++b) {
      const int64_t stack = task_of_row.empty() ? 0 : task_of_row[b];
      for (int row = 0; row < case_.rows; ++row) {
        const double got = cuda::widen(y[size_t(b) * case_.rows + row]);
        if (stack < 0 || stack >= case_.stacks) {
          if (!std::isnan(got)) return false;
          continue;
        }
        const size_t weight_row = stack * case_.rows + row;
        const T* const bias = product.epilogue.bias;
        double sum = bias ? cuda::widen(bias[weight_row]) : 0.0, size = std::abs(sum);
        for (int column = 0; column < case_.cols; ++column) {
          const double term = dense_[weight_row * case_.cols + column] * cuda::widen(product.x[b * stride_ + column]);
          sum += term;
          size += std::abs(term);
        }
        switch (product.epilogue.activation) {
          case cuda::Activation::relu: sum = std::max(sum, 0.0); break;
          case cuda::Activation::gelu: sum *= 0.5 * (1.0 + std::erf(sum / std::sqrt(2.0))); break;
          case cuda::Activation::none: break;
        }
        const double allowed = kRoundoff<T> * std::abs(sum) + 1e-6 * size + 1e-6;
        if (!(std::abs(got - sum) <= allowed)) return false;
      }
    }
    return true;
  }

  cuda::Product<T> product;

 private:
  T draw() { return cuda::narrow<T>(std::normal_distribution<float>()(random_)); }

  Case case_;
  std::mt19937 random_;
  int stride_;
  std::vector<double> dense_;
  Memory<T> values_{0}, x_{0}, bias_{0};
  Memory<int32_t> columns_{0}, starts_{0};
  Memory<uint16_t> bases_{0};
  Memory<uint8_t> offsets_{0};
};

std::string described(const char* what, const char* type, const Case& c, const std::string& shape) {
  return std::string(what) + " of " + type + ", weight " + std::to_string(c.stacks) + " x " + std::to_string(c.rows) +
         " x " + std::to_string(c.cols) + ", density " + std::to_string(c.density) + ", batch " +
         std::to_string(c.batch) + ", " + shape;
}

bool same_bits(const auto& a, const auto& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0);
}

// The result is exact, and the same whatever the order in which threads and blocks run.
template <class T, class Run>
void check(Problem<T>& problem, const std::vector<int64_t>& task_of_row, const std::string& promise, const Run& run) {
  emulator::set_seed(1);
  const std::vector<T> first = problem.result(run);
  expect(problem.exact(first, task_of_row), promise + " is exact");
  emulator::set_seed(2);
  expect(same_bits(first, problem.result(run)), promise + " has no race");
}

template <class T>
void check_vectors(const Case& c, const cuda::VectorShape& shape, unsigned seed) {
  const auto activation = static_cast<cuda::Activation>(seed % 3);
  Problem<T> problem(c, activation, seed % 2, seed);
  const std::string text = "block " + std::to_string(shape.batch_block) + ", team " + std::to_string(shape.team) +
                           ", " + std::to_string(shape.passes) + " passes, chunks of " +
                           std::to_string(shape.chunk_segments);
  check(problem, {}, described("vectors", kName<T>, c, text), [&](const cuda::Product<T>& product) {
    cuda::multiply_vectors(product, nullptr, shape, nullptr);
  });
}

template <class T>
void check_tiles(const Case& c, const cuda::TileShape& shape, unsigned seed) {
  const auto activation = static_cast<cuda::Activation>(seed % 3);
  Problem<T> problem(c, activation, seed % 2, seed);
  Memory<float> partial(shape.splits > 1 ? size_t(shape.splits) * c.batch * c.rows : 0);
  const std::string text = "block " + std::to_string(shape.batch_block) + ", splits " + std::to_string(shape.splits);
  check(problem, {}, described("tiles", kName<T>, c, text), [&](const cuda::Product<T>& product) {
    cuda::multiply_tiles(product, shape, partial.data(), nullptr);
  });
}

template <class T>
void check_grouped(const Case& c, unsigned seed) {
  Problem<T> problem(c, cuda::Activation::none, seed % 2, seed);
  std::vector<int64_t> tasks;
  for (int b = 0; b < c.batch; ++b) tasks.push_back((b * 7 + seed) % (c.stacks + 2) - 1);
  Memory<int64_t> task_of_row(tasks);
  const cuda::VectorShape shape = cuda::vector_shape(problem.product.weight, c.batch, true, cuda::current_device());
  check(problem, tasks, described("grouped vectors", kName<T>, c, ""), [&](const cuda::Product<T>& product) {
    cuda::multiply_vectors(product, task_of_row.data(), shape, nullptr);
  });
}

// Shapes around every boundary of the kernels, each with one of the ways to share it out.
template <class T>
void check_all_vectors() {
  unsigned seed = 0;
  for (const auto& [rows, cols] : {std::pair{1, 1}, {3, 257}, {33, 130}, {5, 1100}}) {
    for (const double density : {0.0, 0.01, 0.04, 0.12, 0.3, 0.6, 0.9, 1.0}) {
      ++seed;
      const int block = cuda::kVectorBatches[seed % std::size(cuda::kVectorBatches)];
      const int most = (cols + cuda::kSegment - 1) / cuda::kSegment;
      int team = std::max(4, block) << seed % 4;
      if (seed % 5 == 0) team = cuda::kVectorThreads >> seed % 3;
      const int batch = block + static_cast<int>(seed % 3) - 1;
      check_vectors<T>({1, rows, cols, batch, density},
                       {block, team, 1 + static_cast<int>(seed % 2), std::max(1, most - static_cast<int>(seed % 2))},
                       seed);
    }
  }
  // As the host would share it out; columns that 16 bits do not tell.
  for (const auto& [batch, rows, cols] : {std::tuple{0, 70, 600}, {1, 70, 600}, {2, 70, 600}, {7, 70, 600},
                                          {19, 70, 600}, {1, 5, 70000}, {3, 2, 12000}}) {
    for (const double density : {0.005, 0.1}) {
      const Case c{1, rows, cols, batch, density};
      const Problem<T> problem(c, cuda::Activation::none, false, ++seed);
      check_vectors<T>(c, cuda::vector_shape(problem.product.weight, batch, false, cuda::current_device()), seed);
    }
  }
  for (const double density : {0.02, 0.25}) check_grouped<T>({3, 20, 300, 9, density}, ++seed);
}

template <class T>
void check_all_tiles() {
  unsigned seed = 100;
  for (const auto& [rows, cols] : {std::pair{1, 1}, {65, 257}, {130, 600}}) {
    for (const double density : {0.0, 0.04, 0.12, 0.3, 0.6, 1.0}) {
      ++seed;
      const int block = cuda::kTileBatches[seed % 4];
      const int segments = (cols + cuda::kSegment - 1) / cuda::kSegment;
      const int batch = block + static_cast<int>(seed % 3) - 1;
      check_tiles<T>({1, rows, cols, batch, density}, {block, 1 + static_cast<int>(seed) % segments}, seed);
    }
  }
  for (const int batch : {0, 9, 40, 129}) {
    const Case c{1, 70, 600, batch, 0.2};
    check_tiles<T>(c, cuda::tile_shape(c.rows, c.cols, batch, cuda::current_device()), ++seed);
  }
}

void run_all() {
  check_all_vectors<float>();
  check_all_vectors<BFloat16>();
  check_all_vectors<Half>();
  check_all_tiles<BFloat16>();
  check_all_tiles<Half>();
}

}  // namespace
}  // namespace rsn2::test

int main() {
  rsn2::test::run_all();
  if (rsn2::test::failures == 0) std::printf("all tests of the CUDA products passed\n");
  return rsn2::test::failures != 0;
}
