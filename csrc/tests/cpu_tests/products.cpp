// Products of one weight: they are the definition, and their bits depend on nothing that they should not.
#include "case.h"
#include "tests.h"

namespace rsn2::test {
namespace {

template <class S>
void expect_the_definition(const cpu::Microkernels& kernels, const Problem& p, bool as_linear, std::mt19937& random) {
  const Case problem(p, random, small_integer);
  const Answer right = answer(p, problem.weight, problem.x, problem.dy, problem.bias);
  for (const Strides strides : kAllStrides) {
    const cpu::Context context{kernels, threads(3)};
    for (const Single single : kAllSingle) {
      if (single != Single::in_order && !(as_linear && p.batch <= cpu::kBitBatch)) continue;
      const Results<S> got = strides == Strides::gaps ? problem.run<S, uint16_t>(context, as_linear, strides, single)
                                                      : problem.run<S>(context, as_linear, strides, single);
      const std::string what = describe(kernels.name, type_name<S>(), p) + (as_linear ? " linear" : " conv2d") +
                               " strides " + std::to_string(static_cast<int>(strides)) + name_of(single);
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

// Where few positions go their own way, the gradients of each are those by indices, to the bit, and y but for its sums'
// order, which is that of a single one.
template <class S>
void expect_same_bits_of_few(const cpu::Microkernels& kernels, const Problem& p, Single single, std::mt19937& random) {
  const Case problem(p, random, any_number);
  const std::string what = describe(kernels.name, type_name<S>(), p) + name_of(single);
  const Results<S> by_index = problem.run<S>({kernels, threads(1)}, true, Strides::contiguous);
  const Results<S> few = problem.run<S>({kernels, threads(1)}, true, Strides::contiguous, single);
  expect(same_bits(few.dx, by_index.dx), what + ": dx is that by indices");
  if (p.batch == 1) expect(same_bits(few.dvalues, by_index.dvalues), what + ": dvalues are those by indices");
  const bool by_bits = single == Single::words && kernels.bits && std::is_same_v<cpu::AccumulatorOf<S>, float>;
  for (int64_t b = 0; by_bits && b < p.batch; ++b) {
    const Results<S> one = problem.slice(b, 1).run<S>({kernels, threads(1)}, true, Strides::contiguous, single);
    const auto first = few.y.begin() + b * p.rows;
    expect(same_bits(one.y, std::vector<S>(first, first + p.rows)), what + ": y is that of each position alone");
  }
  for (const int64_t count : {2, 5}) {
    const Results<S> many = problem.run<S, uint16_t>({kernels, threads(count)}, true, Strides::contiguous, single);
    expect(same_bits(few.y, many.y) && same_bits(few.dx, many.dx) && same_bits(few.dvalues, many.dvalues),
           what + ": results do not depend on the number of threads");
  }
}

// batch, rows, cols, density: around one cache line, one block, one panel; and the degenerate ones.
const Problem kLinear[] = {
    linear_problem(0, 5, 7, 0.5),    linear_problem(1, 1, 1, 1),      linear_problem(1, 130, 33, 0.1),
    linear_problem(7, 17, 65, 0.3),  linear_problem(8, 64, 64, 0),    linear_problem(16, 3, 100, 0.5),
    linear_problem(17, 66, 16, 1),   linear_problem(63, 40, 31, 0.2), linear_problem(65, 129, 70, 0.1),
    linear_problem(200, 33, 50, 0.1), linear_problem(257, 9, 40, 0.4), linear_problem(1, 300, 300, 0.9), linear_problem(1, 9, 64, 1),
    linear_problem(1, 70, 129, 0.4), linear_problem(2, 70, 129, 0.9),  linear_problem(3, 33, 65, 1),
    linear_problem(5, 9, 64, 1),     linear_problem(8, 130, 300, 0.9)};

// Of panels that are read in parts, forwards and backwards, as the second-level cache asks for it and as the first does.
const Problem kInParts[] = {linear_problem(65, 40, 2500, 0.02), linear_problem(65, 2500, 40, 0.02),
                            linear_problem(33, 2500, 40, 0.02), linear_problem(130, 220, 240, 0.3)};
// Of few positions, with values enough that memory is asked for them ahead.
const Problem kAhead[] = {linear_problem(1, 1000, 1100, 0.5), linear_problem(6, 1000, 1100, 0.9)};

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
void test_products_of(const cpu::Microkernels& kernels) {
  std::mt19937 random(1);
  for (const Problem& p : kLinear) expect_the_definition<S>(kernels, p, true, random);
  for (const Problem& p : kLinear) expect_the_definition<S>(kernels, p, false, random);
  for (const Problem& p : kInParts) expect_the_definition<S>(kernels, p, true, random);
  for (const Problem& p : kConv) expect_the_definition<S>(kernels, p, false, random);
  expect_same_bits_of_few<S>(kernels, linear_problem(1, 130, 1000, 0.3), Single::words, random);
  expect_same_bits_of_few<S>(kernels, linear_problem(1, 130, 1000, 0.03), Single::any_order, random);
  for (const int64_t batch : {2, 3, 4, 7, 8}) {
    expect_same_bits_of_few<S>(kernels, linear_problem(batch, 131, 250, 1), Single::words, random);
  }
  if (std::is_same_v<S, float>) {  // to which all others are widened
    for (const Problem& p : kAhead) expect_the_definition<S>(kernels, p, true, random);
    for (const Problem& p : kAhead) expect_same_bits_of_few<S>(kernels, p, Single::words, random);
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

}  // namespace

void test_products(const cpu::Microkernels& kernels) {
  for_types([&](auto type) {
    test_negative_zero<decltype(type)>(kernels);
    test_products_of<decltype(type)>(kernels);
  });
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

}  // namespace rsn2::test
