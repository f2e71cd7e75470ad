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
#include "depthwise_results.cuh"

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
constexpr int STEP = BACKWARD ? 1 : STRIDE_H, NEXT = STEP * TH / PHASES;  // rows of source: of lanes, of planes
typedef Tiled<extent(TH, TAPS_H, STRIDE_H, DILATION_H), extent(TW, TAPS_W, STRIDE_W, DILATION_W), STEP,
              NEXT + skew_of<STEP>(NEXT) / LANE>
    Source;

// ---- the filters of a block, widened: [taps][padded channels], or [CHUNKS][TAPS_H][a padded row] --------------------

constexpr int TAP = CHANNELS + LANE;  // so that the taps of a channel, which lie together in memory, do not share banks
constexpr int FILTER_ROW = CHANNELS_LAST ? TAPS_W * TAP : round_up(TAPS_W, LANE);
constexpr int FILTERS = CHANNELS_LAST ? TAPS_H * FILTER_ROW : CHUNKS * TAPS_H * FILTER_ROW;

// Where channel v of a chunk is. The 16 bytes that neighbouring lanes read at once, of neighbouring
// chunks, lie together.
__device__ __forceinline__ int place_of_channel(int chunk, int v) {
  return v / LANE * (CHUNKS * LANE) + chunk * LANE + v % LANE;
}

// Fetch filter `member` of the MEMBERS of each channel, from channel `first` on.
__device__ __forceinline__ void stage_filters(accumulator* s_w, const TYPE* p_w, int first, int channels, int member,
                                              const Conv& a) {
  for (int i = threadIdx.x; i < TAPS_H * TAPS_W * CHANNELS; i += THREADS) {
    const int s = i % TAPS_W, r = i / TAPS_W % TAPS_H, c = i / TAPS_W / TAPS_H;
    const long long o_w = (wide(first + c) * MEMBERS + member) * a.w[0] + r * a.w[3] + s * a.w[4];
    s_w[CHANNELS_LAST ? r * FILTER_ROW + s * TAP + place_of_channel(c / V, c % V) : (c * TAPS_H + r) * FILTER_ROW + s] =
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
          *reinterpret_cast<const Vector<accumulator>*>(s_w + r * FILTER_ROW + s * TAP + place_of_channel(chunk, v));
#else
  load_strip(b, s_w + (chunk * TAPS_H + r) * FILTER_ROW);
#endif
}

// ---- a strip --------------------------------------------------------------------------------------------------------

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

// ---- the block's work ------------------------------------------------------------------------------------------------

constexpr int ITEMS = CHUNKS * TH * STRIPS, ROUNDS = ceil_div(ITEMS, THREADS);
static_assert(!BACKWARD || MEMBERS == 1 || ROUNDS == 1, "sums over several filters stay in registers");

// Compute and store every strip of the tile. All threads call sum(acc, strip, whether there is such a strip).
template <typename Sum>
__device__ __forceinline__ void each_strip([[maybe_unused]] void* staging, const Results& to, Pixel corner,
                                           const Sum& sum) {
#if !CHANNELS_LAST
  accumulator* const s_y = static_cast<accumulator*>(staging);
  const Sheet sheet = sheet_of(to, corner);
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
    if (m_item) put_strip(s_y, acc, to, sheet, at, corner);
#endif
  }
#if !CHANNELS_LAST
  __syncthreads();
  store_sheet(s_y, to, sheet);
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
