// The linear operators of the namespace rsn2_cpu, and copies into and out of dense weights: schemas, checks, types.
// Only LibTorch's stable ABI is used, so one build serves every torch from the targeted release on.
#include "../cpu/expansion.h"
#include "cpu_operands.h"

namespace rsn2::bindings {
namespace {

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

std::tuple<Tensor, Tensor> linear_gradients(Tensor dy, Tensor x, Tensor values, Tensor crow, Tensor col, Tensor crow_t,
                                            Tensor row_t, Tensor perm, Words words) {
  Tensor dvalues = linear_dvalues(dy, x, crow, col, words);
  return {linear_dx(dy, values, crow, col, crow_t, row_t, perm, words), dvalues};
}

int64_t bit_worth(int64_t product, int64_t batch) {
  constexpr cpu::BitWorth cpu::BitKernels::* kProducts[] = {&cpu::BitKernels::forward, &cpu::BitKernels::dx,
                                                            &cpu::BitKernels::dvalues};
  STD_TORCH_CHECK(product >= 0 && product < 3 && batch >= 1, "rsn2_cpu::bit_worth: expected a product of 0, 1 or 2 and a "
                  "batch of at least 1, got ", product, " and ", batch);
  const cpu::BitKernels* const bits = context().kernels.bits;
  return bits && batch <= cpu::kBitBatch ? cpu::bit_worth(bits->*kProducts[product], batch) : 0;
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
      check_columns<decltype(index)>(op, crow, col, cols);
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
      check_columns<decltype(index)>(op, crow, col, cols);
      cpu::gather(context(), csr<decltype(index)>(crow, col, words), read<S>(dense), cols, write<S>(values));
    });
  });
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY(rsn2_cpu, m) {
  m.def("linear(Tensor x, Tensor values, Tensor? bias, Tensor crow, Tensor col, Tensor? words) -> Tensor");
  m.def("linear_dx(Tensor dy, Tensor values, Tensor crow, Tensor col, Tensor crow_t, Tensor row_t, "
        "Tensor perm, Tensor? words) -> Tensor");
  m.def("linear_dvalues(Tensor dy, Tensor x, Tensor crow, Tensor col, Tensor? words) -> Tensor");
  m.def("linear_gradients(Tensor dy, Tensor x, Tensor values, Tensor crow, Tensor col, Tensor crow_t, Tensor row_t, "
        "Tensor perm, Tensor? words) -> (Tensor, Tensor)");
  m.def("bit_worth(int product, int batch) -> int");
  m.def("expand(Tensor values, Tensor crow, Tensor col, Tensor? words, int cols) -> Tensor");
  m.def("gather(Tensor dense, Tensor crow, Tensor col, Tensor? words) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(rsn2_cpu, CPU, m) {
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_dx", TORCH_BOX(&linear_dx));
  m.impl("linear_dvalues", TORCH_BOX(&linear_dvalues));
  m.impl("linear_gradients", TORCH_BOX(&linear_gradients));
  m.impl("expand", TORCH_BOX(&expand));
  m.impl("gather", TORCH_BOX(&gather));
}

STABLE_TORCH_LIBRARY_IMPL(rsn2_cpu, CompositeExplicitAutograd, m) { m.impl("bit_worth", TORCH_BOX(&bit_worth)); }

}  // namespace rsn2::bindings
