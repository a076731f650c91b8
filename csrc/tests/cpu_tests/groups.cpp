// Products of several weights, each row of x with its own: they are the separate products.
#include "case.h"
#include "../../cpu/grouped.h"
#include "tests.h"

namespace rsn2::test {
namespace {

// Pointers of two stacked matrices.
std::vector<int32_t> stacked(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  const int32_t end = a.back();
  a.pop_back();
  for (const int32_t each : b) a.push_back(end + each);
  return a;
}

// Two tasks with rows, one between them without, and rows of no task; together or mixed.
template <class S>
void expect_groups_to_be_separate_products(const cpu::Microkernels& kernels, bool together, Single single,
                                           std::mt19937& random) {
  const int64_t features = 40, outputs = 21, batches[] = {single == Single::in_order ? 5 : single == Single::words ? 3 : 1, 20};
  const bool with_words = single == Single::words;
  const cpu::Context context{kernels, threads(3)};
  Case tasks[] = {{linear_problem(batches[0], outputs, features, 0.3), random, any_number},
                  {linear_problem(batches[1], outputs, features, 0.1), random, any_number}};
  for (Case& each : tasks) each.bias.assign(outputs, 0.75);
  const Results<S> right[] = {tasks[0].template run<S>(context, true, Strides::contiguous, single),
                              tasks[1].template run<S>(context, true, Strides::contiguous, single)};
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
  const cpu::StackedCsr<int32_t> weights{3, outputs, crow.data(), col.data(),
                                             with_words ? words.data() : nullptr,
                                             with_words ? 1 : 0, single != Single::in_order};
  const cpu::StackedCsr<int32_t> columns{3, features, crow_t.data(), row_t.data()};
  const cpu::MatrixView<S> x_view{x_s.data(), batch, features, features, 1}, dy_view{dy_s.data(), batch, outputs, outputs, 1};
  std::vector<S> got_y(y.size()), got_dx(dx.size()), got_dvalues(values.size());
  const int64_t first = weights.first(2);
  cpu::grouped_linear<S>(context, x_view, {values.data(), nullptr, values.data() + first},
                         {biases.data(), biases.data(), biases.data()}, weights, order, got_y.data());
  cpu::grouped_linear_dx(context, dy_view, values.data(), weights, columns, perm.data(), order, got_dx.data());
  cpu::grouped_linear_dvalues(context, dy_view, x_view, weights, order, got_dvalues.data());
  const std::string what = std::string(kernels.name) + " " + type_name<S>() + (together ? " together" : " mixed") +
                           name_of(single);
  expect(same_bits(got_y, y), what + ": y of a group is that of the separate products");
  expect(same_bits(got_dx, dx), what + ": dx of a group is that of the separate products");
  expect(same_bits(got_dvalues, joined(right[0].dvalues, right[1].dvalues)),
         what + ": dvalues of a group are those of the separate products");
}

}  // namespace

void test_groups(const cpu::Microkernels& kernels) {
  for_types([&](auto type) {
    std::mt19937 random(1);
    for (const bool together : {false, true}) {
      for (const Single single : kAllSingle) {
        expect_groups_to_be_separate_products<decltype(type)>(kernels, together, single, random);
      }
    }
  });
}

}  // namespace rsn2::test
