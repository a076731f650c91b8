// The convolutions of the namespace rsn2_cpu: schemas, checks, types.
#include "cpu_operands.h"

namespace rsn2::bindings {
namespace {

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
  // Beyond any memory: `empty` refuses a product of sizes that 64 bits do not hold.
  check_pair(op, "input_size", input_size, 0, int64_t{1} << 48);
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

}  // namespace

#define RSN2_CONV "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups"

STABLE_TORCH_LIBRARY_FRAGMENT(rsn2_cpu, m) {
  m.def("conv2d(Tensor x, Tensor values, Tensor? bias, Tensor crow, Tensor col, " RSN2_CONV ") -> Tensor");
  m.def("conv2d_dx(Tensor dy, Tensor values, Tensor crow_t, Tensor row_t, Tensor perm, int[] input_size, " RSN2_CONV
        ") -> Tensor");
  m.def("conv2d_dvalues(Tensor dy, Tensor x, Tensor crow, Tensor col, " RSN2_CONV ") -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(rsn2_cpu, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("conv2d_dx", TORCH_BOX(&conv2d_dx));
  m.impl("conv2d_dvalues", TORCH_BOX(&conv2d_dvalues));
}

}  // namespace rsn2::bindings
