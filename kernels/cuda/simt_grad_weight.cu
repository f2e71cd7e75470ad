// Gradient of the weight with ordinary multiply-adds, and of the bias in the same pass; then the ordered sum of partial
// results.
//
//   gw[k, c, t, r, s] = Σ_m gy[m, k] · x[pixel(m, t, r, s), c]      gb[k] = Σ_m gy[m, k]      m counts output pixels
//
// For one tap this is the matrix product gyᵀ · x, with a reduction as long as the batch has pixels and a result as
// small as a filter. To keep a GPU busy the pixels are divided over `splits` blocks, each of which writes its partial
// sum to a workspace. The block of a tile that comes last adds them in order (last_block.cuh), or, where there is more to
// add, a launch of its own does (`sum_partials`); either way the same inputs give the same bits.
//
//   block  →  split, then group, tap, a tile of BM filters × BN channels; loops over the split's pixels, BK at a time
//   masks  →  pixels beyond the split's last, taps outside the image; filters and channels beyond the last
//
// A thread fetches, for one of the BK pixels of a step, always the same, a run of filters of gy and a run of channels
// of x. Its pixel of the next step is BK further (pixel_counter.cuh).
#include "pixel_counter.cuh"
#include "simt.cuh"
#include "last_block.cuh"
#include "sum_partials.cuh"

static_assert(THREADS >= BM, "one thread for each filter sums the bias's gradient");

// Store a thread's share of a tile into row k of s_tile from column `first` on, 16 bytes at a time.
template <int RUN, int WIDTH>
__device__ __forceinline__ void stage_run(accumulator (&s_tile)[BK][WIDTH], int k, int first, const TYPE (&b)[RUN]) {
#pragma unroll
  for (int i = 0; i < RUN; i += LANE) {
    Vector<accumulator> b_wide;
#pragma unroll
    for (int e = 0; e < LANE; ++e) b_wide.at[e] = widen(b[i + e]);
    *reinterpret_cast<Vector<accumulator>*>(&s_tile[k][first + i]) = b_wide;
  }
}

// Store the block's sums at p, as far as there are filters and channels.
template <typename T>
__device__ __forceinline__ void store_tile(T* p, const accumulator (&acc)[TM][TN], Tile place, int filters,
                                           int channels, long long filter_stride, long long channel_stride) {
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const int k = owned<TM>(place.row, BM / TM, i);
    if (k >= filters) continue;
#pragma unroll
    for (int j = 0; j < TN; j += LANE) {
      const int c = owned<TN>(place.column, BN / TN, j);
      store_run(p + k * filter_stride + c * channel_stride, channel_stride, channels - c, acc[i] + j);
    }
  }
}

// Which split, group, tap and tile (from filter k0 and channel c0 on) a block has. Tiles vary fastest, then taps: they
// share gy and x in the L2 cache.
struct Where {
  int split, group, tap, k0, c0;
};

__device__ __forceinline__ Where where(int block, const Conv& a) {
  const int column_blocks = ceil_div(a.C, BN), tiles = ceil_div(a.K, BM) * column_blocks;
  const int taps = a.filter[0] * a.filter[1] * a.filter[2], tile = block % tiles;
  return {block / tiles / taps / a.groups, block / tiles / taps % a.groups, block / tiles % taps,
          tile / column_blocks * BM, tile % column_blocks * BN};
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
simt_grad_weight(const TYPE* __restrict__ p_gy, const TYPE* __restrict__ p_x, void* p_gw, void* p_gb /* or null */,
                 accumulator* p_workspace, int* p_arrived /* of last_block.cuh; null: it does not add */,
                 const Conv a) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory);

  const Where block = where(blockIdx.x, a);
  const Pixel at_tap = split_pixel(block.tap, a.filter[1], a.filter[2]);
  const int shift_d = at_tap.d * a.dilation[0] - a.pad[0];
  const int shift_h = at_tap.h * a.dilation[1] - a.pad[1];
  const int shift_w = at_tap.w * a.dilation[2] - a.pad[2];

  // ---- what this thread fetches: one pixel of each step, a run of filters and a run of channels
  const long long pixels = wide(a.N) * a.out[0] * a.out[1] * a.out[2];
  const long long begin = block.split * a.per_split, end = min(begin + a.per_split, pixels);
  const int slot = threadIdx.x % BK, k_first = threadIdx.x / BK * ROW_RUN, c_first = threadIdx.x / BK * COLUMN_RUN;
  const int k = block.k0 + k_first, c = block.c0 + c_first;
  const offset_t o_gy_run = (wide(block.group) * a.K + k) * a.y[1], o_x_run = (wide(block.group) * a.C + c) * a.x[1];
  PixelCounter counter = counter_of(begin + slot, a.out);
  offset_t ahead = end - begin - slot;  // pixels from this thread's to the split's last

  alignas(16) TYPE b_gy[ROW_RUN], b_x[COLUMN_RUN];
  const auto fetch = [&] {
    const Pixel in = {counter.at.d * a.stride[0] + shift_d, counter.at.h * a.stride[1] + shift_h,
                      counter.at.w * a.stride[2] + shift_w};
    const bool m_pixel = ahead > 0, m_inside = m_pixel && inside(in, a.in);
    const int filters = m_pixel ? a.K - k : 0, channels = m_inside ? a.C - c : 0;
    const offset_t o_gy = filters > 0 ? offset_of<offset_t>(counter.n, counter.at, a.y) + o_gy_run : 0;
    const offset_t o_x = channels > 0 ? offset_of<offset_t>(counter.n, in, a.x) + o_x_run : 0;
    load_run<ROW_VECTOR>(b_gy, p_gy + o_gy, a.y[1], filters);
    load_run<COLUMN_VECTOR>(b_x, p_x + o_x, a.x[1], channels);
  };

  // ---- the sum
  const Tile place = place_in_tile(threadIdx.x);
  const bool sums_bias = p_gb && block.tap == 0 && block.c0 == 0 && threadIdx.x < BM;
  accumulator acc[TM][TN] = {};
  accumulator bias = 0;
  int left = ceil_div(max(end - begin, wide(0)), BK);  // steps
  if (left > 0) fetch();
  for (; left > 0; --left) {
    Stage& stage = shared.stage[left & 1];
    stage_run(stage.rows, slot, k_first, b_gy);
    stage_run(stage.columns, slot, c_first, b_x);
    __syncthreads();
    if (left > 1) {
      advance(counter, a.pixel_step, a.out);
      ahead -= BK;
      fetch();
    }
    if (sums_bias)
      for (int i = 0; i < BK; ++i) bias += stage.rows[i][threadIdx.x];
    multiply(acc, stage, place);
  }

  // ---- store: as they are where another launch adds them, else rounded
  const Where at = where(opaque(blockIdx.x), a);
  const Tile owns = place_in_tile(opaque(threadIdx.x));
  const int filters = a.K - at.k0, channels = a.C - at.c0;
  const long long o_gw = at.split * a.gw_split + offset_of(0, split_pixel(at.tap, a.filter[1], a.filter[2]), a.w) +
                         (wide(at.group) * a.K + at.k0) * a.w[0] + at.c0 * a.w[1];
  const int own = threadIdx.x;  // whose bias this thread sums
  const long long o_gb = at.split * a.gb_split + wide(at.group) * a.K + at.k0 + own;
  const bool m_bias = p_gb && at.tap == 0 && at.c0 == 0 && own < min(BM, filters);
  const bool last_adds = LAST_ADDS && p_arrived;
  if (last_adds) {
    const int tile = blockIdx.x % (gridDim.x / a.splits);
    accumulator* const parts = p_workspace + wide(tile) * a.splits * PART;
    accumulator(&sums)[TM * TN] = reinterpret_cast<accumulator(&)[TM * TN]>(acc);
    leave(parts + at.split * PART, sums);
    if (own < BM) parts[at.split * PART + BM * BN + own] = bias;
    if (!comes_last(p_arrived + tile, a.splits, *reinterpret_cast<int*>(shared_memory))) return;
    add_parts(sums, parts, a.splits);
    if (m_bias) bias = add_numbers(parts + BM * BN + own, a.splits);
  }
  if (a.gw_split && !last_adds) {
    store_tile(static_cast<accumulator*>(p_gw) + o_gw, acc, owns, filters, channels, a.w[0], a.w[1]);
    if (m_bias) static_cast<accumulator*>(p_gb)[o_gb] = bias;
  } else {
    store_tile(static_cast<TYPE*>(p_gw) + o_gw, acc, owns, filters, channels, a.w[0], a.w[1]);
    if (m_bias) static_cast<TYPE*>(p_gb)[o_gb] = narrow<TYPE>(bias);
  }
}
