// Convolution with ordinary multiply-adds; any layout, stride, padding, dilation, groups; one, two or three axes:
//
//   y[n, k, z, p, q] = Σ_{t,r,s} Σ_c x[n, c, z·u − pad + t·d, p·u − pad + r·d, q·u − pad + s·d] · w[k, c, t, r, s]
//
// (u stride, d dilation, each with a value for each axis.) As a matrix product, for each group: rows are the output
// pixels m = ((n·Z + z)·P + p)·Q + q, columns the filters k, and the sum runs over taps and channels; see
// simt_gather.cuh.
//
//   block  →  group, then a tile of BM pixels × BN filters; tiles in bands, for the L2 cache
//   masks  →  as in simt_gather.cuh; at the store pixels and filters beyond the last
#include "epilogue.cuh"
#include "simt_gather.cuh"

// Which group and tile a block has.
struct Where {
  int group;
  Tile tile;
};

__device__ __forceinline__ Where where(int block, long long pixels, const Conv& a) {
  const int row_blocks = ceil_div(pixels, BM), column_blocks = ceil_div(a.K, BN);
  const int tiles = row_blocks * column_blocks;
  return {block / tiles, tile_of_block(block % tiles, row_blocks, column_blocks)};
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
simt_forward(const TYPE* __restrict__ p_x, const TYPE* __restrict__ p_w, const TYPE* __restrict__ p_bias,
             const TYPE* __restrict__ p_residual, TYPE* __restrict__ p_y,
             const Conv a) {  // null without BIAS and RESIDUAL
  const int image = a.out[0] * a.out[1] * a.out[2];
  const long long pixels = wide(a.N) * image;

  // ---- what this thread fetches: one pixel, one filter
  Gathered x;
  Filters w;
  {
    const auto [group, tile] = where(blockIdx.x, pixels, a);
    const long long m = wide(tile.row) * BM + threadIdx.x % BM;
    const Pixel out = split_pixel(m % image, a.out[1], a.out[2]);
    x.first = m / image * a.x[0] + group * a.x[1] * a.C;
    x.at = {m < pixels ? out.d * a.stride[0] - a.pad[0] : NOWHERE, out.h * a.stride[1] - a.pad[1],
            out.w * a.stride[2] - a.pad[2]};
    const int k = tile.column * BN + threadIdx.x % BN;
    w.first = k < a.K ? (wide(group) * a.K + k) * a.w[0] : -1;
  }

  // ---- the sum
  accumulator acc[TM][TN] = {};
  gather_product(acc, a, p_x, a.x, a.in, p_w, a.w[1], a.filter, a.C, x, w);

  // ---- bias, residual, activation; one rounding; store
  const auto [group, tile] = where(opaque(blockIdx.x), pixels, a);
  const Tile place = place_in_tile(opaque(threadIdx.x));
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const long long m = wide(tile.row) * BM + owned<TM>(place.row, BM / TM, i);
    if (m >= pixels) continue;
    const int n = m / image;
    const Pixel out = split_pixel(m % image, a.out[1], a.out[2]);
    const long long o_y = offset_of(n, out, a.y), o_residual = offset_of(n, out, a.residual);
#pragma unroll
    for (int j = 0; j < TN; j += LANE) {
      const int k = tile.column * BN + owned<TN>(place.column, BN / TN, j);
      const long long channel = wide(group) * a.K + k;
#pragma unroll
      for (int e = 0; e < LANE; ++e) {
        if (k + e >= a.K) continue;
        accumulator z = acc[i][j + e];
        if (BIAS) z += widen(p_bias[channel + e]);
        if (RESIDUAL) z += widen(p_residual[o_residual + (channel + e) * a.residual[1]]);
        acc[i][j + e] = activate(z, ACTIVATION, accumulator(a.slope));
      }
      store_run(p_y + o_y + channel * a.y[1], a.y[1], a.K - k, acc[i] + j);
    }
  }
}
