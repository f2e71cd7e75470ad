// 1 × 1 convolution of contiguous tensors on tensor cores: for each image a product of matrices,
//
//   y[n, k, m] = act(Σ_c w[k, c] · x[n, c, m] + bias[k] + residual[n, k, m])        m counts the pixels of a plane
//
// Rows are the filters k, columns the pixels; see planes.cuh for the loop, and for who computes what.
#include "epilogue.cuh"
#include "planes.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
planes_forward(const TYPE* __restrict__ p_x, const TYPE* __restrict__ p_w, const TYPE* __restrict__ p_bias,
               const TYPE* __restrict__ p_residual, TYPE* __restrict__ p_y,
               const Conv a) {  // bias and residual may be null
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const int pixels = a.in[0] * a.in[1] * a.in[2];
  const auto [row, pixel, n, group] = plane_tile(a.K, pixels, a);
  const offset_t k = group * a.K + row, x_c = offset_t(a.x[1]), y_k = offset_t(a.y[1]), res_k = offset_t(a.residual[1]);

  Sums acc = {};
  planes_product<ALONG>(acc, shared_memory, p_x + n * offset_t(a.x[0]) + group * a.C * x_c + pixel, x_c,
                        p_w + k * offset_t(a.w[0]), offset_t(a.w[0]), offset_t(a.w[1]), a.K - row, a.C, pixels - pixel);

  // ---- bias, residual, activation; one rounding; store
  const TYPE* const p_tile_residual = p_residual + n * offset_t(a.residual[0]) + k * res_k + pixel;
  const auto fetch = [&](int r, int m) {
    return p_residual ? load<EACH>(p_tile_residual + r * res_k + m) : Run<EACH, TYPE>{};
  };
  const auto finish = [&](float* values, int r, int, const Run<EACH, TYPE>& residual) {
    const float bias = p_bias ? widen(p_bias[k + r]) : 0.f;
#pragma unroll
    for (int e = 0; e < EACH; ++e) values[e] += bias;
    if (p_residual) add<EACH>(values, residual);
#pragma unroll
    for (int e = 0; e < EACH; ++e) values[e] = activate(values[e], ACTIVATION, float(a.slope));
  };
  store<true, EACH>(acc, shared_memory, p_y + n * offset_t(a.y[0]) + k * y_k + pixel,
                    places_of_rows(shared_memory, y_k, a.K - row), pixels - pixel, 1, finish, Everything{}, fetch);
}
