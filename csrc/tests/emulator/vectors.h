// CUDA's vector types.
#pragma once

#include <cstdint>

#define RSN2_VECTOR_TYPES(type, element, align2, align4)                                          \
  struct type##1 { element x; };                                                                  \
  struct alignas(align2) type##2 { element x, y; };                                               \
  struct type##3 { element x, y, z; };                                                            \
  struct alignas(align4) type##4 { element x, y, z, w; };                                         \
  inline type##1 make_##type##1(element x) { return {x}; }                                        \
  inline type##2 make_##type##2(element x, element y) { return {x, y}; }                          \
  inline type##3 make_##type##3(element x, element y, element z) { return {x, y, z}; }            \
  inline type##4 make_##type##4(element x, element y, element z, element w) { return {x, y, z, w}; }

RSN2_VECTOR_TYPES(char, signed char, 2, 4)
RSN2_VECTOR_TYPES(uchar, unsigned char, 2, 4)
RSN2_VECTOR_TYPES(short, short, 4, 8)
RSN2_VECTOR_TYPES(ushort, unsigned short, 4, 8)
RSN2_VECTOR_TYPES(int, int, 8, 16)
RSN2_VECTOR_TYPES(uint, unsigned, 8, 16)
RSN2_VECTOR_TYPES(longlong, long long, 16, 16)
RSN2_VECTOR_TYPES(ulonglong, unsigned long long, 16, 16)
RSN2_VECTOR_TYPES(float, float, 8, 16)
RSN2_VECTOR_TYPES(double, double, 16, 16)
#undef RSN2_VECTOR_TYPES

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
