// Gradient of the input with ordinary multiply-adds: each pixel of gx collects the outputs it took part in. On one
// axis:
//
//   gx[n, c, i] = Σ_r Σ_k gy[n, k, p] · w[k, c, r]     over the taps r with  p = (i + pad − r·d) / u  whole and inside
//
// At stride u only some taps divide evenly, and which depends on i mod u alone, the pixel's *phase*. Let φ = (i + pad)
// mod u and g = gcd(u, d). If g does not divide φ the phase has no tap and its gradient is zero. Else its taps are
//
//   r(m) = r0 + m·u/g,   r0 = (φ/g)·(d/g)⁻¹ mod u/g,     p(m) = (i + pad − r0·d)/u − m·d/g
//
// so within a phase, where i = a + u·j, this is a convolution of gy at stride 1: tap m of pixel j is at j + base −
// m·d/g. gy is never spread out with zeros. The columns are the channels c, the sum runs over the phase's taps and the
// filters k.
//
//   block  →  group, then a tile of BM pixels of a phase × BN channels, then phase (a_d, a_h, a_w), as in
//             tensor_grad_input.cu
//   masks  →  as in simt_gather.cuh; at the store pixels and channels beyond the last
//
// Phases differ in size by at most one pixel an axis; a block beyond the last pixel of its phase ends at once. A phase
// without taps takes no step of the loop and stores its zeros. A pixel's tap outside gy is multiplied as a zero, so a
// weight that is not finite makes NaN of the pixels at the border whose tap it is, even where that tap does not count.
#include "phase.cuh"
#include "simt_gather.cuh"

// Which group, phase and tile a block has.
struct Where {
  int group;
  Phase phase;
  Tile tile;
};

__device__ __forceinline__ Where where(int block, const Conv& a) {
  const int column_blocks = ceil_div(a.C, BN), tiles = a.phase_blocks * column_blocks;
  const int phases = a.stride[0] * a.stride[1] * a.stride[2];
  return {block / phases / tiles, phase_of(block % phases, a),
          tile_of_block(block / phases % tiles, a.phase_blocks, column_blocks)};
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
simt_grad_input(const TYPE* __restrict__ p_gy, const TYPE* __restrict__ p_w, TYPE* __restrict__ p_gx, const Conv a) {
  // ---- what this thread fetches: one pixel of gy for each tap, one channel
  Gathered gy;
  Filters w;
  int taps[3];
  {
    const auto [group, phase, tile] = where(blockIdx.x, a);
    const int image = phase.size[0] * phase.size[1] * phase.size[2];
    const long long pixels = wide(a.N) * image, m = wide(tile.row) * BM + threadIdx.x % BM;
    if (wide(tile.row) * BM >= pixels) return;
    const Pixel j = split_pixel(m % image, phase.size[1], phase.size[2]);
    gy.first = m / image * a.y[0] + group * a.y[1] * a.K;
    gy.at = {m < pixels ? j.d + phase.base[0] : NOWHERE, j.h + phase.base[1], j.w + phase.base[2]};
    const int c = tile.column * BN + threadIdx.x % BN;
    long long first = group * a.w[0] * a.K + c * a.w[1];
    for (int axis = 0; axis < 3; ++axis) {
      first += phase.first[axis] * a.w[2 + axis];
      taps[axis] = phase.taps[axis];
    }
    w.first = c < a.C ? first : -1;
  }

  // ---- the sum
  accumulator acc[TM][TN] = {};
  gather_product(acc, a, p_gy, a.y, a.out, p_w, a.w[0], taps, a.K, gy, w);

  // ---- one rounding; store
  const auto [group, phase, tile] = where(opaque(blockIdx.x), a);
  const Tile place = place_in_tile(opaque(threadIdx.x));
  const int image = phase.size[0] * phase.size[1] * phase.size[2];
  const long long pixels = wide(a.N) * image;
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const long long m = wide(tile.row) * BM + owned<TM>(place.row, BM / TM, i);
    if (m >= pixels) continue;
    const Pixel in = pixel_of(phase, split_pixel(m % image, phase.size[1], phase.size[2]), a);
    const long long o_gx = offset_of(m / image, in, a.x);
#pragma unroll
    for (int j = 0; j < TN; j += LANE) {
      const int c = tile.column * BN + owned<TN>(place.column, BN / TN, j);
      store_run(p_gx + o_gx + (wide(group) * a.C + c) * a.x[1], a.x[1], a.C - c, acc[i] + j);
    }
  }
}
