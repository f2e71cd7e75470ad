// Gradient of the input of a depthwise convolution with large filters on tensor cores, stride 1, any layout:
//
//   gx[n, c, i, j] = Σ_k Σ_r Σ_s gy[n, k, i + pad − r, j + pad − s] · w[k, r, s]     over the K filters k of channel c
//
// With the taps backwards, r' = R − 1 − r, this is forward of gy with the padding R − 1 − pad: see banded.cuh, and
// banded_forward.cu for who computes what. Here the filters of a channel come one after the other.
#include "banded_product.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
banded_grad_input(const TYPE* __restrict__ p_gy, const TYPE* __restrict__ p_w, TYPE* __restrict__ p_gx, const Conv a) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  unsigned char* const window = shared_memory + warp() * WINDOW;
  TYPE* const lines = reinterpret_cast<TYPE*>(shared_memory + WARPS * WINDOW);

  // ---- which channel, which window
  const int c = blockIdx.x % a.groups;
  const Window at = window_of(blockIdx.x / a.groups * WARPS + warp(), a.in);
  const int first_h = at.h + a.pad[1] - (FILTER_H - 1), first_w = at.w + a.pad[2] - (FILTER_W - 1) - LEFT;
  Pieces pieces = pieces_inside<PIECE>(first_w, a.out[2], PIECES);
  if (at.n >= a.N) pieces = {};  // there is no window

  // ---- the sum
  Sums acc = {};
#pragma unroll 1
  for (int k = c * a.K; k < (c + 1) * a.K; ++k) {
    __syncthreads();  // the filter before has been read
    stage_filter<true>(lines, p_w + k * wide(a.w[0]), a.w[3], a.w[4]);
    const TYPE* p_plane = p_gy + (at.n * wide(a.y[0]) + k * wide(a.y[1]));
    const Plane gy = {p_plane, a.out[1], a.out[2], offset_t(a.y[3]), offset_t(a.y[4])};
    stage<X_RUN, PIECE, PITCH>(window, ROWS, pieces, gy, first_h, first_w, lane(), 32);
    close_group();
    wait_for_groups<0>();
    __syncthreads();
    multiply_band(acc, window, lines, pieces);
  }
  if (at.n >= a.N) return;

  // ---- one rounding; store
  const long long o_pixel = at.h * wide(a.x[3]) + at.w * wide(a.x[4]);
  store<Y_RUN>(acc, reinterpret_cast<float*>(window), p_gx + (at.n * wide(a.x[0]) + c * wide(a.x[1]) + o_pixel),
               a.in[1] - at.h, a.in[2] - at.w, offset_t(a.x[3]), offset_t(a.x[4]), [](float*, int, int) {});
}
