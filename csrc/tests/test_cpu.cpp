// Tests of csrc/cpu without torch, for every instruction set this machine can execute.
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <thread>

#include "../cpu/conv2d.h"
#include "../cpu/expansion.h"
#include "../cpu/grouped.h"
#include "../cpu/isa.h"
#include "../cpu/linear.h"
#include "expect.h"
#include "numbers.h"
#include "reference.h"

namespace rsn2::test {
namespace {

// Every pass is cut, however small.
cpu::Parallel threads(int64_t count) {
  const auto run = [](int64_t slots, const std::function<void(int64_t)>& body) {
    std::vector<std::thread> workers;
    for (int64_t slot = 0; slot < slots; ++slot) workers.emplace_back(body, slot);
    for (std::thread& worker : workers) worker.join();
  };
  return cpu::Parallel(count, run, 1);
}

template <class S>
bool same_bits(const std::vector<S>& a, const std::vector<S>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(S)) == 0);
}

// Equal as numbers: +0 and -0 are the same answer.
template <class S>
bool same_numbers(const std::vector<S>& a, const std::vector<double>& b) {
  bool same = a.size() == b.size();
  for (size_t i = 0; same && i < a.size(); ++i) same = cpu::widen(a[i]) == cpu::widen(stored<S>(b[i]));
  return same;
}

// A tensor laid out in memory as asked, with NaN in the gaps: a kernel that reads one shows it.
enum class Strides { contiguous, channels_last, batch_last, gaps };
constexpr Strides kAllStrides[] = {Strides::contiguous, Strides::channels_last, Strides::batch_last, Strides::gaps};

template <class S>
struct Laid {
  std::vector<S> memory;
  cpu::ImagesView<S> view;

  Laid(const std::vector<double>& values, int64_t n, int64_t c, int64_t h, int64_t w, Strides strides) {
    switch (strides) {
      case Strides::contiguous: view = {nullptr, n, c, h, w, c * h * w, h * w, w, 1}; break;
      case Strides::channels_last: view = {nullptr, n, c, h, w, c * h * w, 1, c * w, c}; break;
      case Strides::batch_last: view = {nullptr, n, c, h, w, 1, h * w * n, w * n, n}; break;
      case Strides::gaps:
        view = {nullptr, n, c, h, w, (c + 1) * (h + 1) * (2 * w + 1), (h + 1) * (2 * w + 1), 2 * w + 1, 2};
        break;
    }
    const int64_t size = n && c && h && w ? (n - 1) * view.batch_stride + (c - 1) * view.channel_stride +
                                                (h - 1) * view.height_stride + (w - 1) * view.width_stride + 1
                                          : 0;
    memory.assign(size, stored<S>(std::numeric_limits<double>::quiet_NaN()));
    for (int64_t i = 0; i < static_cast<int64_t>(values.size()); ++i) {
      memory[i / (c * h * w) * view.batch_stride + i / (h * w) % c * view.channel_stride +
             i / w % h * view.height_stride + i % w * view.width_stride] = stored<S>(values[i]);
    }
    view.data = memory.data();
  }

  cpu::MatrixView<S> matrix() const {
    return {view.data, view.batch, view.channels, view.batch_stride, view.channel_stride};
  }
};

template <class S>
struct Results {
  std::vector<S> y, dx, dvalues;
};

// A problem with its data; results start as NaN so that an element left out is seen.
struct Case {
  Problem p;
  Weight weight;
  std::vector<double> x, dy, bias;

  template <class Draw>
  Case(const Problem& p, std::mt19937& random, Draw draw) : p(p), weight(p, random, draw) {
    for (int64_t i = 0; i < p.batch * p.all_channels() * p.height * p.width; ++i) x.push_back(draw(random));
    for (int64_t i = 0; i < p.batch * p.all_rows() * p.output(0) * p.output(1); ++i) dy.push_back(draw(random));
    if (random() % 2) {
      for (int64_t i = 0; i < p.all_rows(); ++i) bias.push_back(draw(random));
    }
  }

  // The same weight on images [first, first + count).
  Case slice(int64_t first, int64_t count) const {
    Case part = *this;
    part.p.batch = count;
    const int64_t x_size = p.all_channels() * p.height * p.width, dy_size = p.all_rows() * p.output(0) * p.output(1);
    part.x.assign(x.begin() + first * x_size, x.begin() + (first + count) * x_size);
    part.dy.assign(dy.begin() + first * dy_size, dy.begin() + (first + count) * dy_size);
    return part;
  }

  // I: of the indices of a linear product. with_words: whether it is given the mask as well.
  template <class S, class I = int32_t>
  Results<S> run(const cpu::Context& context, bool as_linear, Strides strides, bool with_words = false) const {
    const Laid<S> x_laid(x, p.batch, p.all_channels(), p.height, p.width, strides);
    const Laid<S> dy_laid(dy, p.batch, p.all_rows(), p.output(0), p.output(1), strides);
    const std::vector<S> values = stored<S>(weight.values), bias_s = stored<S>(bias);
    const S nan = stored<S>(std::numeric_limits<double>::quiet_NaN());
    Results<S> out{std::vector<S>(dy.size(), nan), std::vector<S>(x.size(), nan), std::vector<S>(values.size(), nan)};
    const S* const bias_data = bias_s.empty() ? nullptr : bias_s.data();
    const std::vector<I> col(weight.col.begin(), weight.col.end()), row_t(weight.row_t.begin(), weight.row_t.end());
    const cpu::Csr<int32_t> csr{p.all_rows(), weight.nnz(), weight.crow.data(), weight.col.data()};
    const cpu::TransposedCsr<int32_t> transposed{p.cols(), weight.nnz(), weight.crow_t.data(), weight.row_t.data(),
                                        weight.perm.data()};
    if (as_linear) {
      const std::vector<uint64_t> words = weight.words(p.cols());
      const cpu::Csr<I> by_row{csr.rows, csr.nnz, csr.crow, col.data(), with_words ? words.data() : nullptr,
                               (p.cols() + 63) / 64};
      const cpu::TransposedCsr<I> by_col{transposed.cols, transposed.nnz, transposed.crow, row_t.data(), transposed.perm};
      cpu::linear(context, x_laid.matrix(), values.data(), bias_data, by_row, out.y.data());
      cpu::linear_dx(context, dy_laid.matrix(), values.data(), by_row, by_col, out.dx.data());
      cpu::linear_dvalues(context, dy_laid.matrix(), x_laid.matrix(), by_row, out.dvalues.data());
    } else {
      const cpu::ConvShape shape{
          {p.height, p.output(0), p.kernel[0], p.stride[0], p.padding[0], p.dilation[0]},
          {p.width, p.output(1), p.kernel[1], p.stride[1], p.padding[1], p.dilation[1]},
          p.groups};
      cpu::conv2d(context, x_laid.view, values.data(), bias_data, csr, shape, out.y.data());
      cpu::conv2d_dx(context, dy_laid.view, values.data(), transposed, shape, out.dx.data());
      cpu::conv2d_dvalues(context, dy_laid.view, x_laid.view, csr, shape, out.dvalues.data());
    }
    return out;
  }
};

std::string describe(const char* isa, const std::string& type, const Problem& p) {
  const auto pair = [](const int64_t* v) { return std::to_string(v[0]) + "x" + std::to_string(v[1]); };
  return std::string(isa) + " " + type + " N" + std::to_string(p.batch) + " G" + std::to_string(p.groups) + " C" +
         std::to_string(p.channels) + " R" + std::to_string(p.rows) + " " + std::to_string(p.height) + "x" +
         std::to_string(p.width) + " k" + pair(p.kernel) + " s" + pair(p.stride) + " p" + pair(p.padding) + " d" +
         pair(p.dilation) + " density " + std::to_string(p.density);
}

template <class S>
void expect_the_definition(const cpu::Microkernels& kernels, const Problem& p, bool as_linear, std::mt19937& random) {
  const Case problem(p, random, small_integer);
  const Answer right = answer(p, problem.weight, problem.x, problem.dy, problem.bias);
  for (const Strides strides : kAllStrides) {
    const cpu::Context context{kernels, threads(3)};
    for (const bool with_words : {false, true}) {
      const Results<S> got = strides == Strides::gaps ? problem.run<S, uint16_t>(context, as_linear, strides, with_words)
                                                      : problem.run<S>(context, as_linear, strides, with_words);
      const std::string what = describe(kernels.name, type_name<S>(), p) + (as_linear ? " linear" : " conv2d") +
                               " strides " + std::to_string(static_cast<int>(strides)) + (with_words ? " words" : "");
      expect(same_numbers(got.y, right.y), what + ": y is the definition's");
      expect(same_numbers(got.dx, right.dx), what + ": dx is the definition's");
      expect(same_numbers(got.dvalues, right.dvalues), what + ": dvalues is the definition's");
    }
  }
}

template <class S>
void expect_same_bits(const cpu::Microkernels& kernels, const Problem& p, bool as_linear, std::mt19937& random) {
  const Case problem(p, random, any_number);
  const std::string what = describe(kernels.name, type_name<S>(), p);
  const Results<S> one = problem.run<S>({kernels, threads(1)}, as_linear, Strides::contiguous);
  for (const int64_t count : {2, 5}) {
    const Results<S> many = problem.run<S>({kernels, threads(count)}, as_linear, Strides::contiguous);
    expect(same_bits(one.y, many.y) && same_bits(one.dx, many.dx) && same_bits(one.dvalues, many.dvalues),
           what + ": results do not depend on the number of threads");
  }
  if (as_linear) {
    const Results<S> narrow = problem.run<S, uint16_t>({kernels, threads(2)}, true, Strides::contiguous);
    expect(same_bits(one.y, narrow.y) && same_bits(one.dx, narrow.dx) && same_bits(one.dvalues, narrow.dvalues),
           what + ": 16-bit indices give the same results");
  }
  for (const int64_t count : {1, 2, 20}) {
    const int64_t first = p.batch / 3 < p.batch - count ? p.batch / 3 : 0;
    const Results<S> part = problem.slice(first, count).run<S>({kernels, threads(1)}, as_linear, Strides::contiguous);
    const auto rows_of = [&](const std::vector<S>& all) {
      const int64_t size = static_cast<int64_t>(all.size()) / p.batch;
      return std::vector<S>(all.begin() + first * size, all.begin() + (first + count) * size);
    };
    expect(same_bits(part.y, rows_of(one.y)), what + ": y does not depend on the rest of the batch");
    expect(same_bits(part.dx, rows_of(one.dx)), what + ": dx does not depend on the rest of the batch");
  }
}

// By the bits of the mask: the gradients are those by indices, to the bit, and y but for the order of its sums.
template <class S>
void expect_same_bits_by_words(const cpu::Microkernels& kernels, const Problem& p, std::mt19937& random) {
  const Case problem(p, random, any_number);
  const std::string what = describe(kernels.name, type_name<S>(), p) + " words";
  const Results<S> by_index = problem.run<S>({kernels, threads(1)}, true, Strides::contiguous);
  const Results<S> one = problem.run<S>({kernels, threads(1)}, true, Strides::contiguous, true);
  expect(same_bits(one.dx, by_index.dx), what + ": dx is that by indices");
  expect(same_bits(one.dvalues, by_index.dvalues), what + ": dvalues are those by indices");
  for (const int64_t count : {2, 5}) {
    const Results<S> many = problem.run<S, uint16_t>({kernels, threads(count)}, true, Strides::contiguous, true);
    expect(same_bits(one.y, many.y) && same_bits(one.dx, many.dx) && same_bits(one.dvalues, many.dvalues),
           what + ": results do not depend on the number of threads");
  }
}

// batch, rows, cols, density: around one cache line, one block, one panel; and the degenerate ones.
const Problem kLinear[] = {
    linear_problem(0, 5, 7, 0.5),    linear_problem(1, 1, 1, 1),      linear_problem(1, 130, 33, 0.1),
    linear_problem(7, 17, 65, 0.3),  linear_problem(8, 64, 64, 0),    linear_problem(16, 3, 100, 0.5),
    linear_problem(17, 66, 16, 1),   linear_problem(63, 40, 31, 0.2), linear_problem(65, 129, 70, 0.1),
    linear_problem(200, 33, 50, 0.1), linear_problem(257, 9, 40, 0.4), linear_problem(1, 300, 300, 0.9), linear_problem(1, 9, 64, 1),
    linear_problem(1, 70, 129, 0.4)};

// Of panels that are read in parts, forwards and backwards, as the second-level cache asks for it and as the first does.
const Problem kInParts[] = {linear_problem(65, 40, 2500, 0.02), linear_problem(65, 2500, 40, 0.02),
                            linear_problem(130, 220, 240, 0.3)};
// Of one position, with values enough that memory is asked for them ahead.
const Problem kAhead = linear_problem(1, 1000, 1100, 0.5);

// batch, groups, channels, rows, height, width, kernel, stride, padding, dilation, density
const Problem kConv[] = {
    {2, 1, 3, 5, 8, 9, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0.4},    // the usual one
    {0, 1, 3, 5, 8, 9, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0.4},    // no images
    {1, 1, 1, 1, 1, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},      // one of everything
    {3, 1, 4, 6, 7, 5, {1, 1}, {1, 1}, {2, 3}, {1, 1}, 0.5},    // padding without a kernel to reach it
    {3, 1, 4, 6, 9, 8, {1, 1}, {2, 3}, {0, 0}, {1, 1}, 0.5},    // strides that skip input
    {2, 2, 3, 4, 11, 10, {3, 2}, {2, 2}, {1, 0}, {1, 1}, 0.5},  // groups, even kernel
    {2, 6, 1, 2, 9, 9, {3, 3}, {1, 2}, {1, 1}, {2, 1}, 0.7},    // depthwise, dilated in one axis
    {2, 1, 2, 3, 13, 12, {4, 3}, {3, 2}, {5, 4}, {2, 3}, 0.6},  // padding, stride and dilation that share no factor
    {2, 1, 2, 3, 6, 6, {3, 3}, {4, 5}, {0, 2}, {2, 2}, 0.6},    // stride beyond the kernel
    {2, 1, 2, 3, 4, 4, {2, 2}, {2, 2}, {7, 6}, {1, 1}, 0.8},    // outputs that see only padding
    {1, 1, 2, 2, 1, 1, {1, 1}, {5, 5}, {2, 2}, {1, 1}, 1},      // no output meets the input
    {3, 1, 2, 3, 1, 1, {2, 2}, {2, 2}, {2, 2}, {3, 3}, 1},      // more input cells than outputs
    {2, 1, 2, 3, 7, 8, {1, 3}, {2, 1}, {0, 1}, {1, 1}, 0.5},    // a stride that skips input in one axis
    {2, 1, 2, 3, 8, 7, {3, 1}, {1, 2}, {1, 0}, {1, 1}, 0.5},    // and in the other
    {1, 1, 2, 3, 1, 70, {1, 7}, {1, 1}, {0, 3}, {1, 1}, 0.5},   // one line
    {5, 1, 3, 4, 14, 14, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0},    // no weights
    {40, 1, 16, 9, 12, 12, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0.05},    // several panels of several images
    {2, 1, 16, 5, 100, 110, {3, 3}, {2, 1}, {1, 1}, {1, 2}, 0.05},  // images cut into bands
};

template <class S>
std::vector<S> joined(std::vector<S> a, const std::vector<S>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Pointers of two stacked matrices.
std::vector<int32_t> stacked(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  const int32_t end = a.back();
  a.pop_back();
  for (const int32_t each : b) a.push_back(end + each);
  return a;
}

// Two tasks with rows, one between them without, and rows of no task; together or mixed.
template <class S>
void expect_groups_to_be_separate_products(const cpu::Microkernels& kernels, bool together, bool with_words,
                                           std::mt19937& random) {
  const int64_t features = 40, outputs = 21, batches[] = {with_words ? 1 : 5, 20};
  const cpu::Context context{kernels, threads(3)};
  Case tasks[] = {{linear_problem(batches[0], outputs, features, 0.3), random, any_number},
                  {linear_problem(batches[1], outputs, features, 0.1), random, any_number}};
  for (Case& each : tasks) each.bias.assign(outputs, 0.75);
  const Results<S> right[] = {tasks[0].template run<S>(context, true, Strides::contiguous, with_words),
                              tasks[1].template run<S>(context, true, Strides::contiguous, with_words)};
  std::vector<int64_t> task_of_row{-1};
  std::vector<double> x(features, NAN), dy(outputs, NAN);
  std::vector<S> y(outputs, stored<S>(NAN)), dx(features, S{});
  int64_t used[] = {0, 0};
  while (used[0] < batches[0] || used[1] < batches[1]) {
    const int64_t task = used[0] < batches[0] && (together || used[1] == batches[1] || task_of_row.size() % 3 == 0) ? 0 : 1;
    const int64_t row = used[task]++;
    const auto take = [row](const auto& from, auto& to, int64_t size) {
      to.insert(to.end(), from.begin() + row * size, from.begin() + (row + 1) * size);
    };
    task_of_row.push_back(2 * task);
    take(tasks[task].x, x, features);
    take(tasks[task].dy, dy, outputs);
    take(right[task].y, y, outputs);
    take(right[task].dx, dx, features);
  }
  const auto& a = tasks[0].weight;
  const auto& b = tasks[1].weight;
  const std::vector<int32_t> none_by_row(outputs + 1, 0), none_by_column(features + 1, 0);
  const std::vector<int32_t> crow = stacked(stacked(a.crow, none_by_row), b.crow);
  const std::vector<int32_t> crow_t = stacked(stacked(a.crow_t, none_by_column), b.crow_t);
  const std::vector<int32_t> col = joined(a.col, b.col), row_t = joined(a.row_t, b.row_t);
  std::vector<int32_t> perm = a.perm;
  for (const int32_t each : b.perm) perm.push_back(static_cast<int32_t>(a.perm.size()) + each);
  perm.resize(col.size());
  const std::vector<S> values = joined(stored<S>(a.values), stored<S>(b.values)), x_s = stored<S>(x), dy_s = stored<S>(dy);
  const std::vector<S> biases(3 * outputs, stored<S>(0.75));

  const int64_t batch = static_cast<int64_t>(task_of_row.size());
  const cpu::RowsByTask order(task_of_row.data(), batch, 3);
  const std::vector<uint64_t> words = joined(joined(a.words(features), std::vector<uint64_t>(outputs)), b.words(features));
  const cpu::StackedCsr<int32_t> weights{3, outputs, crow.data(), col.data(), with_words ? words.data() : nullptr, 1};
  const cpu::StackedCsr<int32_t> columns{3, features, crow_t.data(), row_t.data()};
  const cpu::MatrixView<S> x_view{x_s.data(), batch, features, features, 1}, dy_view{dy_s.data(), batch, outputs, outputs, 1};
  std::vector<S> got_y(y.size()), got_dx(dx.size()), got_dvalues(values.size());
  cpu::grouped_linear(context, x_view, values.data(), biases.data(), weights, order, got_y.data());
  cpu::grouped_linear_dx(context, dy_view, values.data(), weights, columns, perm.data(), order, got_dx.data());
  cpu::grouped_linear_dvalues(context, dy_view, x_view, weights, order, got_dvalues.data());
  const std::string what = std::string(kernels.name) + " " + type_name<S>() + (together ? " together" : " mixed") +
                           (with_words ? " words" : "");
  expect(same_bits(got_y, y), what + ": y of a group is that of the separate products");
  expect(same_bits(got_dx, dx), what + ": dx of a group is that of the separate products");
  expect(same_bits(got_dvalues, joined(right[0].dvalues, right[1].dvalues)),
         what + ": dvalues of a group are those of the separate products");
}

// Of several words of columns, with and without the mask; nothing beside the matrix is read or written.
template <class S>
void test_expansion_by_words(const cpu::Microkernels& kernels) {
  std::mt19937 random(2);
  for (const int64_t cols : {1, 63, 64, 65, 200}) {
    const Problem p = linear_problem(1, 37, cols, 0.6);
    const Weight weight(p, random, any_number);
    const std::vector<uint64_t> words = weight.words(cols);
    const std::vector<S> values = stored<S>(weight.values);
    const cpu::Csr<int32_t> by_index{p.rows, weight.nnz(), weight.crow.data(), weight.col.data()};
    const cpu::Csr<int32_t> by_word{p.rows, weight.nnz(), weight.crow.data(), weight.col.data(), words.data(),
                                    (cols + 63) / 64};
    std::vector<S> right(p.rows * cols), dense(p.rows * cols), packed(values.size());
    cpu::expand({kernels, threads(1)}, by_index, values.data(), cols, right.data());
    for (const int64_t count : {1, 3}) {
      const cpu::Context context{kernels, threads(count)};
      cpu::expand(context, by_word, values.data(), cols, dense.data());
      cpu::gather(context, by_word, right.data(), cols, packed.data());
      const std::string what = std::string(kernels.name) + " " + type_name<S>() + " " + std::to_string(cols) + " columns";
      expect(same_bits(dense, right), what + ": expand by words is that by indices");
      expect(same_bits(packed, values), what + ": gather by words takes what the weight owns");
    }
  }
}

// Rows without weights and a row of all of them included; nothing beside the matrix is written.
template <class S, class I>
void test_expansion(const cpu::Microkernels& kernels) {
  const std::vector<int32_t> crow = {0, 2, 2, 5, 6};
  const std::vector<I> col = {0, 2, 0, 1, 2, 1};
  const std::vector<S> values = stored<S>({1, 2, 3, 4, 5, 6}), none = stored<S>({-1, -1});
  const std::vector<S> expected = stored<S>({1, 0, 2, 0, 0, 0, 3, 4, 5, 0, 6, 0, -1, -1});
  const cpu::Csr<I> weight{4, 6, crow.data(), col.data()};
  for (const int64_t count : {1, 3}) {
    std::vector<S> dense = stored<S>(std::vector<double>(14, -1)), packed = stored<S>(std::vector<double>(8, -1));
    cpu::expand({kernels, threads(count)}, weight, values.data(), 3, dense.data());
    cpu::gather({kernels, threads(count)}, weight, expected.data(), 3, packed.data());
    expect(same_bits(dense, expected), type_name<S>() + ": expand puts values where the weight is, and zeros elsewhere");
    expect(same_bits(packed, joined(values, none)), type_name<S>() + ": gather takes what the weight owns");
  }
}

template <class S>
void test_operators(const cpu::Microkernels& kernels) {
  test_expansion<S, int32_t>(kernels);
  test_expansion<S, uint16_t>(kernels);
  test_expansion_by_words<S>(kernels);
  std::mt19937 random(1);
  for (const Problem& p : kLinear) expect_the_definition<S>(kernels, p, true, random);
  for (const Problem& p : kLinear) expect_the_definition<S>(kernels, p, false, random);
  for (const Problem& p : kInParts) expect_the_definition<S>(kernels, p, true, random);
  for (const Problem& p : kConv) expect_the_definition<S>(kernels, p, false, random);
  for (const bool together : {false, true}) {
    for (const bool with_words : {false, true}) {
      expect_groups_to_be_separate_products<S>(kernels, together, with_words, random);
    }
  }
  expect_same_bits_by_words<S>(kernels, linear_problem(1, 130, 1000, 0.3), random);
  if (std::is_same_v<S, float>) {  // to which all others are widened
    expect_the_definition<S>(kernels, kAhead, true, random);
    expect_same_bits_by_words<S>(kernels, kAhead, random);
  }
  expect_same_bits<S>(kernels, linear_problem(300, 130, 200, 0.3), true, random);
  expect_same_bits<S>(kernels, linear_problem(40, 300, 300, 0.9), true, random);
  expect_same_bits<S>(kernels, linear_problem(70, 1500, 2500, 0.02), true, random);
  expect_same_bits<S>(kernels, {20, 2, 8, 9, 20, 21, {3, 3}, {2, 1}, {1, 1}, {1, 1}, 0.3}, false, random);
}

// A row is its bias, to the bit, where it has no weights, or an even or odd number of them times -0.
template <class S>
void test_negative_zero(const cpu::Microkernels& kernels) {
  const int32_t crow[] = {0, 0, 1, 3, 6, 6}, col[] = {1, 0, 2, 0, 1, 2};
  const std::vector<S> values(6, stored<S>(2)), bias(5, stored<S>(-0.0));
  bool kept = true;
  for (const int64_t batch : {1, 2, 20, 100}) {
    const std::vector<S> x(batch * 3, stored<S>(-0.0));
    std::vector<S> y(batch * 5, stored<S>(1));
    const cpu::Csr<int32_t> weight{5, 6, crow, col};
    cpu::linear<S>({kernels, threads(1)}, {x.data(), batch, 3, 3, 1}, values.data(), bias.data(), weight, y.data());
    for (const S each : y) kept = kept && cpu::widen(each) == 0 && std::signbit(cpu::widen(each));
  }
  expect(kept, std::string(kernels.name) + " " + type_name<S>() + ": a bias of -0 stays -0 whatever the batch");
}

void test_row_split() {
  const int32_t begin[] = {0, 0, 100, 100, 101, 101, 101, 160};
  for (const int64_t parts : {1, 2, 3, 7, 20}) {
    int64_t covered = 0;
    bool ascending = true;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = cpu::split_rows(begin, 7, part, parts), end = cpu::split_rows(begin, 7, part + 1, parts);
      ascending = ascending && first == covered && end >= first;
      covered = end;
    }
    expect(ascending && covered == 7, "split_rows: parts cover all rows in order");
  }
}

// All that this machine executes. Threads share out work above them: races show in the widest and the narrowest alone.
std::vector<const cpu::Microkernels*> instruction_sets() {
  std::vector<const cpu::Microkernels*> found;
  for (const cpu::Microkernels* const kernels : cpu::available_microkernels()) found.push_back(kernels);
#ifdef __SANITIZE_THREAD__
  if (found.size() > 2) found = {found.front(), found.back()};
#endif
  return found;
}

}  // namespace
}  // namespace rsn2::test

int main() {
  using namespace rsn2;
  test::test_row_split();
  for (const cpu::Microkernels* const kernels : test::instruction_sets()) {
    test::test_negative_zero<float>(*kernels);
    test::test_negative_zero<double>(*kernels);
    test::test_negative_zero<cpu::Half>(*kernels);
    test::test_negative_zero<cpu::BFloat16>(*kernels);
    test::test_operators<float>(*kernels);
    test::test_operators<double>(*kernels);
    test::test_operators<cpu::Half>(*kernels);
    test::test_operators<cpu::BFloat16>(*kernels);
    std::printf("%s: done\n", kernels->name);
  }
  std::printf("%d failures\n", test::failures);
  return test::failures ? 1 : 0;
}
