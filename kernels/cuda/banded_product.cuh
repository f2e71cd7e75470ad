// The product that banded_forward and banded_grad_input share, see banded.cuh: a warp computes a window of TH × TW
// outputs of one channel, from the window of input under it in shared memory and the filter between zeros.
//
//   warp            →  MT × NB products of 16 rows × 8 columns, that stay in registers until the end
//   shared memory   →  for each warp its window of input, HELD rows, a PITCH apart that is an odd multiple of 16 bytes,
//                      so that 8 rows lie in different banks; the filter, for all
//   masks           →  zeros outside the image; at the store outputs beyond the last
#include "banded.cuh"

constexpr int MT = TH / 16, NB = TW / 8;
constexpr int PIECES = ceil_div(LEFT + TW + FILTER_W - 1, PIECE), PITCH = 16 * (2 * PIECES + 1);
constexpr int TURNS = ceil_div(FILTER_H, 8);  // filter rows that are taken together
constexpr int LOADS = ceil_div(2 * MT + TURNS - 1, 2), HELD = 16 * LOADS + 7;  // read, not all of it used
constexpr int ROWS = TH + FILTER_H - 1;
constexpr int SLAB_PITCH = TW + 8;  // floats; the 8 keep a warp's rows in different banks
constexpr int SLAB = 16 * SLAB_PITCH * 4, WINDOW = HELD * PITCH > SLAB ? HELD * PITCH : SLAB;  // bytes

// The fragments that hold a tap, by delta; the place of the first tap in a line, and the length of a line.
constexpr int FIRST = LEFT / UNIT, FRAGMENTS = (FILTER_W + 6 + LEFT) / UNIT - FIRST + 1;
constexpr int ZEROS = 7 + LEFT % UNIT, LINE = ceil_div(UNIT * FRAGMENTS + 8, 8) * 8;

typedef float Sums[MT][NB][4];

// ---- the filter -----------------------------------------------------------------------------------------------------

// Fill the lines [FILTER_H][EACH][LINE] of a filter; copy 1 lies one place further to the left. FLIP: taps backwards.
template <bool FLIP>
__device__ __forceinline__ void stage_filter(TYPE* lines, const TYPE* p, offset_t row, offset_t column) {
  for (int i = threadIdx.x; i < FILTER_H * EACH * LINE; i += THREADS) {
    const int r = i / (EACH * LINE), s = i % LINE + i / LINE % EACH - ZEROS;
    const bool m_tap = unsigned(s) < unsigned(FILTER_W);
    lines[i] = m_tap ? p[(FLIP ? FILTER_H - 1 - r : r) * row + (FLIP ? FILTER_W - 1 - s : s) * column] : TYPE{};
  }
}

// 0, or NaN if some tap is not finite.
__device__ __forceinline__ float poison_of(const TYPE* lines) {
  float sum = 0;
  for (int i = lane(); i < FILTER_H * LINE; i += 32) sum += 0 * widen(lines[i / LINE * EACH * LINE + i % LINE]);
#pragma unroll
  for (int bit = 1; bit < 32; bit *= 2) sum += exchange(sum, bit);
  return sum;
}

// ---- the product ----------------------------------------------------------------------------------------------------

// acc += the window, whose pieces outside the image are left out, times the filter.
__device__ __forceinline__ void multiply_band(Sums& acc, const unsigned char* window, const TYPE* lines,
                                              Pieces pieces) {
  const int place = EACH * (lane() % 4) + 7 - lane() / 4, copy = EACH == 2 ? place % 2 : 0;
  const TYPE* const p_lines = lines + copy * LINE + place - copy;
  const unsigned char* const p_window = window + lane() % 16 * PITCH + lane() / 16 * 16;
#pragma unroll 1
  for (int r = 0; r < min(8, FILTER_H); ++r) {
    unsigned w[TURNS][FRAGMENTS];
#pragma unroll
    for (int i = 0; i < TURNS; ++i) {
      const TYPE* line = p_lines + min(8 * i + r, FILTER_H - 1) * (EACH * LINE);
#pragma unroll
      for (int f = 0; f < FRAGMENTS; ++f) w[i][f] = *reinterpret_cast<const unsigned*>(line + UNIT * f);
    }
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
      if (piece < pieces.begin || piece >= pieces.end) continue;
      unsigned x[2 * LOADS][2];  // halves
#pragma unroll
      for (int load = 0; load < LOADS; ++load) {
        unsigned both[4];
        ldmatrix(both, p_window + (r + 16 * load) * PITCH + 32 * piece);
        x[2 * load][0] = both[0], x[2 * load][1] = both[2];
        x[2 * load + 1][0] = both[1], x[2 * load + 1][1] = both[3];
      }
#pragma unroll
      for (int i = 0; i < TURNS; ++i) {
        if (8 * i + 7 >= FILTER_H && 8 * i + r >= FILTER_H) break;
#pragma unroll
        for (int n = 0; n < NB; ++n) {
          const int f = 2 * piece - n * 8 / UNIT - FIRST;
          if (f < -1 || f >= FRAGMENTS) continue;  // outside the band
          const unsigned b0 = f < 0 ? 0 : w[i][f < 0 ? 0 : f];
          const unsigned b1 = f + 1 < FRAGMENTS ? w[i][f + 1 < FRAGMENTS ? f + 1 : 0] : 0;
#pragma unroll
          for (int m = 0; m < MT; ++m) {
            const unsigned a[4] = {x[2 * m + i][0], x[2 * m + i + 1][0], x[2 * m + i][1], x[2 * m + i + 1][1]};
            multiply(acc[m][n], a, b0, b1, TYPE{});
          }
        }
      }
    }
  }
}

// ---- from sums to memory --------------------------------------------------------------------------------------------

// Store a window's sums, output (h, w) of it at to + h · row + w · column, if h < height and w < width. They leave
// registers 16 rows at a time, through the warp's slab of shared memory. finish(values, h, w) may change the RUN
// neighbours from (h, w) on before they are rounded.
template <int RUN, typename Finish>
__device__ __forceinline__ void store(const Sums& acc, float* slab, TYPE* to, int height, int width, offset_t row,
                                      offset_t column, Finish finish) {
  constexpr int ACROSS = TW / RUN;
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int m = 0; m < MT; ++m) {
    __syncwarp();  // the slab is free
#pragma unroll
    for (int n = 0; n < NB; ++n) {
      float* at = slab + g * SLAB_PITCH + 8 * n + 2 * t;
      *reinterpret_cast<Run<2>*>(at) = {acc[m][n][0], acc[m][n][1]};
      *reinterpret_cast<Run<2>*>(at + 8 * SLAB_PITCH) = {acc[m][n][2], acc[m][n][3]};
    }
    __syncwarp();  // the slab has been written
#pragma unroll 1
    for (int item = lane(); item < 16 * ACROSS; item += 32) {
      const int h = 16 * m + item / ACROSS, w = item % ACROSS * RUN;
      if (h >= height || w >= width) continue;
      constexpr int STEP = RUN < 4 ? RUN : 4;
      alignas(16) float values[RUN];
#pragma unroll
      for (int e = 0; e < RUN; e += STEP)
        *reinterpret_cast<Run<STEP>*>(values + e) =
            *reinterpret_cast<const Run<STEP>*>(slab + item / ACROSS * SLAB_PITCH + w + e);
      finish(values, h, w);
      Run<RUN, TYPE> out;
#pragma unroll
      for (int e = 0; e < RUN; ++e) out.at[e] = narrow<TYPE>(values[e]);
      TYPE* at = to + h * row + w * (RUN > 1 ? 1 : column);
      if constexpr (RUN == UNIT) {
        store_16(at, *reinterpret_cast<const uint4*>(&out));
      } else {
        *reinterpret_cast<Run<RUN, TYPE>*>(at) = out;
      }
    }
  }
}
