// Planted defects.
#include <set>
#include <string>
#include <vector>

#include "tests.h"

namespace rsn2::test {
namespace {

constexpr int kRows = 37, kColumns = 20, kDepth = 42;

std::vector<float> planted_expected() {
  std::vector<float> out(kRows * kColumns + kRows);
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      float sum = 0.0f;
      for (int k = 0; k < kDepth; ++k) {
        sum += (static_cast<float>((row * kDepth + k) * 7 % 11) - 5) *
               (static_cast<float>((k * kColumns + column) * 5 % 13) - 6);
      }
      out[row * kColumns + column] = sum;
      if (column < 16) out[kRows * kColumns + row] += sum;
    }
  }
  return out;
}

// Results over all seeds, as bits, because NaN is among them.
std::set<std::vector<uint32_t>> results_over_seeds(planted::Defect defect) {
  std::set<std::vector<uint32_t>> results;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    emulator::set_seed(seed);
    const std::vector<float> result = planted_result(defect);
    std::vector<uint32_t> bits;
    for (const float x : result) bits.push_back(__float_as_uint(x));
    results.insert(bits);
  }
  return results;
}

}  // namespace

// [kRows][kColumns], then [kRows]. Buffers are exactly as large as promised, for sanitizers.
std::vector<float> planted_result(planted::Defect defect) {
  std::vector<float> a(kRows * kDepth), b(kDepth * kColumns), product(kRows * kColumns), sums(kRows);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 7 % 11) - 5;
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i * 5 % 13) - 6;
  planted::run(defect, a.data(), b.data(), product.data(), sums.data(), kRows, kColumns, kDepth);
  product.insert(product.end(), sums.begin(), sums.end());
  return product;
}

void test_planted_defects() {
  using planted::Defect;
  expect(planted_result(Defect::none) == planted_expected(), "without a defect the planted kernel is right");
  expect(results_over_seeds(Defect::none).size() == 1, "a kernel without races has one result for all seeds");
  for (const auto& [name, defect] : planted::kDefects) {
    switch (defect) {
      case Defect::no_barrier_after_load:
      case Defect::no_barrier_before_load:
      case Defect::no_warp_barrier:
        if (emulator::kThreadSanitizer) break;  // it would report the race; test_emulator.py wants that
        expect(results_over_seeds(defect).size() > 1, std::string("the seed changes the result of ") + name);
        [[fallthrough]];
      case Defect::no_wait_for_copies:
      case Defect::wrong_shuffle_width:
        for (uint64_t seed = 0; seed < kSeeds; ++seed) {
          emulator::set_seed(seed);
          expect(planted_result(defect) != planted_expected(),
                 std::string("the result is wrong with ") + name + ", seed " + std::to_string(seed));
        }
        break;
      case Defect::return_before_barrier:
        expect(error_of([&] { planted_result(defect); }).find("waits in __syncthreads at row_sums.cu:") !=
                   std::string::npos,
               "threads that never come to a barrier are reported");
        break;
      case Defect::barriers_in_both_branches:
        expect(error_of([&] { planted_result(defect); }).find("divergent barrier") != std::string::npos,
               "a divergent barrier is reported");
        break;
      case Defect::shuffle_in_branch:
        expect(error_of([&] { planted_result(defect); }).find("call different collectives: ") != std::string::npos,
               "a shuffle without some of its lanes is reported");
        break;
      default: break;  // with the address sanitizer, from test_emulator.py
    }
  }
}

}  // namespace rsn2::test
