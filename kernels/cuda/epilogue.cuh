// What forward does to its sum before the one rounding, y = activation(sum + bias + residual), and its derivative.
//
//   relu         max(z, 0)                         sigmoid    σ(z) = 1 / (1 + exp(−z))
//   relu6        min(max(z, 0), 6)                 tanh       tanh z
//   leaky_relu   z, or slope · z where z < 0       silu       z · σ(z)
//   hardswish    z · min(max(z + 3, 0), 6) / 6     gelu       z · Φ(z)
//                                                  gelu_tanh  z · σ(2u),  u = √(2/π) (z + 0.044715 z³)
//
// σ(2u) is (1 + tanh u) / 2 written without tanh. Comparisons are written so that NaN stays NaN. Which activation is
// known when a kernel is compiled (the macro ACTIVATION), so that of each switch one case is left.
#include "common.cuh"

enum Activation { NONE, RELU, LEAKY_RELU, SILU, GELU, GELU_TANH, HARDSWISH, RELU6, SIGMOID, TANH };

__device__ __forceinline__ float exponential(float v) { return expf(v); }
__device__ __forceinline__ double exponential(double v) { return exp(v); }
__device__ __forceinline__ float error_function(float v) { return erff(v); }
__device__ __forceinline__ double error_function(double v) { return erf(v); }
__device__ __forceinline__ float hyperbolic_tangent(float v) { return tanhf(v); }
__device__ __forceinline__ double hyperbolic_tangent(double v) { return tanh(v); }

template <typename A>
__device__ __forceinline__ A clip(A v, A low, A high) {
  return v < low ? low : v > high ? high : v;
}

template <typename A>
__device__ __forceinline__ A sigmoid(A z) {
  return 1 / (1 + exponential(-z));
}

// Φ(z)
template <typename A>
__device__ __forceinline__ A normal(A z) {
  return A(0.5) + A(0.5) * error_function(z * A(0.7071067811865476));
}

// activation(z); A is float or double.
template <typename A>
__device__ __forceinline__ A activate(A z, int activation, A slope) {
  switch (activation) {
    case RELU:
      return z < 0 ? A(0) : z;
    case RELU6:
      return clip(z, A(0), A(6));
    case LEAKY_RELU:
      return z < 0 ? z * slope : z;
    case SIGMOID:
      return sigmoid(z);
    case TANH:
      return hyperbolic_tangent(z);
    case HARDSWISH:
      return z * clip(z + 3, A(0), A(6)) / 6;
    case SILU:
      return z / (1 + exponential(-z));
    case GELU:
      return z * normal(z);
    case GELU_TANH:
      return z / (1 + exponential(A(-1.5957691216057308) * (z + A(0.044715) * z * z * z)));
    default:
      return z;
  }
}

// activation'. s: y for the activations down to TANH, z for the others.
template <typename A>
__device__ __forceinline__ A derivative(A s, int activation, A slope) {
  switch (activation) {
    case RELU:
      return s <= 0 ? A(0) : A(1);
    case RELU6:
      return s <= 0 || s >= 6 ? A(0) : A(1);
    case LEAKY_RELU:
      return s > 0 ? A(1) : slope;
    case SIGMOID:
      return s * (1 - s);
    case TANH:
      return 1 - s * s;
    case HARDSWISH:
      return s <= -3 ? A(0) : s < 3 ? s / 3 + A(0.5) : A(1);
    case SILU:
      return sigmoid(s) * (1 + s * sigmoid(-s));
    case GELU:
      return normal(s) + s * (A(0.3989422804014327) * exponential(A(-0.5) * s * s));
    case GELU_TANH: {  // of z · p, where p = σ(2u), p' = 2 u' p (1 − p), and 1 − p = σ(−2u), which so keeps its digits
      const A v = A(1.5957691216057308) * (s + A(0.044715) * s * s * s);
      const A dv = A(1.5957691216057308) * (1 + A(0.134145) * s * s);
      return sigmoid(v) * (1 + s * dv * sigmoid(-v));
    }
    default:
      return A(1);
  }
}
