// What depthwise forward and grad_input share: which source pixel a tap reads, the filters of a block, the sum of a
// strip, and how results are stored.
//
//   forward      y[o]  = Σ_t x[o·u + t·d − pad] · w[t]              source o·u + t·d
//   grad_input   gx[o] = Σ_t gy[(o + pad − t·d) / u] · w[t]         source (o − t·d) / u, where that is whole
//
// (one axis shown; u stride, d dilation). With BACKWARD a tile begins where o + pad is a multiple of u, so that which
// taps meet an output is known from its place in the tile: for columns when compiled, for rows from the row's phase.
// Rows of one phase are neighbouring lanes, which so take the same taps.
//
//   block   →  image, CHANNELS channels, a tile of TH × TW results; channels vary fastest, then columns
//   thread  →  strips of STRIP results of V channels, ROUNDS of them
//   masks   →  tile pixels outside the source are zeros; at the store results outside the image, channels beyond the
//              last
#include "depthwise.cuh"

// How many source pixels `outputs` neighbours need, and which of them tap `tap` of output o reads (NOWHERE: none).
__device__ constexpr int extent(int outputs, int taps, int u, int d) {
  return BACKWARD ? (outputs - 1) / u + (taps - 1) * d / u + 1 : (outputs - 1) * u + (taps - 1) * d + 1;
}
constexpr int NOWHERE = -1;
__device__ constexpr int source(int o, int tap, int taps, int u, int d) {
  if (!BACKWARD) return o * u + tap * d;
  const int moved = o - tap * d + (taps - 1) * d / u * u;
  return moved < 0 || moved % u ? NOWHERE : moved / u;
}

constexpr int SPAN = extent(STRIP, TAPS_W, STRIDE_W, DILATION_W);  // columns that a strip needs
constexpr int STRIP_STEP = BACKWARD ? STRIP / STRIDE_W : STRIP * STRIDE_W;  // from one strip to the next
constexpr int PHASES = BACKWARD ? STRIDE_H : 1;
static_assert(TH % PHASES == 0 && (!BACKWARD || STRIP % STRIDE_W == 0), "every phase has as many rows, and columns");
typedef Tiled<extent(TH, TAPS_H, STRIDE_H, DILATION_H), extent(TW, TAPS_W, STRIDE_W, DILATION_W),
              BACKWARD ? 1 : STRIDE_H>
    Source;

// ---- the filters of a block, widened: [taps][CHANNELS], or [CHUNKS][TAPS_H][a padded row] ---------------------------

constexpr int FILTER_ROW = CHANNELS_LAST ? TAPS_W * CHANNELS : round_up(TAPS_W, LANE);
constexpr int FILTERS = CHANNELS_LAST ? TAPS_H * FILTER_ROW : CHUNKS * TAPS_H * FILTER_ROW;

// Fetch filter `member` of the MEMBERS of each channel, from channel `first` on.
__device__ __forceinline__ void stage_filters(accumulator* s_w, const TYPE* p_w, int first, int channels, int member,
                                              const Conv& a) {
  for (int i = threadIdx.x; i < TAPS_H * TAPS_W * CHANNELS; i += THREADS) {
    const int s = i % TAPS_W, r = i / TAPS_W % TAPS_H, c = i / TAPS_W / TAPS_H;
    const long long o_w = (wide(first + c) * MEMBERS + member) * a.w[0] + r * a.w[3] + s * a.w[4];
    s_w[CHANNELS_LAST ? r * FILTER_ROW + s * CHANNELS + c : (c * TAPS_H + r) * FILTER_ROW + s] =
        c < channels ? widen(p_w[o_w]) : accumulator(0);
  }
}

// Load one row of a filter for the thread's chunk.
__device__ __forceinline__ void load_filter_row(accumulator (&b)[TAPS_W][V], const accumulator* s_w, int chunk, int r) {
#if CHANNELS_LAST
#pragma unroll
  for (int s = 0; s < TAPS_W; ++s)
#pragma unroll
    for (int v = 0; v < V; v += LANE)
      *reinterpret_cast<Vector<accumulator>*>(&b[s][v]) =
          *reinterpret_cast<const Vector<accumulator>*>(s_w + r * FILTER_ROW + s * CHANNELS + chunk * V + v);
#else
  load_strip(b, s_w + (chunk * TAPS_H + r) * FILTER_ROW);
#endif
}

// ---- a strip --------------------------------------------------------------------------------------------------------

// Where a strip is: its chunk, its row of the tile and its number in that row. Lanes are neighbours in chunks with
// channels last, and in rows (of one phase).
struct Strip {
  int chunk, row, number;
};

__device__ __forceinline__ Strip strip_of(int item) {
  const int chunk = CHANNELS_LAST ? item % CHUNKS : item / TH / STRIPS;
  const int row = (CHANNELS_LAST ? item / CHUNKS : item) % TH, phase_rows = TH / PHASES;
  return {chunk, row % phase_rows * PHASES + row / phase_rows, (CHANNELS_LAST ? item / CHUNKS : item) / TH % STRIPS};
}

typedef accumulator Sums[STRIP][V];
constexpr int UNROLLED_ROWS = CHANNELS_LAST || TAPS_H * TAPS_W > 9 ? 1 : TAPS_H;

// acc += the sum over all taps of a strip.
__device__ __forceinline__ void accumulate(Sums& acc, const Source& tile, const accumulator* s_w, Strip at) {
#pragma unroll UNROLLED_ROWS
  for (int r = 0; r < TAPS_H; ++r) {
    const int row = source(at.row, r, TAPS_H, STRIDE_H, DILATION_H);
    if (BACKWARD && row == NOWHERE) continue;
    alignas(16) accumulator b_w[TAPS_W][V], b_x[SPAN][V];
    load_filter_row(b_w, s_w, at.chunk, r);
    load_strip(b_x, tile.at(at.chunk, row, at.number * STRIP_STEP));
#pragma unroll
    for (int s = 0; s < TAPS_W; ++s)
#pragma unroll
      for (int e = 0; e < STRIP; ++e) {
        const int j = source(e, s, TAPS_W, STRIDE_W, DILATION_W);
        if (j == NOWHERE) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) acc[e][v] = fma(b_x[j][v], b_w[s][v], acc[e][v]);
      }
  }
}

// ---- which tile a block has -----------------------------------------------------------------------------------------

struct Where {
  int n, c0;  // image; first channel
  Pixel corner;  // the tile's first result
};

// `image` is that of the results, `first` where its tiles begin: at 0, or a few pixels before.
__device__ __forceinline__ Where where(int block, int channels, const int (&image)[3], Pixel first) {
  const int chunks = ceil_div(channels, CHANNELS), across = ceil_div(image[2] - first.w, TW);
  const int down = ceil_div(image[1] - first.h, TH), tile = block / chunks;
  return {tile / across / down,
          block % chunks * CHANNELS,
          {0, first.h + tile / across % down * TH, first.w + tile % across * TW}};
}

// ---- results --------------------------------------------------------------------------------------------------------

// The results of a block: where they go, from its first channel on, and what is added on the way.
struct Results {
  TYPE* p;
  long long first;  // offset
  const long long (&strides)[5];
  long long channel_stride;
  const int (&size)[3];
  int channels;
  const TYPE* p_bias;  // at the first channel; null without BIAS
  int bias_stride;
  const TYPE* p_residual;  // null without RESIDUAL
  long long residual_first;
  const long long (&residual_strides)[5];
  long long residual_channel_stride;
  accumulator slope;
};

__device__ __forceinline__ accumulator finished(accumulator z, accumulator residual, const Results& to) {
  if (RESIDUAL) z += residual;
  return activate(z, ACTIVATION, to.slope);
}

#if CHANNELS_LAST
// Store a strip from registers.
__device__ __forceinline__ void store_strip(const Sums& acc, const Results& to, Strip at, Pixel corner) {
  const int h = corner.h + at.row, first = corner.w + at.number * STRIP, c = at.chunk * V;
  if (unsigned(h) >= unsigned(to.size[1]) || c >= to.channels) return;
  accumulator b_bias[V] = {};
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (BIAS && c + v < to.channels) b_bias[v] = widen(to.p_bias[(c + v) * to.bias_stride]);
#pragma unroll
  for (int e = 0; e < STRIP; ++e) {
    const int w = first + e;
    if (unsigned(w) >= unsigned(to.size[2])) continue;
    const long long o = to.first + h * to.strides[3] + w * to.strides[4] + c * to.channel_stride;
    const long long o_residual =
        to.residual_first + h * to.residual_strides[3] + w * to.residual_strides[4] + c * to.residual_channel_stride;
    Vector<TYPE> b_residual = {}, b_y;
    if (RESIDUAL && RESIDUAL_VECTOR) {
      b_residual = *reinterpret_cast<const Vector<TYPE>*>(to.p_residual + o_residual);
    } else if (RESIDUAL) {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (c + v < to.channels) b_residual.at[v] = to.p_residual[o_residual + v * to.residual_channel_stride];
    }
#pragma unroll
    for (int v = 0; v < V; ++v) b_y.at[v] = narrow<TYPE>(finished(acc[e][v] + b_bias[v], widen(b_residual.at[v]), to));
    if (Y_VECTOR) {
      store_16(to.p + o, *reinterpret_cast<const uint4*>(&b_y));
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (c + v < to.channels) to.p[o + v * to.channel_stride] = b_y.at[v];
    }
  }
}
#else
// The runs of the block's results, and of the residual beneath them.
__device__ __forceinline__ Runs runs_of(const Results& to, Pixel corner) {
  const Pixel low = {0, max(corner.h, 0), max(corner.w, 0)};
  const Pixel high = {0, min(corner.h + TH, to.size[1]), min(corner.w + TW, to.size[2])};
  return runs_of(to.first, to.channel_stride, min(to.channels, CHUNKS), to.size, low, high);
}

// Put a strip into shared memory, from where `store_runs` stores it.
__device__ __forceinline__ void put_strip(accumulator* s_y, const Sums& acc, const Results& to, const Runs& runs,
                                          Strip at, Pixel corner) {
  const int h = corner.h + at.row, w = corner.w + at.number * STRIP, left = max(corner.w, 0);
  if (unsigned(h) >= unsigned(to.size[1]) || at.chunk >= to.channels) return;
  const accumulator bias = BIAS ? widen(to.p_bias[at.chunk * to.bias_stride]) : accumulator(0);
  accumulator* const s = s_y + runs.place(at.chunk, h - max(corner.h, 0)) - left;
#pragma unroll
  for (int e = 0; e < STRIP; ++e)
    if (w + e >= left && w + e < min(corner.w + TW, to.size[2])) s[w + e] = acc[e][0] + bias;
}

__device__ __forceinline__ void store_runs(const accumulator* s_y, const Results& to, const Runs& runs) {
  each_vector(runs, [&](int place, long long o, int begin, int end) {
    alignas(16) accumulator b_z[SIZE];
#pragma unroll
    for (int e = 0; e < SIZE; e += LANE)
      *reinterpret_cast<Vector<accumulator>*>(b_z + e) = *reinterpret_cast<const Vector<accumulator>*>(s_y + place + e);
    const bool m_whole = begin == 0 && end == SIZE;
    if (ACTIVATION && !m_whole) {  // what lies beside a run was never written, and no branch may depend on it
#pragma unroll
      for (int e = 0; e < SIZE; ++e)
        if (e < begin || e >= end) b_z[e] = 0;
    }
    Vector<TYPE> b_residual = {}, b_y;
    if (RESIDUAL && RESIDUAL_VECTOR && m_whole) {
      b_residual = *reinterpret_cast<const Vector<TYPE>*>(to.p_residual + o);
    } else if (RESIDUAL) {
      const long long start = o - place % runs.slot;  // of the run's first vector
      const int run = place / runs.slot, plane = runs.merged ? 0 : run / runs.of_plane;
      const int row = runs.merged || runs.of_plane == 1 ? 0 : run % runs.of_plane;
      const int before = static_cast<int>(runs.start(run) - start);
#pragma unroll
      for (int e = 0; e < SIZE; ++e) {
        if (e < begin || e >= end) continue;
        const int t = place % runs.slot + e - before;  // of the run
        const int pixel = runs.merged ? t % (runs.rows * runs.columns) : t;
        const int c = runs.merged ? t / (runs.rows * runs.columns) : plane;
        const int h = runs.low.h + row + pixel / runs.columns, w = runs.low.w + pixel % runs.columns;
        b_residual.at[e] = to.p_residual[to.residual_first + c * to.residual_channel_stride +
                                         h * to.residual_strides[3] + w * to.residual_strides[4]];
      }
    }
#pragma unroll
    for (int e = 0; e < SIZE; ++e) b_y.at[e] = narrow<TYPE>(finished(b_z[e], widen(b_residual.at[e]), to));
    if (Y_VECTOR && m_whole) {
      store_16(to.p + o, *reinterpret_cast<const uint4*>(&b_y));
    } else {
#pragma unroll
      for (int e = 0; e < SIZE; ++e)
        if (e >= begin && e < end) to.p[o + e] = b_y.at[e];
    }
  });
}
constexpr int RESULTS = CHUNKS * TH * (TW + 2 * SIZE);  // numbers of s_y
#endif

// ---- the block's work ------------------------------------------------------------------------------------------------

constexpr int ITEMS = CHUNKS * TH * STRIPS, ROUNDS = ceil_div(ITEMS, THREADS);
static_assert(!BACKWARD || MEMBERS == 1 || ROUNDS == 1, "sums over several filters stay in registers");

// Compute and store every strip of the tile. All threads call sum(acc, strip, whether there is such a strip).
template <typename Sum>
__device__ __forceinline__ void each_strip([[maybe_unused]] void* staging, const Results& to, Pixel corner,
                                           const Sum& sum) {
#if !CHANNELS_LAST
  accumulator* const s_y = static_cast<accumulator*>(staging);
  const Runs runs = runs_of(to, corner);
#endif
#pragma unroll 1
  for (int round = 0; round < ROUNDS; ++round) {
    const int item = round * THREADS + threadIdx.x;
    const bool m_item = ITEMS % THREADS == 0 || item < ITEMS;
    const Strip at = strip_of(item);
    Sums acc = {};
    sum(acc, at, m_item);
#if CHANNELS_LAST
    if (m_item) store_strip(acc, to, at, corner);
#else
    if (m_item) put_strip(s_y, acc, to, runs, at, corner);
#endif
  }
#if !CHANNELS_LAST
  __syncthreads();
  store_runs(s_y, to, runs);
#endif
}

// ---- shared memory --------------------------------------------------------------------------------------------------

constexpr int TILE_BYTES = round_up(Source::NUMBERS * sizeof(Number), 16);
#if CHANNELS_LAST
constexpr int STAGING_BYTES = 0;
#else  // what comes in and what goes out pass through the same place, one after the other
constexpr int STAGING_BYTES = round_up(larger(Source::RAW * sizeof(TYPE), RESULTS * sizeof(accumulator)), 16);
#endif

struct Shared {
  Source tile;
  accumulator* s_w;
  void* staging;
};

__device__ __forceinline__ Shared shared_of(unsigned char* memory) {
  return {{reinterpret_cast<Number*>(memory)},
          reinterpret_cast<accumulator*>(memory + TILE_BYTES + STAGING_BYTES),
          memory + TILE_BYTES};
}
