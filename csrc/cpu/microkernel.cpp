// The inner products and copies of microkernel/, compiled once per instruction set. The build defines
//   RSN2_ISA           the namespace of this copy
//   RSN2_VECTOR_BYTES  width of one register
//   RSN2_MAX_VECTORS   registers that hold one row's accumulators
// and compiles without contraction: see multiply_add in simd.h.
// No C++ standard header and no torch header may be included here or in microkernel/: see simd.h.
// Vectors wider than a register are passed between functions of these files alone.
#pragma GCC diagnostic ignored "-Wpsabi"

#include "microkernel.h"
#include "microkernel/bit_products.h"
#include "microkernel/copies.h"
#include "microkernel/product_single.h"
#include "microkernel/product_wide.h"
#include "microkernel/row_order.h"
#include "microkernel/sampled_product.h"
#include "microkernel/scattered_product.h"

namespace rsn2::cpu::RSN2_ISA {
namespace {

template <class T, class I>
void multiply(const Product<T, I>& p) {
  const auto several = [&](auto rows, int64_t count) { multiply_from<FloatSums, kMaxVectors>(p, 0, rows, count); };
  in_blocks<kLanes<T>>(p, several, [&](const int32_t* rows, int64_t count, int64_t end) {
    if (p.width == 1) {
      multiply_single(p, rows, count, end);
    } else {
      several(rows, count);
    }
  });
}

#if defined(__AVX2__)
constexpr const BitKernels* kBits = &kBitKernels;
#else
constexpr const BitKernels* kBits = nullptr;
#endif

}  // namespace

#define RSN2_STRING(text) #text
#define RSN2_NAME(text) RSN2_STRING(text)

const Microkernels microkernels = {
    RSN2_NAME(RSN2_ISA),
    {multiply<float, int32_t>, multiply_any_order<float, int32_t>, sample<float, int32_t>, scatter<float, int32_t>},
    {multiply<float, uint16_t>, multiply_any_order<float, uint16_t>, sample<float, uint16_t>, scatter<float, uint16_t>},
    {multiply<double, int32_t>, multiply_any_order<double, int32_t>, sample<double, int32_t>, scatter<double, int32_t>},
    {multiply<double, uint16_t>, multiply_any_order<double, uint16_t>, sample<double, uint16_t>, scatter<double, uint16_t>},
    {transpose<float>, copy_runs<float>},
    {transpose<double>, copy_runs<double>},
    {transpose<uint16_t>, copy_runs<uint16_t>},
    kBits,
    nullptr,
};

}  // namespace rsn2::cpu::RSN2_ISA
