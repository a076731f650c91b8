// The operators of the namespace rsn2_cpu: schemas, checks, element types and torch's thread pool around csrc/cpu.
// Only LibTorch's stable ABI is used, so one build serves every torch from the targeted release on.
#include <torch/csrc/stable/library.h>

#include <numeric>
#include <optional>
#include <vector>

#include "../cpu/conv2d.h"
#include "../cpu/expansion.h"
#include "../cpu/grouped.h"
#include "../cpu/isa.h"
#include "../cpu/linear.h"
#include "checks.h"

namespace rsn2::bindings {
namespace {

using IntList = std::vector<int64_t>;

cpu::Context context() {
  const auto run = [](int64_t slots, const std::function<void(int64_t)>& body) {
    torch::stable::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) body(slot);
    });
  };
  return {cpu::chosen_microkernels(), cpu::Parallel(torch::stable::get_num_threads(), run)};
}

// Calls body with a value of the C++ type that stores `type`.
template <class Body>
void with_type(const char* op, ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Float: return body(float{});
    case ScalarType::Double: return body(double{});
    case ScalarType::Half: return body(cpu::Half{});
    case ScalarType::BFloat16: return body(cpu::BFloat16{});
    default:
      STD_TORCH_CHECK(false, op, ": expected dtype float32, float64, float16 or bfloat16, got ", type);
  }
}

template <class S>
const S* read(const Tensor& tensor) {
  return static_cast<const S*>(tensor.const_data_ptr());
}

template <class S>
const S* read(const std::optional<Tensor>& tensor) {
  return tensor ? read<S>(*tensor) : nullptr;
}

template <class S>
S* write(const Tensor& tensor) {
  return static_cast<S*>(tensor.mutable_data_ptr());
}

Tensor empty(const Tensor& like, const IntList& size) { return torch::stable::new_empty(like, size); }

template <class S>
cpu::MatrixView<S> matrix(const Tensor& t) {
  return {read<S>(t), t.size(0), t.size(1), t.stride(0), t.stride(1)};
}

template <class S>
cpu::ImagesView<S> images(const Tensor& t) {
  return {read<S>(t), t.size(0), t.size(1), t.size(2), t.size(3), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// The words of a mask, which a weight may have beside its indices: int64 [rows, words per row]. Words at all, even none
// of them, [rows, 0], say that the sums for a single row may run in any order.
using Words = std::optional<Tensor>;

void check_words(const char* op, const Words& words, const Tensor& crow, int64_t cols) {
  if (!words) return;
  const bool none = words->dim() == 2 && words->size(1) == 0;
  check_matrix(op, "words", *words, ScalarType::Long, crow.size(0) - 1,
               none ? 0 : cpu::ceil_div(cols, cpu::kWordColumns));
}

const uint64_t* read_words(const Words& words) { return words && words->size(1) > 0 ? read<uint64_t>(*words) : nullptr; }

template <class I>
cpu::Csr<I> csr(const Tensor& crow, const Tensor& col, const Words& words = {}) {
  return {crow.size(0) - 1,   col.size(0),       read<int32_t>(crow), read<I>(col),
          read_words(words), words ? words->size(1) : 0, words.has_value()};
}

template <class I>
cpu::TransposedCsr<I> transposed_csr(const Tensor& crow_t, const Tensor& row_t, const Tensor& perm) {
  return {crow_t.size(0) - 1, row_t.size(0), read<int32_t>(crow_t), read<I>(row_t), read<int32_t>(perm)};
}

// Calls body with a value of the index type: int16 tensors hold the bits of unsigned 16-bit indices.
template <class Body>
void with_index(const Tensor& index, const Body& body) {
  if (index.scalar_type() == ScalarType::Short) return body(uint16_t{});
  return body(int32_t{});
}

void check_perm(const char* op, const Tensor& perm, const Tensor& row_t) {
  check_vector(op, "perm", perm, ScalarType::Int, row_t.size(0));
}

void check_bias(const char* op, const std::optional<Tensor>& bias, ScalarType type, int64_t rows) {
  if (bias) check_vector(op, "bias", *bias, type, rows);
}

Tensor linear(Tensor x, Tensor values, std::optional<Tensor> bias, Tensor crow, Tensor col, Words words) {
  const char* const op = "rsn2_cpu::linear";
  check_tensor(op, "x", x, 2);
  const int64_t nnz = check_compressed(op, "crow", crow, "col", col, true), rows = crow.size(0) - 1;
  check_vector(op, "values", values, x.scalar_type(), nnz);
  check_bias(op, bias, x.scalar_type(), rows);
  check_words(op, words, crow, x.size(1));
  Tensor y = empty(x, {x.size(0), rows});
  with_type(op, x.scalar_type(), [&](auto element) {
    with_index(col, [&](auto index) {
      using S = decltype(element);
      cpu::linear<S>(context(), matrix<S>(x), read<S>(values), read<S>(bias),
                     csr<decltype(index)>(crow, col, words), write<S>(y));
    });
  });
  return y;
}

Tensor linear_dx(Tensor dy, Tensor values, Tensor crow, Tensor col, Tensor crow_t, Tensor row_t, Tensor perm,
                 Words words) {
  const char* const op = "rsn2_cpu::linear_dx";
  check_tensor(op, "dy", dy, 2);
  const int64_t nnz = check_compressed(op, "crow", crow, "col", col, true), cols = crow_t.size(0) - 1;
  check_compressed(op, "crow_t", crow_t, "row_t", row_t, true);
  check_size(op, "row_t", row_t, 0, nnz);
  check_perm(op, perm, row_t);
  check_size(op, "dy", dy, 1, crow.size(0) - 1);
  check_vector(op, "values", values, dy.scalar_type(), nnz);
  check_words(op, words, crow, cols);
  Tensor dx = empty(dy, {dy.size(0), cols});
  with_type(op, dy.scalar_type(), [&](auto element) {
    with_index(col, [&](auto col_index) {
      with_index(row_t, [&](auto row_index) {
        using S = decltype(element);
        cpu::linear_dx<S>(context(), matrix<S>(dy), read<S>(values),
                          csr<decltype(col_index)>(crow, col, words),
                          transposed_csr<decltype(row_index)>(crow_t, row_t, perm), write<S>(dx));
      });
    });
  });
  return dx;
}

Tensor linear_dvalues(Tensor dy, Tensor x, Tensor crow, Tensor col, Words words) {
  const char* const op = "rsn2_cpu::linear_dvalues";
  check_tensor(op, "x", x, 2);
  check_tensor(op, "dy", dy, 2);
  const int64_t nnz = check_compressed(op, "crow", crow, "col", col, true);
  check_type(op, "dy", dy, x.scalar_type());
  check_size(op, "dy", dy, 0, x.size(0));
  check_size(op, "dy", dy, 1, crow.size(0) - 1);
  check_words(op, words, crow, x.size(1));
  Tensor dvalues = empty(x, {nnz});
  with_type(op, x.scalar_type(), [&](auto element) {
    with_index(col, [&](auto index) {
      using S = decltype(element);
      cpu::linear_dvalues<S>(context(), matrix<S>(dy), matrix<S>(x), csr<decltype(index)>(crow, col, words),
                             write<S>(dvalues));
    });
  });
  return dvalues;
}

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

struct ConvArguments {
  const IntList &kernel_size, &stride, &padding, &dilation;
  int64_t groups;
};

cpu::ConvAxis conv_axis(const char* op, const ConvArguments& conv, int axis, int64_t input) {
  const int64_t reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1);
  const int64_t room = input + 2 * conv.padding[axis] - reach - 1;
  STD_TORCH_CHECK(room >= 0, op, ": expected a kernel no larger than the padded input, got kernel extent ", reach + 1,
                  " and padded input ", input + 2 * conv.padding[axis], " in dimension ", axis + 2);
  return {input,
          room / conv.stride[axis] + 1,
          conv.kernel_size[axis],
          conv.stride[axis],
          conv.padding[axis],
          conv.dilation[axis]};
}

cpu::ConvShape check_conv(const char* op, const ConvArguments& conv, int64_t height, int64_t width, int64_t rows) {
  check_pair(op, "kernel_size", conv.kernel_size, 1);
  check_pair(op, "stride", conv.stride, 1);
  check_pair(op, "padding", conv.padding, 0);
  check_pair(op, "dilation", conv.dilation, 1);
  STD_TORCH_CHECK(conv.groups >= 1 && rows % conv.groups == 0, op, ": expected groups to divide the ", rows,
                  " rows of the weight, got ", conv.groups);
  return {conv_axis(op, conv, 0, height), conv_axis(op, conv, 1, width), conv.groups};
}

void check_channels(const char* op, int64_t channels, int64_t groups) {
  STD_TORCH_CHECK(channels % groups == 0, op, ": expected groups to divide the ", channels, " channels of x, got ",
                  groups);
}

void check_gradient(const char* op, const Tensor& dy, const cpu::ConvShape& shape) {
  check_size(op, "dy", dy, 2, shape.vertical.output);
  check_size(op, "dy", dy, 3, shape.horizontal.output);
}

Tensor conv2d(Tensor x, Tensor values, std::optional<Tensor> bias, Tensor crow, Tensor col, IntList kernel_size,
              IntList stride, IntList padding, IntList dilation, int64_t groups) {
  const char* const op = "rsn2_cpu::conv2d";
  check_tensor(op, "x", x, 4);
  check_compressed(op, "crow", crow, "col", col);
  const auto weight = csr<int32_t>(crow, col);
  check_vector(op, "values", values, x.scalar_type(), weight.nnz);
  check_bias(op, bias, x.scalar_type(), weight.rows);
  const cpu::ConvShape shape =
      check_conv(op, {kernel_size, stride, padding, dilation, groups}, x.size(2), x.size(3), weight.rows);
  check_channels(op, x.size(1), groups);
  Tensor y = empty(x, {x.size(0), weight.rows, shape.vertical.output, shape.horizontal.output});
  with_type(op, x.scalar_type(), [&](auto element) {
    using S = decltype(element);
    cpu::conv2d<S>(context(), images<S>(x), read<S>(values), read<S>(bias), weight, shape, write<S>(y));
  });
  return y;
}

Tensor conv2d_dx(Tensor dy, Tensor values, Tensor crow_t, Tensor row_t, Tensor perm, IntList input_size,
                 IntList kernel_size, IntList stride, IntList padding, IntList dilation, int64_t groups) {
  const char* const op = "rsn2_cpu::conv2d_dx";
  check_tensor(op, "dy", dy, 4);
  check_pair(op, "input_size", input_size, 0);
  check_compressed(op, "crow_t", crow_t, "row_t", row_t);
  check_perm(op, perm, row_t);
  const auto weight = transposed_csr<int32_t>(crow_t, row_t, perm);
  check_vector(op, "values", values, dy.scalar_type(), weight.nnz);
  const cpu::ConvShape shape =
      check_conv(op, {kernel_size, stride, padding, dilation, groups}, input_size[0], input_size[1], dy.size(1));
  check_gradient(op, dy, shape);
  const int64_t kernel = kernel_size[0] * kernel_size[1];
  STD_TORCH_CHECK(weight.cols % kernel == 0, op, ": expected the weight's columns to be a multiple of the ", kernel,
                  " positions of the kernel, got ", weight.cols);
  Tensor dx = empty(dy, {dy.size(0), weight.cols / kernel * groups, input_size[0], input_size[1]});
  with_type(op, dy.scalar_type(), [&](auto element) {
    using S = decltype(element);
    cpu::conv2d_dx<S>(context(), images<S>(dy), read<S>(values), weight, shape, write<S>(dx));
  });
  return dx;
}

Tensor conv2d_dvalues(Tensor dy, Tensor x, Tensor crow, Tensor col, IntList kernel_size, IntList stride,
                      IntList padding, IntList dilation, int64_t groups) {
  const char* const op = "rsn2_cpu::conv2d_dvalues";
  check_tensor(op, "x", x, 4);
  check_tensor(op, "dy", dy, 4);
  check_compressed(op, "crow", crow, "col", col);
  const auto weight = csr<int32_t>(crow, col);
  check_type(op, "dy", dy, x.scalar_type());
  const cpu::ConvShape shape =
      check_conv(op, {kernel_size, stride, padding, dilation, groups}, x.size(2), x.size(3), weight.rows);
  check_channels(op, x.size(1), groups);
  check_size(op, "dy", dy, 0, x.size(0));
  check_size(op, "dy", dy, 1, weight.rows);
  check_gradient(op, dy, shape);
  Tensor dvalues = empty(x, {weight.nnz});
  with_type(op, x.scalar_type(), [&](auto element) {
    using S = decltype(element);
    cpu::conv2d_dvalues<S>(context(), images<S>(dy), images<S>(x), weight, shape, write<S>(dvalues));
  });
  return dvalues;
}

Tensor expand(Tensor values, Tensor crow, Tensor col, Words words, int64_t cols) {
  const char* const op = "rsn2_cpu::expand";
  const int64_t nnz = check_compressed(op, "crow", crow, "col", col, true), rows = crow.size(0) - 1;
  check_vector(op, "values", values, values.scalar_type(), nnz);
  STD_TORCH_CHECK(cols >= 0, op, ": expected cols of at least 0, got ", cols);
  check_words(op, words, crow, cols);
  Tensor dense = empty(values, {rows, cols});
  with_type(op, values.scalar_type(), [&](auto element) {
    with_index(col, [&](auto index) {
      using S = decltype(element);
      cpu::expand(context(), csr<decltype(index)>(crow, col, words), read<S>(values), cols, write<S>(dense));
    });
  });
  return dense;
}

Tensor gather(Tensor dense, Tensor crow, Tensor col, Words words) {
  const char* const op = "rsn2_cpu::gather";
  const int64_t nnz = check_compressed(op, "crow", crow, "col", col, true), cols = dense.dim() == 2 ? dense.size(1) : 0;
  check_matrix(op, "dense", dense, dense.scalar_type(), crow.size(0) - 1, cols);
  check_words(op, words, crow, cols);
  Tensor values = empty(dense, {nnz});
  with_type(op, dense.scalar_type(), [&](auto element) {
    with_index(col, [&](auto index) {
      using S = decltype(element);
      cpu::gather(context(), csr<decltype(index)>(crow, col, words), read<S>(dense), cols, write<S>(values));
    });
  });
  return values;
}

}  // namespace

#define RSN2_CONV "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups"

STABLE_TORCH_LIBRARY(rsn2_cpu, m) {
  m.def("linear(Tensor x, Tensor values, Tensor? bias, Tensor crow, Tensor col, Tensor? words) -> Tensor");
  m.def("linear_dx(Tensor dy, Tensor values, Tensor crow, Tensor col, Tensor crow_t, Tensor row_t, "
        "Tensor perm, Tensor? words) -> Tensor");
  m.def("linear_dvalues(Tensor dy, Tensor x, Tensor crow, Tensor col, Tensor? words) -> Tensor");
  m.def("grouped_linear(Tensor x, Tensor[] values, Tensor[] biases, Tensor task_of_row, Tensor crow, Tensor col, "
        "Tensor? words, int tasks) -> Tensor");
  m.def("grouped_linear_dx(Tensor dy, Tensor values, Tensor task_of_row, Tensor crow, Tensor col, Tensor crow_t, "
        "Tensor row_t, Tensor perm, Tensor? words, int tasks) -> Tensor");
  m.def("grouped_linear_dvalues(Tensor dy, Tensor x, Tensor task_of_row, Tensor crow, Tensor col, "
        "Tensor? words, int tasks) -> Tensor");
  m.def("conv2d(Tensor x, Tensor values, Tensor? bias, Tensor crow, Tensor col, " RSN2_CONV ") -> Tensor");
  m.def("conv2d_dx(Tensor dy, Tensor values, Tensor crow_t, Tensor row_t, Tensor perm, int[] input_size, " RSN2_CONV
        ") -> Tensor");
  m.def("conv2d_dvalues(Tensor dy, Tensor x, Tensor crow, Tensor col, " RSN2_CONV ") -> Tensor");
  m.def("expand(Tensor values, Tensor crow, Tensor col, Tensor? words, int cols) -> Tensor");
  m.def("gather(Tensor dense, Tensor crow, Tensor col, Tensor? words) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(rsn2_cpu, CPU, m) {
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_dx", TORCH_BOX(&linear_dx));
  m.impl("linear_dvalues", TORCH_BOX(&linear_dvalues));
  m.impl("grouped_linear", TORCH_BOX(&grouped_linear));
  m.impl("grouped_linear_dx", TORCH_BOX(&grouped_linear_dx));
  m.impl("grouped_linear_dvalues", TORCH_BOX(&grouped_linear_dvalues));
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("conv2d_dx", TORCH_BOX(&conv2d_dx));
  m.impl("conv2d_dvalues", TORCH_BOX(&conv2d_dvalues));
  m.impl("expand", TORCH_BOX(&expand));
  m.impl("gather", TORCH_BOX(&gather));
}

}  // namespace rsn2::bindings
