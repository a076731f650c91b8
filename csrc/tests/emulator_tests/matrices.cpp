// Matrix loads and tensor-core products.
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../cuda/primitives.h"
#include "tests.h"

namespace rsn2::test {
namespace {

// in: [32][8] elements; the rows of matrix m are 8 m ... 8 m + 7. out: [lane][4 + 4 + 2 + 2].
__global__ void matrix_loads(const uint16_t* in, uint32_t* out) {
  RSN2_SHARED_MEMORY(memory);
  const int lane = static_cast<int>(threadIdx.x);
  // The rows lie in memory in another order, each aligned to 16 bytes.
  unsigned char* const row = memory + (lane * 5 + 3) % 32 * 16;
  std::memcpy(row, in + lane * 8, 16);
  __syncwarp();
  uint32_t r[4], transposed[4], pair[2], transposed_pair[2];
  cuda::load_matrices(r, row);
  cuda::load_matrices_transposed(transposed, row);
  cuda::load_matrices(pair, lane < 16 ? row : nullptr);
  cuda::load_matrices_transposed(transposed_pair, lane < 16 ? row : nullptr);
  uint32_t* const mine = out + lane * 12;
  for (int i = 0; i < 4; ++i) mine[i] = r[i];
  for (int i = 0; i < 4; ++i) mine[4 + i] = transposed[i];
  for (int i = 0; i < 2; ++i) mine[8 + i] = pair[i];
  for (int i = 0; i < 2; ++i) mine[10 + i] = transposed_pair[i];
}

void test_matrix_loads() {
  std::vector<uint16_t> in(32 * 8);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(i * 257);
  std::vector<uint32_t> out(32 * 12);
  launch(matrix_loads, 1, 32, 512, in.data(), out.data());
  bool right = true;
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 12; ++i) {
      const bool transposed = (i >= 4 && i < 8) || i >= 10;
      const int m = i < 8 ? i % 4 : i % 2;
      const auto element = [&](int r, int c) -> uint32_t {
        return transposed ? in[(8 * m + c) * 8 + r] : in[(8 * m + r) * 8 + c];
      };
      right = right && out[lane * 12 + i] == (element(row, column) | element(row, column + 1) << 16);
    }
  }
  expect(right, "load_matrices gives each lane two neighbours of each matrix");
}

uint16_t bits_of(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
uint16_t bits_of(__half x) { return __half_as_ushort(x); }
void narrow(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }
void narrow(float x, __half& out) { out = __float2half_rn(x); }

// d [16][8] += a [16][16] b [16][8], fragments by the definition in primitives.h.
template <class Element>
__global__ void product_of_fragments(const Element* a, const Element* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), outer = lane / 4, inner = lane % 4 * 2;
  const auto pair = [](Element low, Element high) { return bits_of(low) | static_cast<uint32_t>(bits_of(high)) << 16; };
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; ++i) {
    const Element* const from = a + (outer + i % 2 * 8) * 16 + inner + i / 2 * 8;
    fa[i] = pair(from[0], from[1]);
  }
  for (int i = 0; i < 2; ++i) {
    const Element* const from = b + (inner + i * 8) * 8 + outer;
    fb[i] = pair(from[0], from[8]);
  }
  float fd[4];
  for (int i = 0; i < 4; ++i) fd[i] = d[(outer + i / 2 * 8) * 8 + inner + i % 2];
  cuda::multiply_accumulate(fd, fa, fb, Element{});
  for (int i = 0; i < 4; ++i) d[(outer + i / 2 * 8) * 8 + inner + i % 2] = fd[i];
}

// The same as kernels do it: matrices in shared memory, fragments by load_matrices. b is stored [k][column] or,
// if kColumns, [column][k].
template <class Element, bool kColumns>
__global__ void product_of_loads(const Element* a, const Element* b, float* d) {
  RSN2_SHARED_MEMORY(memory);
  Element* const sa = reinterpret_cast<Element*>(memory);
  Element* const sb = sa + 256;
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) sa[i] = a[i];
  for (int i = lane; i < 128; i += 32) sb[kColumns ? i % 8 * 16 + i / 8 : i] = b[i];
  __syncwarp();
  uint32_t fa[4], fb[2];
  cuda::load_matrices(fa, sa + lane % 16 * 16 + lane / 16 * 8);
  if constexpr (kColumns) {
    cuda::load_matrices(fb, sb + lane % 8 * 16 + lane / 8 % 2 * 8);
  } else {
    cuda::load_matrices_transposed(fb, sb + lane % 16 * 8);
  }
  float fd[4];
  const int row = lane / 4, column = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) fd[i] = d[(row + i / 2 * 8) * 8 + column + i % 2];
  cuda::multiply_accumulate(fd, fa, fb, Element{});
  for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + column + i % 2] = fd[i];
}

template <class Element>
void test_products(const std::string& type) {
  std::mt19937 random(5);
  for (int round = 0; round < 20; ++round) {
    std::vector<Element> a(256), b(128);
    std::vector<float> wide_a, wide_b, d(128), expected(128);
    // Small integers: every sum is exact. No element of the product equals its mirror image.
    for (Element& x : a) narrow(wide_a.emplace_back(static_cast<float>(static_cast<int>(random() % 41) - 20)), x);
    for (Element& x : b) narrow(wide_b.emplace_back(static_cast<float>(static_cast<int>(random() % 41) - 20)), x);
    for (float& x : d) x = static_cast<float>(random() % 1000);
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        float& sum = expected[row * 8 + column] = d[row * 8 + column];
        for (int k = 0; k < 16; ++k) sum += wide_a[row * 16 + k] * wide_b[k * 8 + column];
      }
    }
    const auto check = [&](void (*kernel)(const Element*, const Element*, float*), const std::string& name) {
      std::vector<float> result = d;
      launch(kernel, 1, 32, 768, a.data(), b.data(), result.data());
      expect(result == expected, "multiply_accumulate of " + type + ", " + name);
    };
    check(product_of_fragments<Element>, "fragments by definition");
    check(product_of_loads<Element, false>, "b stored [k][column]");
    check(product_of_loads<Element, true>, "b stored [column][k]");
  }
}

}  // namespace

void run_matrices() {
  test_matrix_loads();
  test_products<__nv_bfloat16>("bfloat16");
  test_products<__half>("half");
}

}  // namespace rsn2::test
