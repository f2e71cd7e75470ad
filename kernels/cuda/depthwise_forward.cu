// Depthwise convolution: every filter has one channel, and every channel K filters of its own (K is 1, or the channel
// multiplier); two axes:
//
//   y[n, c·K + m, p, q] = Σ_{r,s} x[n, c, p·u − pad + r·d, q·u − pad + s·d] · w[c·K + m, r, s]
//
// (u stride, d dilation, each with a value for each axis.) See depthwise.cuh for how tiles are fetched,
// depthwise_gather.cuh for who computes what. The tile of x is fetched once for all K filters.
#define BACKWARD 0
#include "depthwise_gather.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
depthwise_forward(const TYPE* __restrict__ p_x, const TYPE* __restrict__ p_w, const TYPE* __restrict__ p_bias,
                  const TYPE* __restrict__ p_residual, TYPE* __restrict__ p_y,
                  const Conv a) {  // null without BIAS and RESIDUAL
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const Shared shared = shared_of(shared_memory);

  const auto [n, c0, corner] = where(blockIdx.x, a.groups, a.out, {0, 0, 0});
  const int channels = a.groups - c0;
  const Image x = {p_x, n * a.x[0] + c0 * a.x[1], a.x, a.x[1], a.in, channels};
  stage(shared.tile, x, {0, corner.h * STRIDE_H - a.pad[1], corner.w * STRIDE_W - a.pad[2]},
        static_cast<TYPE*>(shared.staging));
  for (int m = 0; m < MEMBERS; ++m) {
    if (m > 0) __syncthreads();  // the filters before have been used
    stage_filters(shared.s_w, p_w, c0, channels, m, a);
    __syncthreads();
    const long long k = wide(c0) * MEMBERS + m;
    const Results y = {p_y,
                       n * a.y[0] + k * a.y[1],
                       a.y,
                       MEMBERS * a.y[1],
                       a.out,
                       channels,
                       p_bias + (BIAS ? k : 0),
                       MEMBERS,
                       p_residual,
                       n * a.residual[0] + k * a.residual[1],
                       a.residual,
                       MEMBERS * a.residual[1],
                       accumulator(a.slope)};
    each_strip(shared.staging, y, corner, [&](Sums& acc, Strip at, bool m_strip) {
      if (m_strip) accumulate(acc, shared.tile, shared.s_w, at);
    });
  }
}
