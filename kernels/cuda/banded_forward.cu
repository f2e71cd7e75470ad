// Depthwise convolution with large filters on tensor cores, stride 1, any layout:
//
//   y[n, k, p, q] = act(Σ_r Σ_s x[n, c, p − pad + r, q − pad + s] · w[k, r, s] + bias[k] + residual[n, k, p, q])
//
// where c = k / K is the channel of filter k: each channel has K filters. The products are with banded matrices, see
// banded.cuh.
//
//   block   →  a filter k (neighbours in neighbouring blocks: they share memory if channels come last), WARPS windows
//   warp    →  a window of TH × TW outputs of an image; copies the input under it, multiplies, stores
//   masks   →  zeros outside the image; at the store outputs beyond the last
//
// Pieces of padding are not multiplied, so that a tap that is not finite would be lost where it meets padding alone:
// the sum of all taps times zero is added to every output of the filter.
#include "banded_product.cuh"
#include "epilogue.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
banded_forward(const TYPE* __restrict__ p_x, const TYPE* __restrict__ p_w, const TYPE* __restrict__ p_bias,
               const TYPE* __restrict__ p_residual, TYPE* __restrict__ p_y,
               const Conv a) {  // bias and residual may be null
  extern __shared__ __align__(16) unsigned char shared_memory[];
  unsigned char* const window = shared_memory + warp() * WINDOW;
  TYPE* const lines = reinterpret_cast<TYPE*>(shared_memory + WARPS * WINDOW);

  // ---- which filter, which window
  const int filters = a.K * a.groups, k = blockIdx.x % filters;
  const Window at = window_of(blockIdx.x / filters * WARPS + warp(), a.out);
  const int first_h = at.h - a.pad[1], first_w = at.w - a.pad[2] - LEFT;
  Pieces pieces = pieces_inside<PIECE>(first_w, a.in[2], PIECES);
  if (at.n >= a.N) pieces = {};  // there is no window

  // ---- the sum
  stage_filter<false>(lines, p_w + k * wide(a.w[0]), a.w[3], a.w[4]);
  const TYPE* p_plane = p_x + (at.n * wide(a.x[0]) + k / a.K * wide(a.x[1]));
  const Plane x = {p_plane, a.in[1], a.in[2], offset_t(a.x[3]), offset_t(a.x[4])};
  stage<X_RUN, PIECE, PITCH>(window, ROWS, pieces, x, first_h, first_w, lane(), 32);
  close_group();
  wait_for_groups<0>();
  __syncthreads();
  if (at.n >= a.N) return;
  Sums acc = {};
  multiply_band(acc, window, lines, pieces);

  // ---- bias, residual, activation; one rounding; store
  const float shift = poison_of(lines) + (p_bias ? widen(p_bias[k]) : 0);
  const long long o_pixel = at.h * wide(a.y[3]) + at.w * wide(a.y[4]);
  const long long o_residual = at.n * a.residual[0] + k * a.residual[1] + at.h * a.residual[3] + at.w * a.residual[4];
  const auto finish = [&](float* values, int h, int w) {
    Run<Y_RUN, TYPE> more = {};
    if (p_residual) {
      const TYPE* p = p_residual + (o_residual + h * offset_t(a.residual[3]) + w * offset_t(a.residual[4]));
      more = *reinterpret_cast<const Run<Y_RUN, TYPE>*>(p);
    }
#pragma unroll
    for (int e = 0; e < Y_RUN; ++e)
      values[e] = activate(values[e] + shift + widen(more.at[e]), ACTIVATION, float(a.slope));
  };
  store<Y_RUN>(acc, reinterpret_cast<float*>(window), p_y + (at.n * wide(a.y[0]) + k * wide(a.y[1]) + o_pixel),
               a.out[1] - at.h, a.out[2] - at.w, offset_t(a.y[3]), offset_t(a.y[4]), finish);
}
