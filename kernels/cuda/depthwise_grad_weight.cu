// Gradient of the weight of a depthwise convolution, and of the bias in the same pass; then the ordered sum of partial
// results; two axes:
//
//   gw[c·K + m, r, s] = Σ_{n,p,q} gy[n, c·K + m, p, q] · x[n, c, p·u + r·d − pad, q·u + s·d − pad]
//   gb[k]             = Σ_{n,p,q} gy[n, k, p, q]
//
// A tile of gy and the tile of x beneath it are fetched once and serve all taps (depthwise.cuh). The sums stay in
// registers while a block goes from tile to tile: a thread owns TAPS neighbouring taps of one filter row, for V
// channels, and GROUPS threads with the same taps share the strips of a tile. In the end their sums are added in a
// fixed order. No atomics, so the same inputs give the same bits.
//
//   block   →  CHANNELS channels, filter m of each, a split of the tiles of all images; channels vary fastest
//   thread  →  (taps, group, chunk), chunk fastest; threads beyond the last only fetch
//   masks   →  pixels of gy beyond the image take no part; pixels of x outside are zeros
//
// STRIP results of gy meet STRIP·u + TAPS·d columns of x. Where TAPS does not divide the row of a filter the last taps
// are summed and dropped.
#include "depthwise.cuh"
#include "sum_partials.cuh"

__device__ constexpr int extent(int outputs, int taps, int u, int d) { return (outputs - 1) * u + (taps - 1) * d + 1; }

constexpr int TAP_BLOCKS = ceil_div(TAPS_W, TAPS), UNITS = TAPS_H * TAP_BLOCKS;
constexpr int GROUPS = THREADS / (UNITS * CHUNKS);
constexpr int NO_GROUP = THREADS + TH * STRIPS;  // of a thread that only fetches: it has no strip
constexpr int SPAN = extent(STRIP, TAPS, STRIDE_W, DILATION_W);
static_assert(GROUPS > 0, "a thread for every tap");
static_assert(CHANNELS_LAST || TAP_BLOCKS == 1 || TAPS * DILATION_W % LANE == 0, "strips are read by vectors");
constexpr int NEXT = ceil_div(8, CHUNKS);  // neighbouring lanes have neighbouring planes
typedef Tiled<extent(TH, TAPS_H, STRIDE_H, DILATION_H), extent(TW, (TAP_BLOCKS * TAPS), STRIDE_W, DILATION_W), STRIDE_H,
              NEXT>
    TileX;
typedef Tiled<TH, TW, 1, NEXT> TileGy;

// ---- shared memory --------------------------------------------------------------------------------------------------

constexpr int X_BYTES = round_up(TileX::NUMBERS * sizeof(Number), 16);
constexpr int GY_BYTES = round_up(TileGy::NUMBERS * sizeof(Number), 16);

struct Where {
  int c0, m, split;
};

__device__ __forceinline__ Where where(int block, const Conv& a) {
  const int chunks = ceil_div(a.groups, CHANNELS);
  return {block % chunks * CHANNELS, block / chunks % MEMBERS, block / chunks / MEMBERS};
}

// Add up, in the threads of group 0, the sums of the same taps over all groups, in their order. s_sums: V · THREADS
// numbers.
__device__ __forceinline__ void add_groups(accumulator (&sum)[V], accumulator* s_sums, int group) {
  __syncthreads();
#pragma unroll
  for (int v = 0; v < V; ++v) s_sums[v * THREADS + threadIdx.x] = sum[v];
  __syncthreads();
  if (group > 0) return;
#pragma unroll 1
  for (int g = 1; g < GROUPS; ++g)
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += s_sums[v * THREADS + threadIdx.x + g * CHUNKS];
}

template <typename T>
__device__ __forceinline__ void store(T* p_gw, T* p_gb, const accumulator (&acc)[TAPS][V], const accumulator (&bias)[V],
                                      int channels, int first_tap, long long channel_stride, long long tap_stride) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (v >= channels) continue;
#pragma unroll
    for (int i = 0; i < TAPS; ++i)
      if (TAPS_W % TAPS == 0 || first_tap + i < TAPS_W)
        p_gw[v * channel_stride + i * tap_stride] = narrow<T>(acc[i][v]);
    if (p_gb) p_gb[v * MEMBERS] = narrow<T>(bias[v]);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
depthwise_grad_weight(const TYPE* __restrict__ p_gy, const TYPE* __restrict__ p_x, void* p_gw, void* p_gb /* or null */,
                      const Conv a) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const TileX s_x = {reinterpret_cast<Number*>(shared_memory)};
  const TileGy s_gy = {reinterpret_cast<Number*>(shared_memory + X_BYTES)};
  TYPE* const s_raw = reinterpret_cast<TYPE*>(shared_memory + X_BYTES + GY_BYTES);
  TYPE* const s_raw_gy = s_raw + (CHANNELS_LAST ? 0 : round_up(TileX::RAW, SIZE));

  const Where block = where(blockIdx.x, a);
  const int channels = a.groups - block.c0;
  const int chunk = threadIdx.x % CHUNKS, unit = threadIdx.x / CHUNKS / GROUPS;
  const int r = unit / TAP_BLOCKS, first_tap = unit % TAP_BLOCKS * TAPS;
  const int group = threadIdx.x / CHUNKS % GROUPS + unit / UNITS * NO_GROUP;

  const int down = ceil_div(a.out[1], TH), across = ceil_div(a.out[2], TW);
  const long long tiles = wide(a.N) * down * across;
  const long long begin = block.split * a.per_split, end = min(begin + a.per_split, tiles);
  accumulator acc[TAPS][V] = {}, bias[V] = {};
#pragma unroll 1
  for (long long tile = begin; tile < end; ++tile) {
    const long long n = tile / across / down;
    const Pixel corner = {0, static_cast<int>(tile / across % down) * TH, static_cast<int>(tile % across) * TW};
    const long long k = wide(block.c0) * MEMBERS + block.m;
    const Image x = {p_x, n * a.x[0] + block.c0 * a.x[1], a.x, a.x[1], a.in, channels};
    const Image gy = {p_gy, n * a.y[0] + k * a.y[1], a.y, MEMBERS * a.y[1], a.out, channels};
    __syncthreads();  // the tiles before have been used
    stage(s_gy, gy, corner, s_raw_gy);
    stage(s_x, x, {0, corner.h * STRIDE_H - a.pad[1], corner.w * STRIDE_W - a.pad[2]}, s_raw);
    __syncthreads();
    const int rows = min(TH, a.out[1] - corner.h);
#pragma unroll 1
    for (int i = group; i < TH * STRIPS; i += GROUPS) {
      const int row = i % TH, column = i / TH * STRIP, valid = a.out[2] - corner.w - column;
      if (row >= rows || valid <= 0) continue;
      alignas(16) accumulator b_gy[STRIP][V], b_x[SPAN][V];
      load_strip(b_gy, s_gy.at(chunk, row, column));
      load_strip(b_x, s_x.at(chunk, row * STRIDE_H + r * DILATION_H, column * STRIDE_W + first_tap * DILATION_W));
#pragma unroll
      for (int e = 0; e < STRIP; ++e) {
        if (e >= valid) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) {
#pragma unroll
          for (int s = 0; s < TAPS; ++s) acc[s][v] = fma(b_gy[e][v], b_x[e * STRIDE_W + s * DILATION_W][v], acc[s][v]);
          bias[v] += b_gy[e][v];
        }
      }
    }
  }
  accumulator* const s_sums = reinterpret_cast<accumulator*>(shared_memory);  // where the tiles were
#pragma unroll
  for (int i = 0; i < TAPS; ++i) add_groups(acc[i], s_sums, group);
  add_groups(bias, s_sums, group);

  // ---- store: partial sums as they are, a single split rounded
  if (group > 0) return;
  const int c = chunk * V;
  const long long k = wide(block.c0 + c) * MEMBERS + block.m;
  const long long o_gw = block.split * a.gw_split + k * a.w[0] + r * a.w[3] + first_tap * a.w[4];
  const long long o_gb = block.split * a.gb_split + k;
  const bool m_bias = p_gb && unit == 0;
  if (a.splits > 1) {
    store(static_cast<accumulator*>(p_gw) + o_gw, m_bias ? static_cast<accumulator*>(p_gb) + o_gb : nullptr, acc, bias,
          channels - c, first_tap, MEMBERS * a.w[0], a.w[4]);
  } else {
    store(static_cast<TYPE*>(p_gw) + o_gw, m_bias ? static_cast<TYPE*>(p_gb) + o_gb : nullptr, acc, bias, channels - c,
          first_tap, MEMBERS * a.w[0], a.w[4]);
  }
}
