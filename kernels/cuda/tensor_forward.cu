// Convolution on tensor cores, any layout, stride, padding, dilation, groups; one, two or three axes:
//
//   y[n, k, z, p, q] = act(Σ_{t,r,s} Σ_c x[n, c, z·u − pad + t·d, p·u − pad + r·d, q·u − pad + s·d] · w[k, c, t, r, s]
//                          + bias[k] + residual[n, k, z, p, q])
//
// (u stride, d dilation, each with a value for each axis). As a matrix product, for each group: rows are the output
// pixels, columns the filters k, and the sum runs over taps and channels; see tensor_gather.cuh for the loop,
// tensor_tile.cuh for tiles.
//
//   block   →  group, then a tile of BM pixels × BN filters; tiles in bands, for the L2 cache
//   warp    →  WM × WN of them
//   thread  →  copies chunks of 16 bytes; holds (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) of each 16 × 8,
//              where g = lane / 4, t = lane % 4; stores 16 bytes of a pixel (Y_VECTOR) or single elements
//   masks   →  in the loop zeros for what is not there; at the store pixels and filters beyond the last
#include "epilogue.cuh"
#include "tensor_gather.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
tensor_forward(const TYPE* __restrict__ p_x, const TYPE* __restrict__ p_w, const TYPE* __restrict__ p_bias,
               const TYPE* __restrict__ p_residual, TYPE* __restrict__ p_y,
               const Conv a) {  // bias and residual may be null
  extern __shared__ __align__(128) unsigned char shared_memory[];
  const Walk walk = {a.N,
                     {a.out[0], a.out[1], a.out[2]},
                     {a.filter[0], a.filter[1], a.filter[2]},
                     {a.stride[0], a.stride[1], a.stride[2]},
                     {-a.pad[0], -a.pad[1], -a.pad[2]},
                     {a.in[0], a.in[1], a.in[2]}};

  // ---- which tile
#if HALO
  const int row_blocks = row_blocks_of(walk, a);
#else
  const int row_blocks = ceil_div(a.N * a.out[0] * a.out[1] * a.out[2], BM);
#endif
  const int column_blocks = ceil_div(a.K, BN), tiles = row_blocks * column_blocks;
  const Tile tile = tile_of_block(blockIdx.x % tiles, row_blocks, column_blocks);
  const int column = tile.column * BN;
  const offset_t group = blockIdx.x / tiles;

  // ---- the sum
  const Operand x = {p_x + group * a.C * offset_t(a.x[1]),
                     offset_t(a.x[0]),
                     offset_t(a.x[1]),
                     {offset_t(a.x[2]), offset_t(a.x[3]), offset_t(a.x[4])}};
  const Operand w = {p_w + group * a.K * offset_t(a.w[0]),
                     offset_t(a.w[0]),
                     offset_t(a.w[1]),
                     {offset_t(a.w_tap[0]), offset_t(a.w_tap[1]), offset_t(a.w_tap[2])}};
  Sums acc = {};
  gather_product<ALONG>(acc, shared_memory, x, w, walk, tile.row, column, a.K, a.C, a);

  // ---- where each row goes
  offset_t* const o_y = reinterpret_cast<offset_t*>(shared_memory + SLABS);  // [BM], negative where there is no pixel
  offset_t* const o_residual = o_y + BM;  // [BM]
  for (int row = threadIdx.x; row < BM; row += THREADS) {
    const Place place = place_of_row(tile.row, row, walk, a);
    o_y[row] = place.m_pixel ? offset_of<offset_t>(place.n, place.at, a.y) : -1;
    o_residual[row] = offset_of<offset_t>(place.n, place.at, a.residual);
  }
  __syncthreads();

  // ---- bias, residual, activation; one rounding; store
  const offset_t channel = group * a.K + column, residual_k = offset_t(a.residual[1]);
  const TYPE* const p_tile_residual = p_residual + channel * residual_k;
  constexpr int EACH = Y_VECTOR ? UNIT : Y_RUN;  // filters, or pixels
  const auto residual = [&](int row, int k) {
    return p_residual ? load<EACH>(p_tile_residual + o_residual[row] + k * residual_k) : Run<EACH, TYPE>{};
  };
  const auto finish = [&](float* values, int, int k, const Run<EACH, TYPE>& of_residual) {
    if (p_bias) {
      if constexpr (Y_VECTOR) {
        add<EACH>(values, p_bias + channel + k);
      } else {
        const float bias = widen(p_bias[channel + k]);
#pragma unroll
        for (int e = 0; e < EACH; ++e) values[e] += bias;
      }
    }
    if (p_residual) add<EACH>(values, of_residual);
#pragma unroll
    for (int e = 0; e < EACH; ++e) values[e] = activate(values[e], ACTIVATION, float(a.slope));
  };
  store<Y_VECTOR, Y_VECTOR ? 0 : Y_RUN>(acc, shared_memory, p_y + channel * offset_t(a.y[1]), o_y, a.K - column,
                                        offset_t(a.y[1]), finish, Everything{}, residual);
}
