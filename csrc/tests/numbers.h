// The element types of csrc/cpu by name, and doubles as they store them.
#pragma once

#include <string>
#include <vector>

#include "../cpu/scalar.h"

namespace rsn2::test {

template <class S>
std::string type_name();
template <>
inline std::string type_name<float>() { return "float"; }
template <>
inline std::string type_name<double>() { return "double"; }
template <>
inline std::string type_name<cpu::Half>() { return "half"; }
template <>
inline std::string type_name<cpu::BFloat16>() { return "bfloat16"; }

template <class S>
S stored(double value) {
  S out;
  cpu::narrow(static_cast<cpu::AccumulatorOf<S>>(value), out);
  return out;
}

template <class S>
std::vector<S> stored(const std::vector<double>& values) {
  std::vector<S> out;
  for (const double value : values) out.push_back(stored<S>(value));
  return out;
}

}  // namespace rsn2::test
