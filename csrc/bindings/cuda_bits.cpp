// The operators of the namespace rsn2_cuda on masks: schemas and checks around csrc/cuda/bits.h.
//
// With RSN2_EMULATED they are registered for the CPU, where the same kernels run emulated: for tests.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../cuda/bits.h"
#include "cuda_stream.h"

namespace rsn2::bindings {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_matrix(const char* op, const char* name, const Tensor& tensor, ScalarType type) {
  STD_TORCH_CHECK(tensor.dim() == 2, op, ": expected ", name, " of 2 dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.scalar_type() == type, op, ": expected ", name, " of dtype ", type, ", got ",
                  tensor.scalar_type());
  STD_TORCH_CHECK(tensor.is_contiguous(), op, ": expected ", name, " to be contiguous");
}

void check_like(const char* op, const char* name, const Tensor& tensor, const Tensor& words) {
  for (int64_t i = 0; i < 2; ++i) {
    STD_TORCH_CHECK(tensor.size(i) == words.size(i), op, ": expected size ", words.size(i), " in dimension ", i,
                    " of ", name, ", got ", tensor.size(i));
  }
  STD_TORCH_CHECK(tensor.is_cpu() == words.is_cpu() && tensor.get_device_index() == words.get_device_index(), op,
                  ": expected ", name, " on the device of words");
}

Tensor empty(const Tensor& like, int64_t rows, int64_t cols, ScalarType type) {
  return torch::stable::new_empty(like, {rows, cols}, type);
}

const uint64_t* words_of(const Tensor& tensor) { return static_cast<const uint64_t*>(tensor.const_data_ptr()); }

Tensor pack_bits(Tensor mask) {
  check_matrix("rsn2_cuda::pack_bits", "mask", mask, ScalarType::Bool);
  const int64_t rows = mask.size(0), cols = mask.size(1);
  const DeviceOf guard(mask);
  Tensor words = empty(mask, rows, cuda::words_per_row(cols), ScalarType::Long);
  cuda::pack_bits(static_cast<const uint8_t*>(mask.const_data_ptr()), rows, cols,
                  static_cast<uint64_t*>(words.mutable_data_ptr()), current_stream(mask));
  return words;
}

Tensor unpack_bits(Tensor words, int64_t cols) {
  const char* const op = "rsn2_cuda::unpack_bits";
  check_matrix(op, "words", words, ScalarType::Long);
  STD_TORCH_CHECK(cols >= 0 && cuda::words_per_row(cols) == words.size(1), op, ": expected ",
                  cuda::words_per_row(cols), " words per row for ", cols, " columns, got ", words.size(1));
  const DeviceOf guard(words);
  Tensor mask = empty(words, words.size(0), cols, ScalarType::Bool);
  cuda::unpack_bits(words_of(words), words.size(0), cols, static_cast<uint8_t*>(mask.mutable_data_ptr()),
                    current_stream(words));
  return mask;
}

Tensor count_bits(Tensor words) {
  check_matrix("rsn2_cuda::count_bits", "words", words, ScalarType::Long);
  const DeviceOf guard(words);
  Tensor counts = empty(words, words.size(0), words.size(1), ScalarType::Int);
  cuda::count_bits(words_of(words), words.numel(), static_cast<int32_t*>(counts.mutable_data_ptr()),
                   current_stream(words));
  return counts;
}

// NOTES: that nnz is the last of ends is not checked: it would wait for the device.
Tensor columns_of_bits(Tensor words, Tensor ends, int64_t nnz) {
  const char* const op = "rsn2_cuda::columns_of_bits";
  check_matrix(op, "words", words, ScalarType::Long);
  check_matrix(op, "ends", ends, ScalarType::Long);
  check_like(op, "ends", ends, words);
  STD_TORCH_CHECK(nnz >= 0, op, ": expected nnz of at least 0, got ", nnz);
  const DeviceOf guard(words);
  Tensor col = torch::stable::new_empty(words, {nnz}, ScalarType::Int);
  cuda::columns_of_bits(words_of(words), static_cast<const int64_t*>(ends.const_data_ptr()), words.size(0),
                        words.size(1), static_cast<int32_t*>(col.mutable_data_ptr()), current_stream(words));
  return col;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rsn2_cuda, m) {
  m.def("pack_bits(Tensor mask) -> Tensor");
  m.def("unpack_bits(Tensor words, int cols) -> Tensor");
  m.def("count_bits(Tensor words) -> Tensor");
  m.def("columns_of_bits(Tensor words, Tensor ends, int nnz) -> Tensor");
}

#ifdef RSN2_EMULATED
STABLE_TORCH_LIBRARY_IMPL(rsn2_cuda, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(rsn2_cuda, CUDA, m) {
#endif
  m.impl("pack_bits", TORCH_BOX(&pack_bits));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits));
  m.impl("count_bits", TORCH_BOX(&count_bits));
  m.impl("columns_of_bits", TORCH_BOX(&columns_of_bits));
}

}  // namespace rsn2::bindings
