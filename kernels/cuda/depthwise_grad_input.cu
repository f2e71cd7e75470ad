// Gradient of the input of a depthwise convolution; two axes:
//
//   gx[n, c, i, j] = Σ_m Σ_{r,s} gy[n, c·K + m, (i + pad − r·d) / u, (j + pad − s·d) / u] · w[c·K + m, r, s]
//
// over the taps for which both quotients are whole. At stride 1 that is depthwise_forward with the taps flipped; at
// stride u the results fall into u × u phases with taps of their own, and one tile of gy serves them all, see
// depthwise_gather.cuh. Where a channel has several filters their tiles come one after the other.
#define BACKWARD 1
#define BIAS 0
#define RESIDUAL 0
#define RESIDUAL_VECTOR 0
#define ACTIVATION 0
#include "depthwise_gather.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
depthwise_grad_input(const TYPE* __restrict__ p_gy, const TYPE* __restrict__ p_w, TYPE* __restrict__ p_gx,
                     const Conv a) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const Shared shared = shared_of(shared_memory);

  const Pixel first = {0, -(a.pad[1] % STRIDE_H), -(a.pad[2] % STRIDE_W)};
  const auto [n, c0, corner] = where(blockIdx.x, a.groups, a.in, first);
  const int channels = a.groups - c0, c = c0;
  const Pixel from = {0, (corner.h + a.pad[1]) / STRIDE_H - (TAPS_H - 1) * DILATION_H / STRIDE_H,
                      (corner.w + a.pad[2]) / STRIDE_W - (TAPS_W - 1) * DILATION_W / STRIDE_W};
  const auto fetch = [&, n = n](int m) {
    const long long k = wide(c) * MEMBERS + m;
    const Image gy = {p_gy, n * a.y[0] + k * a.y[1], a.y, MEMBERS * a.y[1], a.out, channels};
    stage(shared.tile, gy, from, static_cast<TYPE*>(shared.staging));
    stage_filters(shared.s_w, p_w, c, channels, m, a);
    __syncthreads();
  };
  fetch(0);
  const Results gx = {p_gx, n * a.x[0] + c * a.x[1], a.x, a.x[1], a.in, channels, nullptr, 0, nullptr, 0, a.x, 0, 0};
  each_strip(shared.staging, gx, corner, [&](Sums& acc, Strip at, bool m_strip) {
    for (int m = 0; m < MEMBERS; ++m) {
      if (m > 0) {
        __syncthreads();  // the tile before has been used
        fetch(m);
      }
      if (m_strip) accumulate(acc, shared.tile, shared.s_w, at);
    }
  });
}
