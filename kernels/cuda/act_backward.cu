// The backward pass of an activation, and of the bias where no grad_weight gives it; memory-bound, each number read
// once:
//
//   gz[n, k, p] = gy[n, k, p] · act'(s[n, k, p])      gb[k] = Σ_{n,p} gz[n, k, p]      s: y, or z (see epilogue.cuh)
//
// s and gz are dense and alike, so both are one matrix of rows × columns with the columns side by side in memory:
// pixels × channels in channels-last tensors, (images · channels) × pixels in contiguous ones, and 1 × all where
// nothing is summed and gy is dense too. gy may have any strides: a row's number and a column's are split into digits,
// each with a stride of its own.
//
//   block   →  BM rows × BN runs of RUN columns, and the `steps` − 1 tiles that follow: down the rows, or with
//              SUM_ROWS along the columns; adds up its part of each column, or of each row
//   thread  →  one run: with VECTOR 16 bytes of s and gz (and of gy, where it is DENSE), else one element
//   masks   →  rows and columns beyond the last
//
// The sums of all blocks go to a workspace, and sum_channels adds them in a fixed order. No atomics.
#include "epilogue.cuh"

struct Act {
  long long rows, columns;
  long long gy[7];  // strides of the four digits of a row and the three of a column
  double slope;
  int size[5];  // row_1, row_2, row_3, column_2, column_3: what the digits are counted in
  int steps, across;  // tiles of a block; blocks side by side, not along what is stepped over
  int count, channels;  // the workspace is [count, channels]
  int unused;
};
static_assert(sizeof(Act) == 10 * 8 + 10 * 4, "the launcher fills in this layout");

constexpr int RUN = VECTOR ? Vector<TYPE>::SIZE : 1;

__device__ __forceinline__ offset_t row_of_gy(offset_t row, const Act& a) {
  const offset_t d2 = row / a.size[2], d1 = d2 / a.size[1], d0 = d1 / a.size[0];
  return d0 * offset_t(a.gy[0]) + d1 % a.size[0] * offset_t(a.gy[1]) + d2 % a.size[1] * offset_t(a.gy[2]) +
         row % a.size[2] * offset_t(a.gy[3]);
}

__device__ __forceinline__ offset_t column_of_gy(offset_t column, const Act& a) {
  const offset_t d2 = column / a.size[4], d1 = d2 / a.size[3];
  return d1 * offset_t(a.gy[4]) + d2 % a.size[3] * offset_t(a.gy[5]) + column % a.size[4] * offset_t(a.gy[6]);
}

struct alignas(sizeof(TYPE) * RUN) Piece {
  TYPE at[RUN];
};

extern "C" __global__ void __launch_bounds__(BM* BN)
act_backward(const TYPE* __restrict__ p_gy, const TYPE* __restrict__ p_s, TYPE* __restrict__ p_gz,
             void* __restrict__ p_sums, const Act a) {  // sums may be null
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const auto s_sum = reinterpret_cast<accumulator(*)[BN][RUN]>(shared_memory);  // [BM][BN][RUN]
  const int x = threadIdx.x % BN, y = threadIdx.x / BN;
  const int across = blockIdx.x % a.across, along = blockIdx.x / a.across;
  offset_t row = offset_t(SUM_ROWS ? across : along * a.steps) * BM + y;
  offset_t column = (offset_t(SUM_ROWS ? along * a.steps : across) * BN + x) * RUN;
  accumulator sum[RUN] = {};

  for (int step = 0; step < a.steps; ++step) {
    if (row < a.rows && column < a.columns) {
      const offset_t o = row * offset_t(a.columns) + column;
      const Piece s = *reinterpret_cast<const Piece*>(p_s + o);
      Piece gy, gz;
      if (DENSE) {
        gy = *reinterpret_cast<const Piece*>(p_gy + o);
      } else {
        const offset_t o_row = row_of_gy(row, a);
#pragma unroll
        for (int e = 0; e < RUN; ++e) gy.at[e] = p_gy[o_row + column_of_gy(column + e, a)];
      }
#pragma unroll
      for (int e = 0; e < RUN; ++e) {
        const accumulator z = widen(gy.at[e]) * derivative(widen(s.at[e]), ACTIVATION, accumulator(a.slope));
        gz.at[e] = narrow<TYPE>(z);
        sum[e] += z;
      }
      *reinterpret_cast<Piece*>(p_gz + o) = gz;
    }
    if (SUM_ROWS)
      column += BN * RUN;
    else
      row += BM;
  }
  if (!p_sums) return;

  // ---- the sums of the block's threads, in their order
#pragma unroll
  for (int e = 0; e < RUN; ++e) s_sum[y][x][e] = sum[e];
  __syncthreads();
  accumulator* const p = static_cast<accumulator*>(p_sums);
  if (SUM_ROWS) {
    if (x != 0 || row >= a.rows) return;
    accumulator total = 0;
    for (int i = 0; i < BN; ++i)
#pragma unroll
      for (int e = 0; e < RUN; ++e) total += s_sum[y][i][e];
    p[wide(along) * a.rows + row] = total;
  } else {
    if (y != 0 || column >= a.columns) return;
#pragma unroll
    for (int e = 0; e < RUN; ++e) {
      accumulator total = 0;
      for (int i = 0; i < BM; ++i) total += s_sum[i][x][e];
      p[wide(along) * a.columns + column + e] = total;
    }
  }
}

// gb[k] = Σ_i sums[i, k], rounded once: eight threads add every 8th of a channel's sums, and the first adds the eight.
extern "C" __global__ void __launch_bounds__(256)
sum_channels(const void* p_sums, TYPE* p_gb, const Act a) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const auto s_sum = reinterpret_cast<accumulator(*)[32]>(shared_memory);  // [8][32]
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  const int channel = blockIdx.x * 32 + x;
  const accumulator* const p = static_cast<const accumulator*>(p_sums) + min(channel, a.channels - 1);
  accumulator sum = 0;
  for (int i = y; i < a.count; i += 8) sum += p[wide(i) * a.channels];
  s_sum[y][x] = sum;
  __syncthreads();
  if (y != 0 || channel >= a.channels) return;
  for (int i = 1; i < 8; ++i) sum += s_sum[i][x];
  p_gb[channel] = narrow<TYPE>(sum);
}
