// Gradient of the weight on tensor cores, and of the bias in the same pass; then the ordered sum of partial results.
//
//   gw[k, c, t, r, s] = Σ_m gy[m, k] · x[pixel(m, t, r, s), c]      gb[k] = Σ_m gy[m, k]      m counts output pixels
//
// For one tap this is the matrix product gyᵀ · x, with a reduction as long as the batch has pixels and a result as
// small as a filter. To keep a GPU busy the pixels are divided over `splits` blocks, each of which writes its partial
// sum to a workspace. The block of a tile that comes last adds them in order (last_block.cuh), or, where there is more to
// add, a launch of its own does (`sum_partials`); either way the same inputs give the same bits.
//
//   block   →  split, then group, tap, a tile of BM filters × BN channels; loops over the split's pixels, BK at a time
//   warp    →  WM × WN of them; thread  →  as in tensor_forward.cu
//   masks   →  pixels beyond the split's last, taps outside the image, filters and channels beyond the last: zeros
//
// The rows of both tiles are pixels, so the terms lie DOWN in both (tensor_tile.cuh). Where a step's pixels are in gy
// and in x is worked out once, a step before they are copied, and written to shared memory (`Offsets`). The bias's sum
// is taken from the fragments of gy on their way to the tensor cores, so its terms are not cut off to TF32.
//
//   shared memory  →  STAGES tiles of gy, STAGES tiles of x, the offsets of two steps
#include "sum_partials.cuh"
#include "tensor_tile.cuh"
#include "last_block.cuh"

constexpr int GY_BYTES = BK * SharedTile<DOWN, BM>::PITCH, X_BYTES = BK * SharedTile<DOWN, BN>::PITCH;  // of a tile

// The offset of a pixel in gy, negative beyond the split's last; and in x, negative outside the image.
struct Offsets {
  offset_t gy, x;
};

// The i-th element of a fragment's register.
template <typename T>
__device__ __forceinline__ float term(unsigned word, int i) {
  return widen(T{static_cast<unsigned short>(word >> (16 * i))});
}
template <>
__device__ __forceinline__ float term<float>(unsigned word, int) {
  return __uint_as_float(word);
}

// bias[i] += the elements of row g + 8i in this thread's fragment of 16 rows.
__device__ __forceinline__ void add_terms(float (&bias)[2], const unsigned (&a)[4]) {
#pragma unroll
  for (int word = 0; word < 4; ++word) {
#pragma unroll
    for (int i = 0; i < 4 / int(sizeof(TYPE)); ++i) bias[word % 2] += term<TYPE>(a[word], i);
  }
}

// For the warp's rows that lie below `filters`, each the sum of what four threads have: finish(row, sum).
template <typename Finish>
__device__ __forceinline__ void each_bias(const float (&bias)[MI][2], int filters, Finish finish) {
#pragma unroll
  for (int i = 0; i < 2 * MI; ++i) {
    float sum = bias[i / 2][i % 2];
    sum += exchange(sum, 1);
    sum += exchange(sum, 2);
    const int k = warp_row() + i / 2 * 16 + i % 2 * 8 + lane() / 4;
    if (lane() % 4 == 0 && k < filters) finish(k, sum);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
tensor_grad_weight(const TYPE* __restrict__ p_gy, const TYPE* __restrict__ p_x, void* p_gw, void* p_gb /* or null */,
                   float* p_workspace, int* p_arrived /* of last_block.cuh; null: it does not add */, const Conv a) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  unsigned char *const gy_tiles = shared_memory, *const x_tiles = shared_memory + STAGES * GY_BYTES;
  Offsets* const offsets = reinterpret_cast<Offsets*>(x_tiles + STAGES * X_BYTES);  // [2][BK]

  // ---- which split, group, tap, tile; tiles vary fastest, then taps: they share gy and x in the L2 cache
  const int column_blocks = ceil_div(a.C, BN), tiles = ceil_div(a.K, BM) * column_blocks;
  const int taps = a.filter[0] * a.filter[1] * a.filter[2];
  const int tile = blockIdx.x % tiles, tap = blockIdx.x / tiles % taps;
  const offset_t group = blockIdx.x / tiles / taps % a.groups;
  const int split = blockIdx.x / tiles / taps / a.groups;
  const int k0 = tile / column_blocks * BM, c0 = tile % column_blocks * BN;
  const Pixel at_tap = split_pixel(tap, a.filter[1], a.filter[2]);
  const Pixel shift = {at_tap.d * a.dilation[0] - a.pad[0], at_tap.h * a.dilation[1] - a.pad[1],
                       at_tap.w * a.dilation[2] - a.pad[2]};

  // ---- which pixels, and where a step's are
  const int image = a.out[0] * a.out[1] * a.out[2], pixels = a.N * image;
  const int begin = split * int(a.per_split), end = min(begin + int(a.per_split), pixels);
  const int steps = ceil_div(max(end - begin, 0), BK);
  const auto find = [&](int i) {
    for (int row = threadIdx.x; row < BK; row += THREADS) {
      const int pixel = begin + i * BK + row, n = pixel / image;
      const Pixel out = split_pixel(pixel % image, a.out[1], a.out[2]);
      const Pixel in = {out.d * a.stride[0] + shift.d, out.h * a.stride[1] + shift.h, out.w * a.stride[2] + shift.w};
      const bool m_pixel = pixel < end;
      offsets[i % 2 * BK + row] = {m_pixel ? offset_of<offset_t>(n, out, a.y) : -1,
                                   m_pixel && inside(in, a.in) ? offset_of<offset_t>(n, in, a.x) : -1};
    }
  };

  // ---- what a step copies
  const offset_t y_k = a.y[1], x_c = a.x[1];
  const TYPE* const p_gy_tile = p_gy + (group * a.K + k0) * y_k;
  const TYPE* const p_x_tile = p_x + (group * a.C + c0) * x_c;
  const auto start_copying = [&](int i) {
    const Offsets* const step = offsets + i % 2 * BK;
    stage<DOWN, BM, A_VECTOR>(gy_tiles + i % STAGES * GY_BYTES, BK, p_gy_tile, a.K - k0, y_k,
                              [&](int row) { return step[row].gy; });
    stage<DOWN, BN, B_VECTOR>(x_tiles + i % STAGES * X_BYTES, BK, p_x_tile, a.C - c0, x_c,
                              [&](int row) { return step[row].x; });
  };

  // ---- the loop: STAGES − 1 steps are being copied while one is multiplied
  const bool sums_bias = p_gb && tap == 0 && c0 == 0 && warp_column() == 0;
  Sums acc = {};
  float bias[MI][2] = {};
  find(0);
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; ++i) {
    __syncthreads();
    if (i < steps) start_copying(i);
    close_group();
    find(i + 1);
  }
  for (int i = 0; i < steps; ++i) {
    wait_for_groups<STAGES - 2>();
    __syncthreads();  // step i has arrived, step i − 1 has been multiplied, and step i + STAGES − 1 has been found
    if (i + STAGES - 1 < steps) start_copying(i + STAGES - 1);
    close_group();
    find(i + STAGES);
#pragma unroll
    for (int k = 0; k < K_STEPS; ++k) {
      unsigned left[MI][4];
#pragma unroll
      for (int m = 0; m < MI; ++m) left_down(left[m], gy_tiles + i % STAGES * GY_BYTES, warp_row() + 16 * m, k);
      multiply_piece<DOWN>(acc, left, x_tiles + i % STAGES * X_BYTES, k,
                           [](int c) { return share_group<WM, 16>(warp_row(), c); });
      if (sums_bias) {
#pragma unroll
        for (int m = 0; m < MI; ++m) add_terms(bias[m], left[m]);
      }
    }
  }
  wait_for_groups<0>();
  __syncthreads();  // shared memory is free for another use

  // ---- where the last block adds: all leave their sums, and the last takes all
  const bool last_adds = LAST_ADDS && p_arrived;
  if (last_adds) {
    float* const parts = p_workspace + wide(blockIdx.x % (tiles * taps * a.groups)) * a.splits * PART;
    float (&sums)[4 * MI * NI] = reinterpret_cast<float (&)[4 * MI * NI]>(acc);
    float* const own = parts + split * PART;
    leave<4 * MI * NI>(own, sums);
    if (sums_bias) each_bias(bias, BM, [&](int k, float sum) { own[BM * BN + k] = sum; });
    if (!comes_last(p_arrived + blockIdx.x % (tiles * taps * a.groups), a.splits, *reinterpret_cast<int*>(gy_tiles)))
      return;
    add_parts<4 * MI * NI>(sums, parts, a.splits);
    if (p_gb && tap == 0 && c0 == 0) {
      TYPE* const p_bias = static_cast<TYPE*>(p_gb) + group * a.K + k0;
      for (int k = threadIdx.x; k < min(BM, a.K - k0); k += THREADS)
        p_bias[k] = narrow<TYPE>(add_numbers(parts + BM * BN + k, a.splits));
    }
  }

  // ---- store: partial sums as they are, a single split, or all of them, rounded
  offset_t* const o_row = reinterpret_cast<offset_t*>(shared_memory + SLABS);  // [BM], negative beyond the last filter
  for (int row = threadIdx.x; row < BM; row += THREADS)
    o_row[row] =
        k0 + row < a.K ? (group * a.K + k0 + row) * offset_t(a.w[0]) - first_channel(row) * offset_t(a.w[1]) : -1;
  __syncthreads();
  const offset_t o_tile = split * offset_t(a.gw_split) + offset_of<offset_t>(0, at_tap, a.w) + c0 * offset_t(a.w[1]);
  const offset_t o_bias = split * offset_t(a.gb_split) + group * a.K + k0;
  const auto finish = [](float*, int, int) {};
  const auto m_group = [](int row, int column) { return share_group<1, 1>(row, column); };
  if (a.splits > 1 && !last_adds) {
    store<Y_VECTOR>(acc, shared_memory, static_cast<float*>(p_gw) + o_tile, o_row, a.C - c0, offset_t(a.w[1]), finish,
                    m_group);
    if (sums_bias) each_bias(bias, a.K - k0, [&](int k, float sum) { static_cast<float*>(p_gb)[o_bias + k] = sum; });
  } else {
    store<Y_VECTOR>(acc, shared_memory, static_cast<TYPE*>(p_gw) + o_tile, o_row, a.C - c0, offset_t(a.w[1]), finish,
                    m_group);
    if (sums_bias && !last_adds)
      each_bias(bias, a.K - k0, [&](int k, float sum) { static_cast<TYPE*>(p_gb)[o_bias + k] = narrow<TYPE>(sum); });
  }
}
