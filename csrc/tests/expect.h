// What all C++ tests say when a promise is broken; a test program returns whether there were `failures`.
#pragma once

#include <cstdio>
#include <string>

namespace rsn2::test {

inline int failures = 0;

inline void expect(bool condition, const std::string& promise) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s\n", promise.c_str());
}

}  // namespace rsn2::test
