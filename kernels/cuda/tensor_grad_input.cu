// Gradient of the input on tensor cores: each pixel of gx collects the outputs it took part in. On one axis:
//
//   gx[n, c, i] = Σ_r Σ_k gy[n, k, p] · w[k, c, r]     over the taps r with  p = (i + pad − r·d) / u  whole and inside
//
// The pixels of one *phase* of the stride, i = a + u·j, meet the same taps, and for them this is a convolution of gy at
// stride 1 (simt_grad_input.cu has the formulas): gy is never spread out with zeros. Rows are the pixels j of a phase,
// columns the channels c, and the sum runs over the phase's taps and the filters k. Filters are the rows of w's tiles,
// so its terms lie DOWN; see tensor_gather.cuh for the loop, tensor_tile.cuh for tiles.
//
//   block   →  group, then a tile of BM pixels of a phase × BN channels, then phase (a_d, a_h, a_w): blocks that run at
//              the same time read the same gy, and write what lies between each other's while the L2 cache has both
//   warp, thread, masks  →  as in tensor_forward.cu
//
// Phases differ in size by at most one pixel an axis; a block beyond the last pixel of its phase ends at once. A phase
// without taps takes no step of the loop and stores its zeros. A pixel's tap outside gy is multiplied as a zero, so a
// weight that is not finite makes NaN of the pixels at the border whose tap it is, even where that tap does not count.
#include "phase.cuh"
#include "tensor_gather.cuh"

// What a block computes.
struct Share_of_block {
  Tile tile;
  int column;
  offset_t group;
  Phase phase;
};

__device__ __forceinline__ Share_of_block share_of_block(unsigned block, const Conv& a) {
  const unsigned column_blocks = ceil_div(a.C, BN), tiles = a.phase_blocks * column_blocks;
  const unsigned phases = a.stride[0] * a.stride[1] * a.stride[2];
  const Tile tile = tile_of_block(block / phases % tiles, a.phase_blocks, column_blocks);
  return {tile, tile.column * BN, offset_t(block / phases / tiles), phase_of(block % phases, a)};
}

__device__ __forceinline__ Walk walk_of(const Phase& phase, const Conv& a) {
  Walk walk = {a.N, {}, {}, {1, 1, 1}, {}, {}};
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    walk.pixels[axis] = phase.size[axis];
    walk.taps[axis] = phase.taps[axis];
    walk.base[axis] = phase.base[axis];
    walk.size[axis] = a.out[axis];
  }
  return walk;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
tensor_grad_input(const TYPE* __restrict__ p_gy, const TYPE* __restrict__ p_w, TYPE* __restrict__ p_gx, const Conv a) {
  extern __shared__ __align__(128) unsigned char shared_memory[];

  // ---- the sum
  Sums acc = {};
  {
    const auto [tile, column, group, phase] = share_of_block(blockIdx.x, a);
#if !HALO
    if (tile.row * BM >= a.N * phase.size[0] * phase.size[1] * phase.size[2]) return;
#endif
    Operand gy = {p_gy + group * a.K * offset_t(a.y[1]), offset_t(a.y[0]), offset_t(a.y[1]), {}};
    Operand w = {p_w + group * a.K * offset_t(a.w[0]), offset_t(a.w[0]), offset_t(a.w[1]), {}};
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      gy.axis[axis] = a.y[2 + axis];
      w.axis[axis] = a.w_tap[axis];
      w.p += phase.first[axis] * offset_t(a.w[2 + axis]);
    }
    gather_product<DOWN>(acc, shared_memory, gy, w, walk_of(phase, a), tile.row, column, a.C, a.K, a);
  }

  // ---- one rounding; store
  const auto [tile, column, group, phase] = share_of_block(opaque(blockIdx.x), a);
  const Walk walk = walk_of(phase, a);
  offset_t* const o_gx = reinterpret_cast<offset_t*>(shared_memory + SLABS);  // [BM], negative where there is no pixel
  for (int row = threadIdx.x; row < BM; row += THREADS) {
    const Place place = place_of_row(tile.row, row, walk, a);
    o_gx[row] = place.m_pixel ? offset_of<offset_t>(place.n, pixel_of(phase, place.at, a), a.x) : -1;
  }
  __syncthreads();
  const offset_t channel = group * a.C + column;
  const auto finish = [](float*, int, int, Nothing) {};
  store<Y_VECTOR, Y_VECTOR ? 0 : Y_RUN>(acc, shared_memory, p_gx + channel * offset_t(a.x[1]), o_gx, a.C - column,
                                        offset_t(a.x[1]), finish);
}
