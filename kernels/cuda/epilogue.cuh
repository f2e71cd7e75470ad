// What forward does to its sum before the one rounding: y = activation(sum + bias + residual).
//
//   relu        max(z, 0)                          silu        z · σ(z)
//   leaky_relu  z, or slope · z where z < 0        gelu        z · Φ(z)
//   hardswish   z · clip(z + 3, 0, 6) / 6          gelu_tanh   z · σ(2u),  u = √(2/π) (z + 0.044715 z³)
//
// σ(2u) is (1 + tanh u) / 2 written without tanh. Comparisons are written so that NaN stays NaN. Which activation is
// known when a kernel is compiled (the macro ACTIVATION), so that of the switch one case is left.
#include "common.cuh"

enum Activation { NONE, RELU, LEAKY_RELU, SILU, GELU, GELU_TANH, HARDSWISH };

__device__ __forceinline__ float exponential(float v) { return expf(v); }
__device__ __forceinline__ double exponential(double v) { return exp(v); }
__device__ __forceinline__ float error_function(float v) { return erff(v); }
__device__ __forceinline__ double error_function(double v) { return erf(v); }

template <typename A>
__device__ __forceinline__ A clip(A v, A low, A high) {
  return v < low ? low : v > high ? high : v;
}

// activation(z); A is float or double.
template <typename A>
__device__ __forceinline__ A activate(A z, int activation, A slope) {
  switch (activation) {
    case RELU:
      return z < 0 ? A(0) : z;
    case LEAKY_RELU:
      return z < 0 ? z * slope : z;
    case SILU:
      return z / (1 + exponential(-z));
    case GELU:
      return z * (A(0.5) + A(0.5) * error_function(z * A(0.7071067811865476)));
    case GELU_TANH:
      return z / (1 + exponential(A(-1.5957691216057308) * (z + A(0.044715) * z * z * z)));
    case HARDSWISH:
      return z * clip(z + 3, A(0), A(6)) / 6;
    default:
      return z;
  }
}
