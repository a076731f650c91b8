// Argument checks of the operators: whatever passes them cannot make a kernel read outside its tensors, given an
// index structure whose entries are in range: each column below the features of x, each row below those of dy. That
// would cost a pass over them. The Python side makes no other index of a mask, and compares x and dy with the shape of
// that mask before each call: in the public function, or in the operator where a captured graph calls it. What is
// expanded or gathered has no such operand, and there the last column of each row is looked at.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace rsn2::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

inline void check_tensor(const char* op, const char* name, const Tensor& tensor, int64_t dim) {
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": expected ", name, " on the CPU");
  STD_TORCH_CHECK(tensor.dim() == dim, op, ": expected ", name, " of ", dim, " dimensions, got shape ",
                  shape_of(tensor));
}

inline void check_size(const char* op, const char* name, const Tensor& tensor, int64_t dim, int64_t size) {
  STD_TORCH_CHECK(tensor.size(dim) == size, op, ": expected size ", size, " in dimension ", dim, " of ", name,
                  ", got shape ", shape_of(tensor));
}

inline void check_type(const char* op, const char* name, const Tensor& tensor, ScalarType type) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, op, ": expected ", name, " of dtype ", type, ", got ",
                  tensor.scalar_type());
}

// A contiguous vector of `size` elements.
inline void check_vector(const char* op, const char* name, const Tensor& tensor, ScalarType type, int64_t size) {
  check_tensor(op, name, tensor, 1);
  check_type(op, name, tensor, type);
  check_size(op, name, tensor, 0, size);
  STD_TORCH_CHECK(tensor.is_contiguous(), op, ": expected ", name, " to be contiguous");
}

// A contiguous matrix of `rows` by `cols` elements.
inline void check_matrix(const char* op, const char* name, const Tensor& tensor, ScalarType type, int64_t rows,
                         int64_t cols) {
  check_tensor(op, name, tensor, 2);
  check_type(op, name, tensor, type);
  check_size(op, name, tensor, 0, rows);
  check_size(op, name, tensor, 1, cols);
  STD_TORCH_CHECK(tensor.is_contiguous(), op, ": expected ", name, " to be contiguous");
}

// Returns nnz. crow must be an int32 vector that starts at 0 and ends at the length of indices, which are int32, or
// int16 where `narrow` allows it.
inline int64_t check_compressed(const char* op, const char* crow_name, const Tensor& crow, const char* index_name,
                                const Tensor& index, bool narrow = false) {
  check_tensor(op, crow_name, crow, 1);
  check_tensor(op, index_name, index, 1);
  const int64_t nnz = index.size(0);
  STD_TORCH_CHECK(crow.size(0) >= 1, op, ": expected at least one element in ", crow_name);
  check_vector(op, crow_name, crow, ScalarType::Int, crow.size(0));
  const bool is_narrow = narrow && index.scalar_type() == ScalarType::Short;
  check_vector(op, index_name, index, is_narrow ? ScalarType::Short : ScalarType::Int, nnz);
  const int32_t* const begin = static_cast<const int32_t*>(crow.const_data_ptr());
  STD_TORCH_CHECK(begin[0] == 0 && begin[crow.size(0) - 1] == nnz, op, ": expected ", crow_name,
                  " to run from 0 to the length of ", index_name, " (", nnz, "), got ", begin[0], " to ",
                  begin[crow.size(0) - 1]);
  return nnz;
}

// Raises unless the last column of each row is one of `cols`: a pass over the rows only, as columns ascend in a row.
template <class I>
void check_columns(const char* op, const Tensor& crow, const Tensor& col, int64_t cols) {
  const int32_t* const begin = static_cast<const int32_t*>(crow.const_data_ptr());
  const I* const column = static_cast<const I*>(col.const_data_ptr());
  bool fits = true;
  for (int64_t row = 0; row + 1 < crow.size(0); ++row) {
    const int64_t from = begin[row], to = begin[row + 1];
    fits = fits && 0 <= from && from <= to && to <= col.size(0) && (from == to || column[to - 1] < cols);
  }
  STD_TORCH_CHECK(fits, op, ": expected the index of a weight of ", cols, " columns, got columns beyond");
}

// Two integers, each from `least` to `most`. Products of two stay in 64 bits unless another `most` is given.
inline void check_pair(const char* op, const char* name, const std::vector<int64_t>& pair, int64_t least,
                       int64_t most = int64_t{1} << 24) {
  STD_TORCH_CHECK(pair.size() == 2, op, ": expected two values in ", name, ", got ", pair.size());
  for (const int64_t value : pair) {
    STD_TORCH_CHECK(value >= least && value <= most, op, ": expected values from ", least, " to ", most, " in ", name,
                    ", got (", pair[0], ", ", pair[1], ")");
  }
}

}  // namespace rsn2::bindings
