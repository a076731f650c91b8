// What the operators of the namespace rsn2_cpu share: operands as csrc/cpu takes them, and torch's thread pool.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../cpu/bit_product.h"
#include "../cpu/conv2d.h"
#include "../cpu/isa.h"
#include "../cpu/linear.h"
#include "checks.h"

namespace rsn2::bindings {

using IntList = std::vector<int64_t>;

inline cpu::Context context() {
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

// More than any memory holds, and so few that their bytes are counted in 64 bits.
inline constexpr int64_t kMostElements = int64_t{1} << 60;

// Contiguous, on the CPU, of the dtype of `like`. torch::stable::new_empty goes through torch's dispatcher once more.
inline Tensor empty(const Tensor& like, const IntList& size) {
  IntList strides(size.size());
  int64_t elements = 1;
  for (size_t place = size.size(); place-- > 0;) {
    strides[place] = elements;
    const int64_t repeated = std::max<int64_t>(size[place], 1);
    STD_TORCH_CHECK(repeated <= kMostElements / elements, "rsn2_cpu: a result of more than 2**60 elements");
    elements *= repeated;
  }
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), strides.data(),
                                                         dtype, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

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

inline void check_words(const char* op, const Words& words, const Tensor& crow, int64_t cols) {
  if (!words) return;
  const bool none = words->dim() == 2 && words->size(1) == 0;
  check_matrix(op, "words", *words, ScalarType::Long, crow.size(0) - 1,
               none ? 0 : cpu::ceil_div(cols, cpu::kWordColumns));
}

inline const uint64_t* read_words(const Words& words) { return words && words->size(1) > 0 ? read<uint64_t>(*words) : nullptr; }

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

inline void check_perm(const char* op, const Tensor& perm, const Tensor& row_t) {
  check_vector(op, "perm", perm, ScalarType::Int, row_t.size(0));
}

inline void check_bias(const char* op, const std::optional<Tensor>& bias, ScalarType type, int64_t rows) {
  if (bias) check_vector(op, "bias", *bias, type, rows);
}

}  // namespace rsn2::bindings
