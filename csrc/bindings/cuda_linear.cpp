// The operators of the namespace rsn2_cuda on compact weights: schemas, checks and scratch around csrc/cuda/linear.h.
//
// With RSN2_EMULATED they are registered for the CPU, where the same kernels run emulated: for tests.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <optional>

#include "../cuda/linear.h"
#include "cuda_stream.h"

namespace rsn2::bindings {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

// A contiguous vector.
void check_vector(const char* op, const char* name, const Tensor& tensor, ScalarType type, int64_t size) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == size && tensor.is_contiguous(), op, ": expected ", name,
                  " contiguous, of ", size, " elements");
  STD_TORCH_CHECK(tensor.scalar_type() == type, op, ": expected ", name, " of dtype ", type, ", got ",
                  tensor.scalar_type());
}

// One that is read 16 bytes at a time. An empty one begins nowhere.
void check_aligned(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.numel() == 0 || aligned(tensor), op, ": expected ", name,
                  " to begin at a multiple of 16 bytes");
}

void check_device(const char* op, const char* name, const Tensor& tensor, const Tensor& x) {
  STD_TORCH_CHECK(tensor.is_cpu() == x.is_cpu() && tensor.get_device_index() == x.get_device_index(), op,
                  ": expected ", name, " on the device of x");
}

int checked_size(const char* op, const char* name, int64_t size) {
  STD_TORCH_CHECK(size >= 1 && size <= std::numeric_limits<int>::max() / 2, op, ": expected ", name,
                  " to be positive and to fit 30 bits, got ", size);
  return static_cast<int>(size);
}

// The index tensors of a compact weight.
struct Index {
  Tensor columns, starts, bases, offsets;
};

template <class T>
cuda::CompactWeight<T> compact_weight(const char* op, const Tensor& x, const Tensor& values, const Index& index,
                                      int64_t stacks, int64_t rows) {
  cuda::CompactWeight<T> weight{};
  weight.stacks = checked_size(op, "tasks", stacks);
  weight.rows = checked_size(op, "rows", rows);
  weight.cols = checked_size(op, "the columns of x", x.size(1));
  weight.segments = (weight.cols + cuda::kSegment - 1) / cuda::kSegment;
  weight.nnz = values.size(0);
  STD_TORCH_CHECK(weight.nnz <= std::numeric_limits<int32_t>::max(), op, ": expected at most 2^31 - 1 values, got ",
                  weight.nnz);
  const int64_t octets = (weight.nnz + cuda::kOctet - 1) / cuda::kOctet;
  check_vector(op, "values", values, x.scalar_type(), weight.nnz);
  check_vector(op, "columns", index.columns, ScalarType::Int, weight.nnz);
  check_vector(op, "starts", index.starts, ScalarType::Int, stacks * rows * weight.segments + 1);
  check_vector(op, "bases", index.bases, ScalarType::Short, octets);
  check_vector(op, "offsets", index.offsets, ScalarType::Byte, octets * cuda::kOctet);
  check_aligned(op, "values", values);
  check_aligned(op, "offsets", index.offsets);
  weight.values = static_cast<const T*>(values.const_data_ptr());
  weight.columns = static_cast<const int32_t*>(index.columns.const_data_ptr());
  weight.starts = static_cast<const int32_t*>(index.starts.const_data_ptr());
  weight.bases = static_cast<const uint16_t*>(index.bases.const_data_ptr());
  weight.offsets = static_cast<const uint8_t*>(index.offsets.const_data_ptr());
  check_device(op, "values", values, x);
  check_device(op, "columns", index.columns, x);
  check_device(op, "starts", index.starts, x);
  check_device(op, "bases", index.bases, x);
  check_device(op, "offsets", index.offsets, x);
  return weight;
}

cuda::Activation activation_of(const char* op, int64_t code) {
  STD_TORCH_CHECK(code >= 0 && code <= 2, op, ": expected activation 0 (none), 1 (ReLU) or 2 (GELU), got ", code);
  return static_cast<cuda::Activation>(code);
}

// The product but for its result; `biases` [stacks * rows] in all.
template <class T>
cuda::Product<T> product_of(const char* op, const Tensor& x, const Tensor& values, const std::optional<Tensor>& biases,
                            const Index& index, int64_t stacks, int64_t rows, int64_t activation) {
  STD_TORCH_CHECK(x.dim() == 2, op, ": expected x of 2 dimensions, got ", x.dim());
  STD_TORCH_CHECK(x.numel() == 0 || (x.stride(1) == 1 && (x.size(0) <= 1 || x.stride(0) % 8 == 0) && aligned(x)), op,
                  ": expected rows of x that begin at multiples of 8 elements and 16 bytes, and have no gaps");
  cuda::Product<T> product{};
  product.weight = compact_weight<T>(op, x, values, index, stacks, rows);
  product.x = static_cast<const T*>(x.const_data_ptr());
  product.x_stride = x.stride(0);
  product.batch = x.size(0) == 0 ? 0 : checked_size(op, "the rows of x", x.size(0));
  product.epilogue.activation = activation_of(op, activation);
  if (biases) {
    STD_TORCH_CHECK(biases->numel() == stacks * rows && biases->is_contiguous(), op,
                    ": expected the bias contiguous, of ", stacks * rows, " elements");
    STD_TORCH_CHECK(biases->scalar_type() == x.scalar_type(), op, ": expected the bias of the dtype of x");
    check_device(op, "the bias", *biases, x);
    product.epilogue.bias = static_cast<const T*>(biases->const_data_ptr());
  }
  return product;
}

template <class Body>
void with_type(const char* op, ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Float: return body(float{});
    case ScalarType::Half: return body(cuda::Half{});
    case ScalarType::BFloat16: return body(cuda::BFloat16{});
    default: STD_TORCH_CHECK(false, op, ": expected dtype float32, float16 or bfloat16, got ", type);
  }
}

Tensor linear(Tensor x, Tensor values, std::optional<Tensor> bias, Tensor columns, Tensor starts, Tensor bases,
              Tensor offsets, int64_t rows, int64_t activation) {
  const char* const op = "rsn2_cuda::linear";
  const Index index{columns, starts, bases, offsets};
  Tensor y;
  with_type(op, x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    cuda::Product<T> product = product_of<T>(op, x, values, bias, index, 1, rows, activation);
    const DeviceOf guard(x);
    y = torch::stable::new_empty(x, {x.size(0), rows});
    product.y = static_cast<T*>(y.mutable_data_ptr());
    const cuda::Device device = cuda::current_device();
    const auto stream = static_cast<cudaStream_t>(current_stream(x));
    if constexpr (sizeof(T) == 2) {
      if (cuda::prefers_tiles(product)) {
        const cuda::TileShape shape = cuda::tile_shape(product.weight.rows, product.weight.cols, product.batch, device);
        const int64_t scratch = shape.splits > 1 ? int64_t{shape.splits} * product.batch * rows : 0;
        Tensor partial = torch::stable::new_empty(x, {scratch}, ScalarType::Float);
        return cuda::multiply_tiles(product, shape, static_cast<float*>(partial.mutable_data_ptr()), stream);
      }
    }
    const cuda::VectorShape shape = cuda::vector_shape(product.weight, product.batch, false, device);
    cuda::multiply_vectors(product, nullptr, shape, stream);
  });
  return y;
}

Tensor grouped_linear(Tensor x, Tensor values, std::optional<Tensor> biases, Tensor task_of_row, Tensor columns,
                      Tensor starts, Tensor bases, Tensor offsets, int64_t tasks, int64_t rows) {
  const char* const op = "rsn2_cuda::grouped_linear";
  const Index index{columns, starts, bases, offsets};
  Tensor y;
  with_type(op, x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    cuda::Product<T> product = product_of<T>(op, x, values, biases, index, tasks, rows, 0);
    STD_TORCH_CHECK(task_of_row.dim() == 1 && task_of_row.size(0) == x.size(0) && task_of_row.is_contiguous() &&
                        task_of_row.scalar_type() == ScalarType::Long,
                    op, ": expected task_of_row contiguous, int64, of ", x.size(0), " elements");
    check_device(op, "task_of_row", task_of_row, x);
    const DeviceOf guard(x);
    y = torch::stable::new_empty(x, {x.size(0), rows});
    product.y = static_cast<T*>(y.mutable_data_ptr());
    const cuda::VectorShape shape = cuda::vector_shape(product.weight, product.batch, true, cuda::current_device());
    cuda::multiply_vectors(product, static_cast<const int64_t*>(task_of_row.const_data_ptr()), shape,
                           static_cast<cudaStream_t>(current_stream(x)));
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY(rsn2_cuda, m) {
  m.def("linear(Tensor x, Tensor values, Tensor? bias, Tensor columns, Tensor starts, Tensor bases, Tensor offsets, "
        "int rows, int activation) -> Tensor");
  m.def("grouped_linear(Tensor x, Tensor values, Tensor? biases, Tensor task_of_row, Tensor columns, Tensor starts, "
        "Tensor bases, Tensor offsets, int tasks, int rows) -> Tensor");
}

#ifdef RSN2_EMULATED
STABLE_TORCH_LIBRARY_IMPL(rsn2_cuda, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(rsn2_cuda, CUDA, m) {
#endif
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("grouped_linear", TORCH_BOX(&grouped_linear));
}

}  // namespace rsn2::bindings
