// Values into a dense matrix, and out of it.
#include "case.h"
#include "../../cpu/expansion.h"
#include "tests.h"

namespace rsn2::test {
namespace {

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

}  // namespace

void test_expansions(const cpu::Microkernels& kernels) {
  for_types([&](auto type) {
    test_expansion<decltype(type), int32_t>(kernels);
    test_expansion<decltype(type), uint16_t>(kernels);
    test_expansion_by_words<decltype(type)>(kernels);
  });
}

}  // namespace rsn2::test
