// Gradient of the weight of a depthwise convolution with large filters on tensor cores, stride 1, any layout; of the
// bias in the same pass; then the ordered sum of partial results.
//
//   gw[k, r, s] = Σ_n Σ_p Σ_q x[n, c, p − pad + r, q − pad + s] · gy[n, k, p, q]     gb[k] = Σ_n Σ_p Σ_q gy[n, k, p, q]
//
// where c = k / K. The product of banded.cuh the other way round: for a filter row r and a window of gy with the input
// X under it (columns j from a multiple of 16 on, LEFT before the first that a tap meets)
//
//   C_r[j, q] = Σ_p X[p + r, j] · GY[p, q]      gw[r, s] = Σ_q C_r[q + LEFT + s, q]     a sum along a diagonal
//
// Blocks of 16 j × 8 q that are equally far from the diagonal (`delta`) are summed in the same registers, over all
// windows and images, and the diagonals only once, in the end. Blocks that no tap's diagonal crosses are skipped.
//
//   block           →  a filter k, one of `splits` shares of the windows; one window after the other
//   warp r          →  filter rows r, r + 8, r + 16, …: a half of 8 rows (of 4 in TF32) of X that one of them meets,
//                      the next meets a step later, or the next filter row now, and is read once for all
//   shared memory   →  STAGES windows of x and of gy, all but one of which may be under way
//   masks           →  zeros outside gy and x, so beyond the window's last output too
//
// Pieces of padding are not multiplied, so that a gy that is not finite would be lost where it meets padding alone: the
// sum of all gy times zero is added to every tap. Structural zeros are multiplied: an x that is not finite may make NaN
// of all taps of its channel.
#include "banded.cuh"
#include "sum_partials.cuh"

constexpr int NB = TW / 8;
constexpr int JB = ceil_div(LEFT + TW + FILTER_W - 1, 16);  // blocks of 16 columns of x
constexpr int TURNS = ceil_div(FILTER_H, 8);  // filter rows of a warp
constexpr int HALF = UNIT, K_STEP = 2 * HALF;  // rows of gy
constexpr int APART = 8 / HALF;  // halves from one filter row of a warp to the next
constexpr int HALVES = APART * (TURNS - 1) + 2;
constexpr int PAD = sizeof(TYPE) == 2 ? 16 : 32;  // bytes that keep the rows of a fragment in different banks
constexpr int X_PITCH = JB * 16 * int(sizeof(TYPE)) + PAD, GY_PITCH = TW * int(sizeof(TYPE)) + PAD;
constexpr int X_ROWS = TH + FILTER_H - 1, X_BYTES = (TH + 8 * TURNS + 8) * X_PITCH, GY_BYTES = TH * GY_PITCH;

constexpr int FIRST = LEFT / 8 - 1, DELTAS = (FILTER_W + 6 + LEFT) / 8 - FIRST + 1;
constexpr int SLAB_PITCH = 9;  // floats from one j to the next: a diagonal's elements lie in different banks
constexpr int SLAB = DELTAS * 16 * SLAB_PITCH;  // floats of a warp

// ---- fragments ------------------------------------------------------------------------------------------------------

// The 4 bytes at (row, column).
__device__ __forceinline__ unsigned word(const unsigned char* window, int row, int column, int pitch) {
  return *reinterpret_cast<const unsigned*>(window + row * pitch + column * int(sizeof(TYPE)));
}

// Load halves of x, 16 columns of each, from (row, column) on.
__device__ __forceinline__ void load_halves(unsigned (&x)[HALVES + HALVES % 2][2], const unsigned char* window, int row,
                                            int column) {
  if constexpr (sizeof(TYPE) == 2) {
    const unsigned char* p = window + (row + lane() % 8 + lane() / 16 * 8) * X_PITCH + 2 * column + lane() / 8 % 2 * 16;
#pragma unroll
    for (int h = 0; h < HALVES; h += 2) {
      unsigned both[4];
      ldmatrix_transposed(both, p + h * HALF * X_PITCH);
      x[h][0] = both[0], x[h][1] = both[1], x[h + 1][0] = both[2], x[h + 1][1] = both[3];
    }
  } else {
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        x[h][i] = word(window, row + h * HALF + lane() % 4, column + 8 * i + lane() / 4, X_PITCH);
    }
  }
}

// Load K_STEP rows of gy, all TW columns.
__device__ __forceinline__ void load_gy(unsigned (&gy)[NB][2], const unsigned char* window, int row) {
  if constexpr (sizeof(TYPE) == 2) {
    const unsigned char* p = window + (row + lane() % 16) * GY_PITCH + lane() / 16 * 16;
#pragma unroll
    for (int n = 0; n < NB; n += 2) {
      unsigned both[4];
      ldmatrix_transposed(both, p + 16 * n);
      gy[n][0] = both[0], gy[n][1] = both[1], gy[n + 1][0] = both[2], gy[n + 1][1] = both[3];
    }
  } else {
#pragma unroll
    for (int n = 0; n < NB; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) gy[n][i] = word(window, row + i * HALF + lane() % 4, 8 * n + lane() / 4, GY_PITCH);
    }
  }
}

// ---- the sum over a window ------------------------------------------------------------------------------------------

typedef float Sums[TURNS][DELTAS][4];

// acc += the products of `rows` rows of a window, without the pieces of x that are padding throughout.
__device__ __forceinline__ void multiply_window(Sums& acc, const unsigned char* x_window,
                                                const unsigned char* gy_window, int rows, Pieces pieces) {
#pragma unroll 1
  for (int row = 0; row < rows; row += K_STEP) {
    unsigned gy[NB][2];
    load_gy(gy, gy_window, row);
#pragma unroll
    for (int j = 0; j < JB; ++j) {
      if (j < pieces.begin || j >= pieces.end) continue;
      unsigned x[HALVES + HALVES % 2][2];
      load_halves(x, x_window, row + warp(), 16 * j);
#pragma unroll
      for (int i = 0; i < TURNS; ++i) {
        if (8 * i + 7 >= FILTER_H && 8 * i + warp() >= FILTER_H) break;
        const unsigned a[4] = {x[APART * i][0], x[APART * i][1], x[APART * i + 1][0], x[APART * i + 1][1]};
#pragma unroll
        for (int n = 0; n < NB; ++n) {
          const int delta = 2 * j - n - FIRST;
          if (delta >= 0 && delta < DELTAS) multiply(acc[i][delta], a, gy[n][0], gy[n][1], TYPE{});
        }
      }
    }
  }
}

// ---- from sums to memory --------------------------------------------------------------------------------------------

// Store row 8i + warp of the gradient, each tap the sum along its diagonal and `poison`.
template <typename Result>
__device__ __forceinline__ void store_rows(const Sums& acc, float* slab, Result* p_gw, offset_t row, offset_t column,
                                           float poison) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int i = 0; i < TURNS; ++i) {
    const int r = 8 * i + warp();
    if (r >= FILTER_H) break;
    __syncwarp();  // the slab has been read
#pragma unroll
    for (int delta = 0; delta < DELTAS; ++delta) {
#pragma unroll
      for (int e = 0; e < 4; ++e) slab[(16 * delta + g + e / 2 * 8) * SLAB_PITCH + 2 * t + e % 2] = acc[i][delta][e];
    }
    __syncwarp();  // the slab has been written
    for (int s = lane(); s < FILTER_W; s += 32) {
      float sum = poison;
#pragma unroll
      for (int delta = 0; delta < DELTAS; ++delta) {
#pragma unroll
        for (int q = 0; q < 8; ++q) {
          const int j = s + LEFT + q - 8 * (delta + FIRST);
          if (unsigned(j) < 16u) sum += slab[(16 * delta + j) * SLAB_PITCH + q];
        }
      }
      p_gw[r * row + s * column] = narrow<Result>(sum);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
banded_grad_weight(const TYPE* __restrict__ p_gy, const TYPE* __restrict__ p_x, void* p_gw, void* p_gb /* or null */,
                   const Conv a) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  unsigned char *const x_windows = shared_memory, *const gy_windows = shared_memory + STAGES * X_BYTES;

  // ---- which filter, which windows
  const int filters = a.K * a.groups, k = blockIdx.x % filters, split = blockIdx.x / filters;
  const int windows = a.N * ceil_div(a.out[1], TH) * ceil_div(a.out[2], TW);
  const int begin = split * int(a.per_split), steps = max(min(int(a.per_split), windows - begin), 0);
  const auto columns_of = [&](const Window& at) { return at.w - a.pad[2] - LEFT; };
  const auto start_copying = [&](int i) {
    const Window at = window_of(begin + i, a.out);
    const TYPE* p_x_plane = p_x + (at.n * wide(a.x[0]) + k / a.K * wide(a.x[1]));
    const TYPE* p_gy_plane = p_gy + (at.n * wide(a.y[0]) + k * wide(a.y[1]));
    const Plane x = {p_x_plane, a.in[1], a.in[2], offset_t(a.x[3]), offset_t(a.x[4])};
    const Plane gy = {p_gy_plane, a.out[1], a.out[2], offset_t(a.y[3]), offset_t(a.y[4])};
    stage<X_RUN, 16, X_PITCH>(x_windows + i % STAGES * X_BYTES, X_ROWS, pieces_inside<16>(columns_of(at), a.in[2], JB),
                              x, at.h - a.pad[1], columns_of(at), threadIdx.x, THREADS);
    stage<Y_RUN, 16, GY_PITCH>(gy_windows + i % STAGES * GY_BYTES, TH, {0, TW / 16}, gy, at.h, at.w, threadIdx.x,
                               THREADS);
  };

  // ---- the loop: STAGES − 1 windows are being copied while one is multiplied
  Sums acc = {};
  float bias = 0, poison = 0;  // of a share of gy
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; ++i) {
    if (i < steps) start_copying(i);
    close_group();
  }
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    wait_for_groups<STAGES - 2>();
    __syncthreads();  // window i has arrived, and window i − 1, whose place the next one takes, has been multiplied
    if (i + STAGES - 1 < steps) start_copying(i + STAGES - 1);
    close_group();
    const Window at = window_of(begin + i, a.out);
    const unsigned char* gy_window = gy_windows + i % STAGES * GY_BYTES;
    multiply_window(acc, x_windows + i % STAGES * X_BYTES, gy_window, min(TH, a.out[1] - at.h),
                    pieces_inside<16>(columns_of(at), a.in[2], JB));
    constexpr int CHUNKS = TW / UNIT;
    for (int item = threadIdx.x; item < TH * CHUNKS; item += THREADS) {
      const auto chunk =
          *reinterpret_cast<const Vector<TYPE>*>(gy_window + item / CHUNKS * GY_PITCH + item % CHUNKS * 16);
#pragma unroll
      for (int e = 0; e < UNIT; ++e) bias += widen(chunk.at[e]), poison += 0 * widen(chunk.at[e]);
    }
  }
  wait_for_groups<0>();
  __syncthreads();  // shared memory is free for another use

  // ---- the sums over gy, of all threads
  float* const shares = reinterpret_cast<float*>(shared_memory) + WARPS * SLAB;  // [WARPS][2]
#pragma unroll
  for (int bit = 1; bit < 32; bit *= 2) bias += exchange(bias, bit), poison += exchange(poison, bit);
  if (lane() == 0) shares[2 * warp()] = bias, shares[2 * warp() + 1] = poison;
  __syncthreads();
  bias = 0, poison = 0;
  for (int i = 0; i < WARPS; ++i) bias += shares[2 * i], poison += shares[2 * i + 1];

  // ---- store: partial sums [split, k, r, s] as they are, a single split rounded
  float* const slab = reinterpret_cast<float*>(shared_memory) + warp() * SLAB;
  const long long o_bias = split * a.gb_split + k;
  if (a.splits > 1) {
    store_rows(acc, slab, static_cast<float*>(p_gw) + (split * a.gw_split + k * wide(a.w[0])), offset_t(a.w[3]),
               offset_t(a.w[4]), poison);
    if (p_gb && threadIdx.x == 0) static_cast<float*>(p_gb)[o_bias] = bias;
  } else {
    store_rows(acc, slab, static_cast<TYPE*>(p_gw) + k * wide(a.w[0]), offset_t(a.w[3]), offset_t(a.w[4]), poison);
    if (p_gb && threadIdx.x == 0) static_cast<TYPE*>(p_gb)[o_bias] = narrow<TYPE>(bias);
  }
}
