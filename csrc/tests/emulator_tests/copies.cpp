// Asynchronous copies.
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../cuda/primitives.h"
#include "tests.h"

namespace rsn2::test {
namespace {

constexpr int kStages = 4;

// Thread t copies its stage s: bytes [kBytes (t + 64 s), ...). Thread 0 looks on.
template <int kBytes>
__global__ void copies(const unsigned char* in, int valid_bytes, unsigned char* out, bool* seen) {
  RSN2_SHARED_MEMORY(memory);
  const int t = static_cast<int>(threadIdx.x);
  constexpr int kStage = 64 * kBytes;
  const auto present = [&](int stage) {
    return memory[stage * kStage + t * kBytes] == in[stage * kStage + t * kBytes];
  };
  for (int stage = 0; stage < kStages; ++stage) {
    const int at = stage * kStage + t * kBytes;
    cuda::copy_async<kBytes>(memory + at, in + at, valid_bytes);
    if (stage + 1 < kStages) cuda::commit_copies();  // the last one stays out of all groups
  }
  bool* const mine = seen + t * 8;
  mine[0] = present(0);
  cuda::wait_copies<2>();
  mine[1] = present(0);
  mine[2] = present(1);
  cuda::wait_copies<0>();
  mine[3] = present(1);
  mine[4] = present(2);
  mine[5] = present(3);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  mine[6] = present(3);
  __syncthreads();
  const int other = 63 - t;
  for (int stage = 0; stage < kStages; ++stage) {
    std::memcpy(out + stage * kStage + other * kBytes, memory + stage * kStage + other * kBytes, kBytes);
  }
}

template <int kBytes>
void test_copies() {
  constexpr int kSize = kStages * 64 * kBytes;
  alignas(16) unsigned char in[kSize];
  std::mt19937 random(3);
  for (unsigned char& byte : in) byte = static_cast<unsigned char>(random() % 255);  // not that of garbage
  for (int valid = 0; valid <= kBytes; ++valid) {
    std::vector<unsigned char> out(kSize);
    bool seen[64 * 8];
    launch(copies<kBytes>, 1, 64, kSize, in, valid, out.data(), seen);
    bool right = true, visible = true;
    for (int i = 0; i < kSize; ++i) right = right && out[i] == (i % kBytes < valid ? in[i] : 0);
    const bool expected[7] = {false, true, false, true, true, false, true};
    for (int t = 0; t < 64; ++t) {
      for (int i = 0; i < 7; ++i) visible = visible && seen[8 * t + i] == expected[i];
    }
    const std::string name = "copy_async<" + std::to_string(kBytes) + "> of " + std::to_string(valid) + " valid bytes";
    expect(right, name + " copies these and fills with zeros");
    if (valid > 0) expect(visible, name + " shows its bytes after the wait, not before");
  }
}

}  // namespace

void run_copies() {
  test_copies<4>();
  test_copies<8>();
  test_copies<16>();
}

}  // namespace rsn2::test
