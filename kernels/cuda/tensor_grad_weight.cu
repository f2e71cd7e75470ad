// Gradient of the weight on tensor cores, and of the bias in the same launch; then the ordered sum of partial results.
//
//   gw[k, c, t, r, s] = Σ_m gy[m, k] · x[pixel(m, t, r, s), c]      gb[k] = Σ_m gy[m, k]      m counts output pixels
//
// For one tap this is the matrix product gyᵀ · x, with a reduction as long as the batch has pixels and a result as
// small as a filter. To keep a GPU busy the pixels are divided over `splits` blocks, each of which writes its partial
// sum to a workspace. The block of a tile that comes last adds them in order (last_block.cuh), or, where there is more to
// add, a launch of its own does (`sum_partials`); either way the same inputs give the same bits.
//
//   block   →  split, then group, tap, a tile of BM filters × BN channels; loops over the split's pixels, BK at a time.
//              Blocks beyond the last of these sum the bias: split, then BM filters of all groups (`sum_bias`)
//   warp    →  WM × WN of them; thread  →  as in tensor_forward.cu
//   masks   →  pixels beyond the split's last, taps outside the image, filters and channels beyond the last: zeros
//
// The rows of both tiles are pixels, so the terms lie DOWN in both (tensor_tile.cuh). A thread copies chunks of always
// the same rows, and counts on where their pixels are (`Walker`).
//
//   shared memory  →  STAGES tiles of gy, STAGES tiles of x; or what the threads of `sum_bias` have summed
#include "sum_partials.cuh"
#include "tensor_pixels.cuh"
#include "tensor_tile.cuh"
#include "last_block.cuh"

constexpr int GY_BYTES = BK * SharedTile<DOWN, BM>::PITCH, X_BYTES = BK * SharedTile<DOWN, BN>::PITCH;  // of a tile

// The bias's sums over a split, for BM filters of all groups: each thread those of its share of the pixels, then one
// thread for each filter adds them in order.
__device__ __forceinline__ void sum_bias(const TYPE* p_gy, void* p_gb, float* p_workspace, int* p_arrived, int block,
                                         float* s_sums, const Conv& a) {
  typedef PixelShare<A_VECTOR, BM> Of;
  constexpr int PITCH = BM + 4;  // of rows of sums, so that they lie in different banks
  const int filters = a.groups * a.K, blocks = ceil_div(filters, BM), k0 = block % blocks * BM;
  const offset_t split = block / blocks;
  const bool last_adds = LAST_ADDS && p_arrived;
  float* const parts = p_workspace + wide(block % blocks) * a.splits * PART + BM * BN;  // there are as many tiles
  const int pixels = pixels_of(a), begin = split * a.per_split, end = min(begin + int(a.per_split), pixels);
  Walker<A_VECTOR> walker(begin, end, a);
  float sums[Of::COUNT][UNIT] = {};
#pragma unroll 2
  for (int m = begin; m < end; m += BK, walker.advance(a)) {
#pragma unroll
    for (int j = 0; j < Of::PIXELS; ++j) {
      const TYPE* const p = p_gy + k0 * offset_t(a.y[1]) + walker.offset_in_gy(j, a);
#pragma unroll
      for (int i = 0; i < Of::COUNT; ++i) {
        const Vector<TYPE> terms = Of::load(p, walker.in_gy(j), i, filters - k0, a.y[1]);
#pragma unroll
        for (int e = 0; e < UNIT; ++e) sums[i][e] += widen(terms.at[e]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < Of::COUNT; ++i)
    if (Of::chunk(i) < Of::CHUNKS) {
#pragma unroll
      for (int e = 0; e < UNIT; e += 4)
        *reinterpret_cast<Run<4>*>(s_sums + Of::row(0) * PITCH + Of::chunk(i) * UNIT + e) =
            *reinterpret_cast<const Run<4>*>(sums[i] + e);
    }
  __syncthreads();
  for (int k = threadIdx.x; k < min(BM, filters - k0); k += THREADS) {
    float sum = 0;
    for (int row = 0; row < Of::ROWS; ++row) sum += s_sums[row * PITCH + k];
    if (last_adds)
      parts[split * PART + k] = sum;
    else if (a.gw_split)
      static_cast<float*>(p_gb)[split * a.gb_split + k0 + k] = sum;
    else
      static_cast<TYPE*>(p_gb)[k0 + k] = narrow<TYPE>(sum);
  }
  if (!last_adds || !comes_last(p_arrived + block % blocks, a.splits, *reinterpret_cast<int*>(s_sums))) return;
  for (int k = threadIdx.x; k < min(BM, filters - k0); k += THREADS)
    static_cast<TYPE*>(p_gb)[k0 + k] = narrow<TYPE>(add_numbers(parts + k, a.splits));
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
tensor_grad_weight(const TYPE* __restrict__ p_gy, const TYPE* __restrict__ p_x, void* p_gw, void* p_gb /* or null */,
                   float* p_workspace, int* p_arrived /* of last_block.cuh; null: it does not add */, const Conv a) {
  extern __shared__ __align__(128) unsigned char shared_memory[];

  // ---- which split, group, tap, tile; tiles vary fastest, then taps: they share gy and x in the L2 cache
  const int column_blocks = ceil_div(a.C, BN), tiles = ceil_div(a.K, BM) * column_blocks;
  const int taps = a.filter[0] * a.filter[1] * a.filter[2];
  const int tile = blockIdx.x % tiles, tap = blockIdx.x / tiles % taps;
  const offset_t group = blockIdx.x / tiles / taps % a.groups;
  const int in_split = a.groups * taps * tiles, split = blockIdx.x / in_split;
  if (split >= a.splits) {
    sum_bias(p_gy, p_gb, p_workspace, p_arrived ? p_arrived + in_split : nullptr, blockIdx.x - a.splits * in_split,
             reinterpret_cast<float*>(shared_memory), a);
    return;
  }
  const int k0 = tile / column_blocks * BM, c0 = tile % column_blocks * BN;
  const Pixel at_tap = split_pixel(tap, a.filter[1], a.filter[2]);
  const Pixel shift = {at_tap.d * a.dilation[0] - a.pad[0], at_tap.h * a.dilation[1] - a.pad[1],
                       at_tap.w * a.dilation[2] - a.pad[2]};

  // ---- which pixels, and what this thread copies of them
  const int begin = split * int(a.per_split), end = min(begin + int(a.per_split), pixels_of(a));
  const int steps = ceil_div(max(end - begin, 0), BK);
  const TYPE* const p_gy_tile = p_gy + (group * a.K + k0) * offset_t(a.y[1]);
  const TYPE* const p_x_tile = p_x + (group * a.C + c0) * offset_t(a.x[1]);
  Walker<A_VECTOR> walker(begin, end, a);
  [[maybe_unused]] Walker<B_VECTOR> other(begin, end, a);  // of x, unless both move alike
  const auto start_copying = [&](unsigned char* gy_tile, unsigned char* x_tile) {
    walker.copy_gy<A_WHOLE>(gy_tile, p_gy_tile, a.K - k0, a);
    if constexpr (A_VECTOR == B_VECTOR) {
      walker.copy_x<B_WHOLE>(x_tile, p_x_tile, a.C - c0, shift, a);
    } else {
      other.copy_x<B_WHOLE>(x_tile, p_x_tile, a.C - c0, shift, a);
      other.advance(a);
    }
    walker.advance(a);
    close_group();
  };

  // ---- the loop: STAGES − 1 steps are being copied while one is multiplied; beyond the last one zeros
  unsigned char *const gy_tiles = shared_memory, *const x_tiles = shared_memory + STAGES * GY_BYTES;
  Sums acc = {};
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; ++i) start_copying(gy_tiles + i * GY_BYTES, x_tiles + i * X_BYTES);
  int slot = 0, free = STAGES - 1;
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    wait_for_groups<STAGES - 2>();
    __syncthreads();  // step i has arrived, and step i − 1, whose place the next one takes, has been multiplied
    start_copying(gy_tiles + free * GY_BYTES, x_tiles + free * X_BYTES);
#pragma unroll
    for (int k = 0; k < K_STEPS; ++k) {
      unsigned left[MI][4];
#pragma unroll
      for (int m = 0; m < MI; ++m) left_down(left[m], gy_tiles + slot * GY_BYTES, warp_row() + 16 * m, k);
      multiply_piece<DOWN>(acc, left, x_tiles + slot * X_BYTES, k,
                           [](int c) { return share_group<WM, 16>(warp_row(), c); });
    }
    free = slot, slot = slot == STAGES - 1 ? 0 : slot + 1;
  }
  wait_for_groups<0>();
  __syncthreads();  // shared memory is free for another use

  // ---- where the last block adds: all leave their sums, and it takes all
  const bool last_adds = LAST_ADDS && p_arrived;
  if (last_adds) {
    const int at = blockIdx.x % in_split;
    float* const parts = p_workspace + wide(at) * a.splits * PART;
    float (&sums)[4 * MI * NI] = reinterpret_cast<float (&)[4 * MI * NI]>(acc);
    leave(parts + split * PART, sums);
    if (!comes_last(p_arrived + at, a.splits, *reinterpret_cast<int*>(shared_memory))) return;
    add_parts(sums, parts, a.splits);
  }

  // ---- store: as they are where another launch adds them, else rounded
  offset_t* const o_row = reinterpret_cast<offset_t*>(shared_memory + SLABS);  // [BM], negative beyond the last filter
  for (int row = threadIdx.x; row < BM; row += THREADS)
    o_row[row] =
        k0 + row < a.K ? (group * a.K + k0 + row) * offset_t(a.w[0]) - first_channel(row) * offset_t(a.w[1]) : -1;
  __syncthreads();
  const offset_t o_tile = split * offset_t(a.gw_split) + offset_of<offset_t>(0, at_tap, a.w) + c0 * offset_t(a.w[1]);
  const auto finish = [](float*, int, int, Nothing) {};
  const auto m_group = [](int row, int column) { return share_group<1, 1>(row, column); };
  if (a.gw_split && !last_adds)
    store<Y_VECTOR>(acc, shared_memory, static_cast<float*>(p_gw) + o_tile, o_row, a.C - c0, offset_t(a.w[1]), finish,
                    m_group);
  else
    store<Y_VECTOR>(acc, shared_memory, static_cast<TYPE*>(p_gw) + o_tile, o_row, a.C - c0, offset_t(a.w[1]), finish,
                    m_group);
}
