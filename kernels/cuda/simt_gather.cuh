// The loop that simt_forward and simt_grad_input share: for each filter tap a matrix product over the channels.
//
//   acc[m, n] += Σ_{t,r,s} Σ_c x[pixel m moved by (t,r,s), c] · w[t,r,s,c,n]
//
// The matrix x[pixel(m, tap), c] (im2col) is never stored: each step gathers a tile of it, BM pixels by BK channels,
// and multiplies it with a tile of w. A thread fetches for one pixel, always the same, and a run of channels; and for
// one column, always the same, and a run of channels. So it keeps one set of coordinates, and a tap outside the image
// is one test.
//
//   masks  →  pixels beyond the last and taps outside the image (rows of zeros), channels ≥ C, columns beyond the last
#include "simt.cuh"

// What a thread needs to fetch its row of a step's tile: little, since it is kept in registers beside the sums.
struct Gathered {
  offset_t first;  // of the pixel's image and the group's first channel
  Pixel at;  // where tap (0, 0, 0) falls; far outside if there is no such pixel
};
constexpr int NOWHERE = -(1 << 30);

// What a thread needs to fetch its column.
struct Filters {
  offset_t first;  // of the column at tap (0, 0, 0); negative if there is no such column
};

// A step of the loop: a tap, and the first of BK channels.
struct Step {
  int t, r, s, c;

  __device__ __forceinline__ void advance(const int (&taps)[3], int channels) {
    c += BK;
    if (c < channels) return;
    c = 0;
    if (++s < taps[2]) return;
    s = 0;
    if (++r < taps[1]) return;
    r = 0;
    ++t;
  }
};

// p_x, x_strides, size: the tensor to gather from; w_channel: the stride from one channel of w to the next.
__device__ __forceinline__ void gather_product(accumulator (&acc)[TM][TN], const Conv& a, const TYPE* __restrict__ p_x,
                                               const long long (&x_strides)[5], const int (&size)[3],
                                               const TYPE* __restrict__ p_w, long long w_channel, const int (&taps)[3],
                                               int channels, const Gathered& x, const Filters& w) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
  const Tile place = place_in_tile(threadIdx.x);
  const int row = threadIdx.x % BM, row_first = threadIdx.x / BM * ROW_RUN;
  const int column = threadIdx.x % BN, column_first = threadIdx.x / BN * COLUMN_RUN;

  alignas(16) TYPE b_row[ROW_RUN], b_column[COLUMN_RUN];
  const auto fetch = [&](Step step) {
    const Pixel at = {x.at.d + step.t * a.step[0], x.at.h + step.r * a.step[1], x.at.w + step.s * a.step[2]};
    const int c = step.c + row_first;
    const bool m_row = c < channels && inside(at, size);
    const offset_t o_row = m_row ? x.first + offset_of<offset_t>(0, at, x_strides) + c * offset_t(x_strides[1]) : 0;
    load_run<ROW_VECTOR>(b_row, p_x + o_row, x_strides[1], m_row ? channels - c : 0);

    const int d = step.c + column_first;
    const bool m_column = w.first >= 0 && d < channels;
    const offset_t o_column = m_column ? w.first + step.t * offset_t(a.w_tap[0]) + step.r * offset_t(a.w_tap[1]) +
                                             step.s * offset_t(a.w_tap[2]) + d * offset_t(w_channel)
                                       : 0;
    load_run<COLUMN_VECTOR>(b_column, p_w + o_column, w_channel, m_column ? channels - d : 0);
  };

  Step step = {0, 0, 0, 0};
  int left = taps[0] * taps[1] * taps[2] * ceil_div(channels, BK);  // steps
  if (left > 0) fetch(step);
  for (; left > 0; --left) {
    Stage& stage = shared.stage[left & 1];
#pragma unroll
    for (int k = 0; k < ROW_RUN; ++k) stage.rows[row_first + k][row] = widen(b_row[k]);
#pragma unroll
    for (int k = 0; k < COLUMN_RUN; ++k) stage.columns[column_first + k][column] = widen(b_column[k]);
    __syncthreads();
    if (left > 1) {
      step.advance(taps, channels);
      fetch(step);
    }
    multiply(acc, stage, place);
  }
}
