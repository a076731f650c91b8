// Vectors as the compiler's own vector extension: one source for every instruction set, gcc and clang.
//
// Everything here has internal linkage. Files compiled for different instruction sets include this header, and
// a function shared between them could be linked in the version that the running machine cannot execute.
#pragma once

#include <stdint.h>

// Of these headers only functions that are always inlined are used.
#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

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

template <int kBytes>
struct Simd<uint16_t, kBytes> {
  typedef uint16_t Vector __attribute__((vector_size(kBytes)));
  typedef uint16_t Unaligned __attribute__((vector_size(kBytes), aligned(2), may_alias));
  typedef int16_t Index __attribute__((vector_size(kBytes)));
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

// a * b + c for numbers and vectors: rounded once by instruction sets that multiply and add at once, twice by others.
//
// Said with intrinsics, because a compiler that may contract a * b + c does so where it sees fit: kernels that sum the
// same row would differ in the last bit. What includes this file is compiled with -ffp-contract=off.
#if defined(__FMA__) || defined(__aarch64__)
inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }

#define RSN2_MULTIPLY_ADD(T, bytes, expression)                                                                      \
  inline __attribute__((always_inline)) Simd<T, bytes>::Vector multiply_add(                                         \
      const Simd<T, bytes>::Vector& a, const Simd<T, bytes>::Vector& b, const Simd<T, bytes>::Vector& c) {           \
    return expression;                                                                                               \
  }
#if defined(__FMA__)
RSN2_MULTIPLY_ADD(float, 16, _mm_fmadd_ps(a, b, c))
RSN2_MULTIPLY_ADD(double, 16, _mm_fmadd_pd(a, b, c))
RSN2_MULTIPLY_ADD(float, 32, _mm256_fmadd_ps(a, b, c))
RSN2_MULTIPLY_ADD(double, 32, _mm256_fmadd_pd(a, b, c))
#if defined(__AVX512F__)
RSN2_MULTIPLY_ADD(float, 64, _mm512_fmadd_ps(a, b, c))
RSN2_MULTIPLY_ADD(double, 64, _mm512_fmadd_pd(a, b, c))
#endif
#else
RSN2_MULTIPLY_ADD(float, 16, vfmaq_f32(c, a, b))
RSN2_MULTIPLY_ADD(double, 16, vfmaq_f64(c, a, b))
RSN2_MULTIPLY_ADD(double, 32,
                  (Simd<double, 32>::Vector{multiply_add(a[0], b[0], c[0]), multiply_add(a[1], b[1], c[1]),
                                            multiply_add(a[2], b[2], c[2]), multiply_add(a[3], b[3], c[3])}))
#endif
#undef RSN2_MULTIPLY_ADD
#if defined(__AVX512BF16__)
// Of bfloat16 in pairs: each lane of c, plus the product of its upper halves, plus that of its lower ones.
inline __attribute__((always_inline)) Simd<float, 64>::Vector multiply_add(const Simd<uint16_t, 64>::Vector& a,
                                                                           const Simd<uint16_t, 64>::Vector& b,
                                                                           const Simd<float, 64>::Vector& c) {
  return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
#endif
#else
template <class V>
inline __attribute__((always_inline)) V multiply_add(const V& a, const V& b, const V& c) {
  return a * b + c;
}
#endif

}  // namespace
}  // namespace rsn2::cpu
