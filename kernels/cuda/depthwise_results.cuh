// How depthwise forward and grad_input store their results: strips from registers, with channels last; in planes through
// shared memory, so that whole runs of neighbours leave together (`Sheet`).
#include "depthwise.cuh"

constexpr int PHASES = BACKWARD ? STRIDE_H : 1;
static_assert(TH % PHASES == 0 && (!BACKWARD || STRIP % STRIDE_W == 0), "every phase has as many rows, and columns");

// Where a strip is: its chunk, its row of the tile and its number in that row. Lanes are neighbours in chunks with
// channels last, and in rows (of one phase); in planes they go on to the next plane.
struct Strip {
  int chunk, row, number;
};

__device__ __forceinline__ Strip strip_of(int item) {
  constexpr int phase_rows = TH / PHASES;
  if (CHANNELS_LAST) {
    const int row = item / CHUNKS % TH;
    return {item % CHUNKS, row % phase_rows * PHASES + row / phase_rows, item / CHUNKS / TH % STRIPS};
  }
  const int row = item % phase_rows, phase = item / phase_rows / CHUNKS / STRIPS;
  return {item / phase_rows % CHUNKS, row * PHASES + phase, item / phase_rows / CHUNKS % STRIPS};
}

typedef accumulator Sums[STRIP][V];

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
// The runs of the block's results, and of the residual beneath them, on their way through shared memory. Neighbouring
// lanes have neighbouring rows. So rows of whole 16 bytes are made an odd number of them long, and others, or where a
// strip does not begin at a multiple of 16 bytes, are written in an order of which each lane has its own (`turn`).
struct Sheet {
  Runs runs;
  int rows, pad, slot;  // rows of a run; numbers between two of them; from one run to the next
  float rows_a_number;  // 1 / width
  int turn;
  bool vectors;  // strips consist of aligned vectors, all or nothing of each inside

  __device__ __forceinline__ int place(int plane, int row) const {
    const Runs::Spot at = runs.spot(plane, row);
    return at.run * slot + runs.before(at.run) + at.row * (runs.width + pad);
  }
  // Where the vector is that has element t of a run, `at` numbers after where the run's first is.
  __device__ __forceinline__ int place_of(int run, int at, int t) const {
    const int row = pad ? min(static_cast<int>((t + 0.5f) * rows_a_number), rows - 1) : 0;
    return run * slot + at + row * pad;
  }
};

__device__ constexpr int odd(int numbers) { return numbers / LANE % 2 ? numbers : numbers + LANE; }

__device__ __forceinline__ Sheet sheet_of(const Results& to, Pixel corner) {
  const Pixel low = {0, max(corner.h, 0), max(corner.w, 0)};
  const Pixel high = {0, min(corner.h + TH, to.size[1]), min(corner.w + TW, to.size[2])};
  const Runs runs = runs_of(to.first, to.channel_stride, min(to.channels, CHUNKS), to.size, low, high);
  const int rows = runs.merged ? runs.rows * min(to.channels, CHUNKS) : runs.of_plane == 1 ? runs.rows : 1;
  const bool aligned = runs.first % LANE == 0 && to.channel_stride % LANE == 0 && runs.width % LANE == 0;
  const int pad = aligned && rows > 1 ? odd(runs.width) - runs.width : 0;
  int slot = rows > 1 ? runs.slot + rows * pad : odd(runs.slot);
  const int on = (TH * (runs.width + pad) - slot) % 32 & -LANE & 31;  // as though the next plane went on with the rows
  if (rows > 1 && slot + on <= TH * (TW + 2 * SIZE)) slot += on;
  const unsigned words = (rows > 1 ? runs.width + pad : slot) * PHASES * (sizeof(accumulator) / 4);
  const int banks_apart = min(words & -words, 32u);  // rows of neighbouring lanes, as the banks see it
  return {runs,
          rows,
          pad,
          slot,
          1.0f / runs.width,
          static_cast<int>(threadIdx.x % 32) * banks_apart / 32 % STRIP,
          aligned && corner.w >= 0};
}

// Put a strip into shared memory, from where `store_sheet` stores it.
__device__ __forceinline__ void put_strip(accumulator* s_y, const Sums& acc, const Results& to, const Sheet& sheet,
                                          Strip at, Pixel corner) {
  const int h = corner.h + at.row, w = corner.w + at.number * STRIP, left = max(corner.w, 0);
  if (unsigned(h) >= unsigned(to.size[1]) || at.chunk >= to.channels) return;
  const accumulator bias = BIAS ? widen(to.p_bias[at.chunk * to.bias_stride]) : accumulator(0);
  const int right = min(corner.w + TW, to.size[2]);
  accumulator* const s = s_y + sheet.place(at.chunk, h - max(corner.h, 0)) - left + w;
  alignas(16) accumulator b_z[STRIP];
#pragma unroll
  for (int e = 0; e < STRIP; ++e) b_z[e] = acc[e][0] + bias;
  if (sheet.vectors) {
#pragma unroll
    for (int e = 0; e < STRIP; e += LANE)
      if (w + e < right) put_16(s + e, *reinterpret_cast<const uint4*>(b_z + e));
    return;
  }
#pragma unroll
  for (int bit = 1; bit < STRIP; bit *= 2)
#pragma unroll
    for (int e = 0; e < STRIP; ++e)
      if (!(e & bit)) {
        const accumulator one = b_z[e], other = b_z[e + bit];
        b_z[e] = sheet.turn & bit ? other : one, b_z[e + bit] = sheet.turn & bit ? one : other;
      }
#pragma unroll
  for (int i = 0; i < STRIP; ++i) {
    const int e = i ^ sheet.turn;
    if (w + e >= left && w + e < right) s[e] = b_z[i];
  }
}

__device__ __forceinline__ void store_sheet(const accumulator* s_y, const Results& to, const Sheet& sheet) {
  const Runs& runs = sheet.runs;
  each_vector(runs, [&](int run, int at, long long o, int begin, int end) {
    alignas(16) accumulator b_z[SIZE];
    const int before = runs.before(run);
    if constexpr (SIZE == 2 * LANE) {  // of eight lanes, four begin with the second half: all banks at once
      const bool second = threadIdx.x & 4;
      const int first = second ? LANE : 0;
      const accumulator* const s = s_y + sheet.place_of(run, at + first, at + first - before);
      const accumulator* const s_other = s_y + sheet.place_of(run, at + LANE - first, at + LANE - first - before);
      const auto b_first = *reinterpret_cast<const Vector<accumulator>*>(s);
      const auto b_other = *reinterpret_cast<const Vector<accumulator>*>(s_other);
#pragma unroll
      for (int e = 0; e < LANE; ++e) {
        b_z[e] = second ? b_other.at[e] : b_first.at[e];
        b_z[LANE + e] = second ? b_first.at[e] : b_other.at[e];
      }
    } else {
      *reinterpret_cast<Vector<accumulator>*>(b_z) =
          *reinterpret_cast<const Vector<accumulator>*>(s_y + sheet.place_of(run, at, at - before));
    }
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
      const int plane = runs.merged ? 0 : run / runs.of_plane;
      const int row = runs.merged || runs.of_plane == 1 ? 0 : run % runs.of_plane;
#pragma unroll
      for (int e = 0; e < SIZE; ++e) {
        if (e < begin || e >= end) continue;
        const int t = at + e - before;  // of the run
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
