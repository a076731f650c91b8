// Tests of how csrc/cpu widens and narrows numbers of 16 bits.
#include <cmath>
#include <cstdio>

#include "expect.h"
#include "numbers.h"

namespace rsn2::test {
namespace {

// The value a half's bits stand for, from the format's definition.
double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 31  ? (mantissa ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

double bfloat16_value(uint16_t bits) { return cpu::widen(cpu::BFloat16{bits}); }

// narrow() at every representable number, between it and the next, and just beside that midpoint.
template <class S>
void test_rounding(double (*value)(uint16_t), uint16_t infinity) {
  bool widens = true, exact = true, ties = true, nearest = true, nan = true;
  for (uint32_t i = 0; i < 0x10000; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i), magnitude = bits & 0x7FFF;
    const double here = value(bits);
    if (magnitude > infinity) {
      nan = nan && std::isnan(cpu::widen(S{bits})) && std::isnan(value(stored<S>(here).bits));
      continue;
    }
    widens = widens && cpu::widen(S{bits}) == here && std::signbit(cpu::widen(S{bits})) == std::signbit(here);
    exact = exact && stored<S>(here).bits == bits;
    if (magnitude + 1 >= infinity) continue;
    const float middle = static_cast<float>((here + value(bits + 1)) / 2);
    ties = ties && stored<S>(middle).bits == (bits % 2 ? bits + 1 : bits);
    nearest = nearest && stored<S>(std::nextafterf(middle, 0)).bits == bits &&
              stored<S>(std::nextafterf(middle, middle * 2)).bits == bits + 1;
  }
  expect(widens, type_name<S>() + ": widening is exact");
  expect(exact, type_name<S>() + ": narrowing a representable number is exact");
  expect(ties, type_name<S>() + ": a tie rounds to even");
  expect(nearest, type_name<S>() + ": narrowing rounds to the nearest");
  expect(nan, type_name<S>() + ": NaN stays NaN");
  expect(stored<S>(3.4e38).bits == infinity, type_name<S>() + ": overflow is infinity");
}

}  // namespace
}  // namespace rsn2::test

int main() {
  using namespace rsn2;
  test::test_rounding<cpu::Half>(test::half_value, 0x7C00);
  test::test_rounding<cpu::BFloat16>(test::bfloat16_value, 0x7F80);
  std::printf("%d failures\n", test::failures);
  return test::failures ? 1 : 0;
}
