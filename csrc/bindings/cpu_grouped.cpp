// The linear operators of several tasks, of the namespace rsn2_cpu: schemas, checks, types.
#include <numeric>

#include "../cpu/grouped.h"
#include "cpu_operands.h"

namespace rsn2::bindings {
namespace {

// The tasks of the rows of a batch, sorted.
cpu::RowsByTask rows_by_task(const char* op, const Tensor& task_of_row, int64_t batch, int64_t tasks) {
  check_vector(op, "task_of_row", task_of_row, ScalarType::Long, batch);
  return {read<int64_t>(task_of_row), batch, tasks};
}

// Rows of each task in a stack.
int64_t rows_per_task(const char* op, const char* name, const Tensor& crow, int64_t tasks) {
  const int64_t rows = crow.size(0) - 1;
  STD_TORCH_CHECK(tasks >= 1 && rows % tasks == 0, op, ": expected tasks to divide the ", rows, " rows of ", name,
                  ", got ", tasks);
  return rows / tasks;
}

template <class I>
cpu::StackedCsr<I> stacked(const Tensor& crow, const Tensor& col, int64_t tasks, const Words& words = {}) {
  return {tasks,
          (crow.size(0) - 1) / tasks,
          read<int32_t>(crow),
          read<I>(col),
          read_words(words),
          words ? words->size(1) : 0,
          words.has_value()};
}

using TensorList = std::vector<Tensor>;

// An operand of several tasks: a tensor for each, or all of them one behind the other in one. `sizes`: elements of each.
void check_parts(const char* op, const char* name, const TensorList& operand, ScalarType type, const IntList& sizes) {
  if (operand.size() == sizes.size()) {
    for (size_t task = 0; task < sizes.size(); ++task) check_vector(op, name, operand[task], type, sizes[task]);
  } else {
    STD_TORCH_CHECK(operand.size() == 1, op, ": expected ", name, " in one tensor or ", sizes.size(), ", got ",
                    operand.size());
    check_vector(op, name, operand[0], type, std::accumulate(sizes.begin(), sizes.end(), int64_t{0}));
  }
}

// Where each task's part begins; null where there is no tensor at all.
template <class S>
std::vector<const S*> parts(const TensorList& operand, const IntList& sizes) {
  std::vector<const S*> found(sizes.size(), nullptr);
  int64_t first = 0;
  for (size_t task = 0; task < sizes.size() && !operand.empty(); ++task) {
    found[task] = operand.size() == sizes.size() ? read<S>(operand[task]) : read<S>(operand[0]) + first;
    first += sizes[task];
  }
  return found;
}

// No biases at all: none.
Tensor grouped_linear(Tensor x, TensorList values, TensorList biases, Tensor task_of_row, Tensor crow, Tensor col,
                      Words words, int64_t tasks) {
  const char* const op = "rsn2_cpu::grouped_linear";
  check_tensor(op, "x", x, 2);
  check_compressed(op, "crow", crow, "col", col, true);
  const int64_t rows = rows_per_task(op, "crow", crow, tasks);
  const int32_t* const begin = read<int32_t>(crow);
  IntList owned(tasks);
  for (int64_t task = 0; task < tasks; ++task) owned[task] = begin[(task + 1) * rows] - begin[task * rows];
  const IntList rows_each(tasks, rows);
  check_parts(op, "values", values, x.scalar_type(), owned);
  if (!biases.empty()) check_parts(op, "biases", biases, x.scalar_type(), rows_each);
  check_words(op, words, crow, x.size(1));
  const cpu::RowsByTask order = rows_by_task(op, task_of_row, x.size(0), tasks);
  Tensor y = empty(x, {x.size(0), rows});
  with_type(op, x.scalar_type(), [&](auto element) {
    with_index(col, [&](auto index) {
      using S = decltype(element);
      cpu::grouped_linear<S>(context(), matrix<S>(x), parts<S>(values, owned), parts<S>(biases, rows_each),
                             stacked<decltype(index)>(crow, col, tasks, words), order, write<S>(y));
    });
  });
  return y;
}

Tensor grouped_linear_dx(Tensor dy, Tensor values, Tensor task_of_row, Tensor crow, Tensor col, Tensor crow_t,
                         Tensor row_t, Tensor perm, Words words, int64_t tasks) {
  const char* const op = "rsn2_cpu::grouped_linear_dx";
  check_tensor(op, "dy", dy, 2);
  const int64_t nnz = check_compressed(op, "crow", crow, "col", col, true);
  check_compressed(op, "crow_t", crow_t, "row_t", row_t, true);
  check_size(op, "row_t", row_t, 0, nnz);
  check_perm(op, perm, row_t);
  check_size(op, "dy", dy, 1, rows_per_task(op, "crow", crow, tasks));
  check_vector(op, "values", values, dy.scalar_type(), nnz);
  const int64_t cols = rows_per_task(op, "crow_t", crow_t, tasks);
  check_words(op, words, crow, cols);
  const cpu::RowsByTask order = rows_by_task(op, task_of_row, dy.size(0), tasks);
  Tensor dx = empty(dy, {dy.size(0), cols});
  with_type(op, dy.scalar_type(), [&](auto element) {
    with_index(col, [&](auto col_index) {
      with_index(row_t, [&](auto row_index) {
        using S = decltype(element);
        cpu::grouped_linear_dx<S>(context(), matrix<S>(dy), read<S>(values),
                                  stacked<decltype(col_index)>(crow, col, tasks, words),
                                  stacked<decltype(row_index)>(crow_t, row_t, tasks), read<int32_t>(perm), order,
                                  write<S>(dx));
      });
    });
  });
  return dx;
}

Tensor grouped_linear_dvalues(Tensor dy, Tensor x, Tensor task_of_row, Tensor crow, Tensor col, Words words,
                              int64_t tasks) {
  const char* const op = "rsn2_cpu::grouped_linear_dvalues";
  check_tensor(op, "x", x, 2);
  check_tensor(op, "dy", dy, 2);
  const int64_t nnz = check_compressed(op, "crow", crow, "col", col, true);
  check_type(op, "dy", dy, x.scalar_type());
  check_size(op, "dy", dy, 0, x.size(0));
  check_size(op, "dy", dy, 1, rows_per_task(op, "crow", crow, tasks));
  check_words(op, words, crow, x.size(1));
  const cpu::RowsByTask order = rows_by_task(op, task_of_row, x.size(0), tasks);
  Tensor dvalues = empty(x, {nnz});
  with_type(op, x.scalar_type(), [&](auto element) {
    with_index(col, [&](auto index) {
      using S = decltype(element);
      cpu::grouped_linear_dvalues<S>(context(), matrix<S>(dy), matrix<S>(x),
                                     stacked<decltype(index)>(crow, col, tasks, words), order, write<S>(dvalues));
    });
  });
  return dvalues;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rsn2_cpu, m) {
  m.def("grouped_linear(Tensor x, Tensor[] values, Tensor[] biases, Tensor task_of_row, Tensor crow, Tensor col, "
        "Tensor? words, int tasks) -> Tensor");
  m.def("grouped_linear_dx(Tensor dy, Tensor values, Tensor task_of_row, Tensor crow, Tensor col, Tensor crow_t, "
        "Tensor row_t, Tensor perm, Tensor? words, int tasks) -> Tensor");
  m.def("grouped_linear_dvalues(Tensor dy, Tensor x, Tensor task_of_row, Tensor crow, Tensor col, "
        "Tensor? words, int tasks) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(rsn2_cpu, CPU, m) {
  m.impl("grouped_linear", TORCH_BOX(&grouped_linear));
  m.impl("grouped_linear_dx", TORCH_BOX(&grouped_linear_dx));
  m.impl("grouped_linear_dvalues", TORCH_BOX(&grouped_linear_dvalues));
}

}  // namespace rsn2::bindings
