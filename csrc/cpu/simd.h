// Vectors as the compiler's own vector extension: one source for every instruction set, gcc and clang.
//
// Everything here has internal linkage. Files compiled for different instruction sets include this header, and
// a function shared between them could be linked in the version that the running machine cannot execute.
#pragma once

#include <stdint.h>

namespace rsn2::cpu {
namespace {

template <class T, int kBytes>
struct Simd;

template <int kBytes>
struct Simd<float, kBytes> {
  typedef float Vector __attribute__((vector_size(kBytes)));
  typedef float Unaligned __attribute__((vector_size(kBytes), aligned(4), may_alias));
  typedef int32_t Index __attribute__((vector_size(kBytes)));
};

template <int kBytes>
struct Simd<double, kBytes> {
  typedef double Vector __attribute__((vector_size(kBytes)));
  typedef double Unaligned __attribute__((vector_size(kBytes), aligned(8), may_alias));
  typedef int64_t Index __attribute__((vector_size(kBytes)));
};

template <int... kLanes>
struct LaneList {};
template <int kCount, int... kLanes>
struct MakeLaneList : MakeLaneList<kCount - 1, kCount - 1, kLanes...> {};
template <int... kLanes>
struct MakeLaneList<0, kLanes...> {
  typedef LaneList<kLanes...> Type;
};

// Lanes kSource... of a and b taken as one long vector.
template <class T, int kBytes, int... kSource>
inline typename Simd<T, kBytes>::Vector shuffle(const typename Simd<T, kBytes>::Vector& a,
                                                const typename Simd<T, kBytes>::Vector& b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, kSource...);
#else
  return __builtin_shuffle(a, b, typename Simd<T, kBytes>::Index{kSource...});
#endif
}

}  // namespace
}  // namespace rsn2::cpu
