// The three products of linear layers of several tasks, each row of the batch with its own task's weight: rows sorted
// by task, then one product per task that has rows. The results are those of the separate products, to the bit.
#pragma once

#include <limits>
#include <vector>

#include "buffer.h"
#include "linear.h"

namespace rsn2::cpu {

// The weights of all tasks one below the other. I is int32_t or uint16_t.
template <class I>
struct StackedCsr {
  int64_t tasks;
  int64_t rows;         // of each task
  const int32_t* crow;  // [tasks * rows + 1]
  const I* col;
  const uint64_t* words = nullptr;  // as in Csr
  int64_t row_words = 0;
  bool any_order = false;

  int64_t first(int64_t task) const { return crow[task * rows]; }
  int64_t nnz(int64_t task) const { return first(task + 1) - first(task); }

  // The weight of one task, with its pointers counted from zero.
  Csr<I> own(int64_t task, const int32_t* own_crow) const {
    return {rows, nnz(task), own_crow, col + first(task), words ? words + task * rows * row_words : nullptr, row_words,
            any_order};
  }
};

// Pointers of one task of a stack, counted from zero.
inline std::vector<int32_t> own_pointers(const int32_t* crow, int64_t rows, int64_t task) {
  const int32_t* const own = crow + task * rows;
  std::vector<int32_t> pointers(own, own + rows + 1);
  for (int32_t& each : pointers) each -= own[0];
  return pointers;
}

// The rows of a batch in the order of their tasks, those of one task in their own order. A row whose id is not in
// [0, tasks) belongs to no task.
class RowsByTask {
 public:
  RowsByTask(const int64_t* task_of_row, int64_t batch, int64_t tasks) : begins_(tasks + 2), rows_(batch) {
    const auto group = [&](int64_t row) {
      const int64_t task = task_of_row[row];
      return task >= 0 && task < tasks ? task : tasks;
    };
    for (int64_t row = 0; row < batch; ++row) ++begins_[group(row) + 1];
    for (int64_t task = 0; task <= tasks; ++task) begins_[task + 1] += begins_[task];
    std::vector<int64_t> next(begins_.begin(), begins_.end() - 1);
    for (int64_t row = 0; row < batch; ++row) rows_[next[group(row)]++] = row;
  }

  int64_t count(int64_t task) const { return begins_[task + 1] - begins_[task]; }
  int64_t row(int64_t task, int64_t i) const { return rows_[begins_[task] + i]; }

  // Whether a task's rows are neighbours in the batch, which then need not be moved.
  bool together(int64_t task) const { return row(task, count(task) - 1) - row(task, 0) == count(task) - 1; }

 private:
  std::vector<int64_t> begins_, rows_;  // the rows of no task are those of task `tasks`
};

// The rows of one task, which must have some; copied into `moved` unless they are neighbours.
template <class S>
MatrixView<S> rows_of_task(const Context& context, const RowsByTask& order, int64_t task, const MatrixView<S>& x,
                           std::vector<S>& moved) {
  const int64_t count = order.count(task);
  if (order.together(task)) {
    return {x.data + order.row(task, 0) * x.batch_stride, count, x.features, x.batch_stride, x.feature_stride};
  }
  moved.resize(count * x.features);
  const int64_t slots = context.parallel.slots_for(count * x.features);
  context.parallel.for_each(count, slots, [&](int64_t i, int64_t) {
    const S* const source = x.data + order.row(task, i) * x.batch_stride;
    for (int64_t f = 0; f < x.features; ++f) moved[i * x.features + f] = source[f * x.feature_stride];
  });
  return {moved.data(), count, x.features, x.features, 1};
}

// Runs product(task, target) for every task that has rows, with the place for its result [count, features]; the rows
// of no task become `none`.
template <class S, class Body>
void for_each_task(const RowsByTask& order, int64_t tasks, int64_t features, S* y, S none, const Body& product) {
  std::vector<S> moved;
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t count = order.count(task);
    if (count == 0) continue;
    if (order.together(task)) {
      product(task, y + order.row(task, 0) * features);
      continue;
    }
    moved.resize(count * features);
    product(task, moved.data());
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(moved.data() + i * features, features, y + order.row(task, i) * features);
    }
  }
  for (int64_t i = 0; i < order.count(tasks); ++i) std::fill_n(y + order.row(tasks, i) * features, features, none);
}

// y [batch, rows] contiguous, NaN in the rows of no task; of each task its values, and its bias [rows] or null.
template <class S, class I>
void grouped_linear(const Context& context, const MatrixView<S>& x, const std::vector<const S*>& values,
                    const std::vector<const S*>& biases, const StackedCsr<I>& weights, const RowsByTask& order, S* y) {
  S none;
  narrow(std::numeric_limits<AccumulatorOf<S>>::quiet_NaN(), none);
  std::vector<S> moved;
  for_each_task(order, weights.tasks, weights.rows, y, none, [&](int64_t task, S* target) {
    const std::vector<int32_t> crow = own_pointers(weights.crow, weights.rows, task);
    linear<S>(context, rows_of_task(context, order, task, x, moved), values[task], biases[task],
              weights.own(task, crow.data()), target);
  });
}

// dx [batch, cols] contiguous, 0 in the rows of no task. The weights are given in both orders.
template <class S, class I, class J>
void grouped_linear_dx(const Context& context, const MatrixView<S>& dy, const S* values, const StackedCsr<I>& weights,
                       const StackedCsr<J>& columns, const int32_t* perm, const RowsByTask& order, S* dx) {
  std::vector<S> moved;
  for_each_task(order, weights.tasks, columns.rows, dx, S{}, [&](int64_t task, S* target) {
    const std::vector<int32_t> crow = own_pointers(weights.crow, weights.rows, task);
    const std::vector<int32_t> crow_t = own_pointers(columns.crow, columns.rows, task);
    const int64_t first = weights.first(task);
    const TransposedCsr<J> transposed{columns.rows, weights.nnz(task), crow_t.data(), columns.col + first,
                                      perm + first, first};
    linear_dx<S>(context, rows_of_task(context, order, task, dy, moved), values + first,
                 weights.own(task, crow.data()), transposed, target);
  });
}

// dvalues [nnz of all tasks], 0 where a task has no rows.
template <class S, class I>
void grouped_linear_dvalues(const Context& context, const MatrixView<S>& dy, const MatrixView<S>& x,
                            const StackedCsr<I>& weights, const RowsByTask& order, S* dvalues) {
  std::vector<S> moved_dy, moved_x;
  for (int64_t task = 0; task < weights.tasks; ++task) {
    const int64_t first = weights.first(task), nnz = weights.nnz(task);
    if (order.count(task) == 0) {
      std::fill_n(dvalues + first, nnz, S{});
      continue;
    }
    const std::vector<int32_t> crow = own_pointers(weights.crow, weights.rows, task);
    linear_dvalues<S>(context, rows_of_task(context, order, task, dy, moved_dy),
                      rows_of_task(context, order, task, x, moved_x), weights.own(task, crow.data()), dvalues + first);
  }
}

}  // namespace rsn2::cpu
