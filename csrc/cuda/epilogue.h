// What is done to a sum before it is written: the bias is added and the activation applied.
#pragma once

#include "linear.h"
#include "scalar.h"

namespace rsn2::cuda {

// GELU with erf, as torch's default. ReLU passes NaN on, as torch's does.
__device__ __forceinline__ float activated(float value, Activation activation) {
  if (activation == Activation::relu) return value < 0.0f ? 0.0f : value;
  if (activation == Activation::gelu) return 0.5f * value * (1.0f + erff(value * 0.70710678f));
  return value;
}

// `row` is that of the stack.
template <class T>
__device__ __forceinline__ T finished(float sum, const Epilogue<T>& epilogue, int64_t row) {
  return narrow<T>(activated(epilogue.bias ? sum + widen(epilogue.bias[row]) : sum, epilogue.activation));
}

}  // namespace rsn2::cuda
