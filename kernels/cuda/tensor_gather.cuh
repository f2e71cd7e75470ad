// The loop that tensor_forward and tensor_grad_input share: for each filter tap a matrix product over the channels,
//
//   acc[m, n] = Σ_c-block Σ_tap Σ_c x[pixel m moved by the tap, c] · w[tap, c, n]
//
// where x stands for what is gathered from (x, or gy), c for the channels that are summed over and n for the columns.
// `Walk` describes the pixels, the taps and their shifts; forward is one walk, and so is each phase of grad_input.
//
// Without HALO every step, one tap of one block of BK channels, copies the BM pixels that the tap meets. Any walk will
// do, and the rows of a block are BM consecutive pixels of the flat (n, z, p, q).
//
// With HALO (stride 1) the rows of a block are a window of window_h × window_w pixels, of BM / (window_h · window_w)
// consecutive images. What all its taps meet is the window with a margin (the halo), copied *once* for a block of
// channels: 18 × 10 pixels for 16 × 8 and a 3 × 3 filter, instead of 9 · 128. A tap is then nothing but a shift of the
// addresses that ldmatrix is given. The eight rows of a matrix are neighbours in the window and so in the halo: no bank
// conflicts. There are two halos, and the copy of the next may start when all taps of the one before have been
// multiplied, STAGES − 1 steps ahead: so STAGES is at most one more than a plane of the filter has taps.
//
//   shared memory  →  source tiles (STAGES of BM rows, or two halos), STAGES tiles of w, a `FirstTap` for each row of
//                     source
//   masks          →  rows beyond the last pixel, taps outside the image, channels and columns beyond the last: zeros
#include "tensor_tile.cuh"

struct Walk {
  int N, pixels[3];  // of the result, or of its phase
  int taps[3];
  int unit[3], base[3], step[3];  // tap m of pixel j falls at j·unit + base + m·step
  int size[3];  // of the source
};

struct Operand {
  const TYPE* p;  // of the group, for w at the walk's first tap
  offset_t row, channel, axis[3];  // strides: of images or filters; of channels; of pixels, in w of taps
};

// A row's pixel: image n and coordinates in the walk.
struct Place {
  int n;
  Pixel at;
  bool m_pixel;  // there is such a pixel
};

// The source pixel that the first tap of a row meets: its offset and its coordinates.
struct FirstTap {
  offset_t offset;
  Pixel at;
};
constexpr int NOWHERE = -(1 << 30);

// A step of the loop: a tap, and the first of BK channels. Taps within a window are innermost.
struct Step {
  int t, r, s, c;
  int window;  // how many windows (t, c) came before

  __device__ __forceinline__ void advance(const int (&taps)[3], int channels) {
    if (++s < taps[2]) return;
    s = 0;
    if (++r < taps[1]) return;
    r = 0, ++window;
    if ((c += BK) < channels) return;
    c = 0, ++t;
  }
};

// ---- rows and pixels ------------------------------------------------------------------------------------------------

#if HALO
__device__ __forceinline__ int images_together(const Conv& a) { return BM / (a.window_h * a.window_w); }

__device__ __forceinline__ int row_blocks_of(const Walk& walk, const Conv& a) {
  return ceil_div(walk.N * walk.pixels[0], images_together(a)) * ceil_div(walk.pixels[1], a.window_h) *
         ceil_div(walk.pixels[2], a.window_w);
}

// The first pixel of a block's window; its image is counted over n and depth together.
__device__ __forceinline__ Pixel window_of_block(int row_block, const Walk& walk, const Conv& a) {
  const Pixel at = split_pixel(row_block, ceil_div(walk.pixels[1], a.window_h), ceil_div(walk.pixels[2], a.window_w));
  return {at.d * images_together(a), at.h * a.window_h, at.w * a.window_w};
}

__device__ __forceinline__ Place place_of_row(int row_block, int row, const Walk& walk, const Conv& a) {
  const Pixel first = window_of_block(row_block, walk, a), in = split_pixel(row, a.window_h, a.window_w);
  const int image = first.d + in.d;
  const Pixel at = {image % walk.pixels[0], first.h + in.h, first.w + in.w};
  return {image / walk.pixels[0], at,
          image < walk.N * walk.pixels[0] && at.h < walk.pixels[1] && at.w < walk.pixels[2]};
}

// The halo of a window: its size, and the shift from a pixel to its first tap.
struct Halo {
  int height, width, back_h, back_w;

  __device__ __forceinline__ int rows(const Conv& a) const { return images_together(a) * height * width; }
  __device__ __forceinline__ int row(Pixel in) const { return (in.d * height + in.h) * width + in.w; }
};

__device__ __forceinline__ Halo halo_of(const Walk& walk, const Conv& a) {
  const int reach_h = (walk.taps[1] - 1) * walk.step[1], reach_w = (walk.taps[2] - 1) * walk.step[2];
  return {a.window_h + abs(reach_h), a.window_w + abs(reach_w), min(reach_h, 0), min(reach_w, 0)};
}
#else
__device__ __forceinline__ Place place_of_row(int row_block, int row, const Walk& walk, const Conv&) {
  const int image = walk.pixels[0] * walk.pixels[1] * walk.pixels[2];
  const int pixel = row_block * BM + row;
  return {pixel / image, split_pixel(pixel % image, walk.pixels[1], walk.pixels[2]), pixel < walk.N * image};
}
#endif

// ---- the loop -------------------------------------------------------------------------------------------------------

// RIGHT: how the terms lie in w's tiles, whose rows are filters: ALONG if these are the columns, DOWN if they are
// summed.
template <Terms RIGHT>
__device__ __forceinline__ void gather_product(Sums& acc, unsigned char* shared, const Operand& x, const Operand& w,
                                               const Walk& walk, int row_block, [[maybe_unused]] int column,
                                               [[maybe_unused]] int columns, int channels, const Conv& a) {
  constexpr int RIGHT_WIDTH = RIGHT == ALONG ? BK : BN, RIGHT_ROWS = RIGHT == ALONG ? BN : BK;
  constexpr int ROW = SharedTile<ALONG, BK>::PITCH, RIGHT_BYTES = RIGHT_ROWS * SharedTile<RIGHT, RIGHT_WIDTH>::PITCH;
#if HALO
  const Halo halo = halo_of(walk, a);
  const int rows = halo.rows(a);
  constexpr int SOURCES = 2;
#else
  constexpr int rows = BM, SOURCES = STAGES;
#endif
  unsigned char* const right_tiles = shared + SOURCES * rows * ROW;
  FirstTap* const first_taps = reinterpret_cast<FirstTap*>(right_tiles + STAGES * RIGHT_BYTES);

  // ---- the first tap of every row of source; found once, and looked up in every step
  for (int row = threadIdx.x; row < rows; row += THREADS) {
#if HALO
    const Pixel first = window_of_block(row_block, walk, a), in = split_pixel(row, halo.height, halo.width);
    const int image = first.d + in.d, n = image / walk.pixels[0];
    const bool m_pixel = image < walk.N * walk.pixels[0];
    const Pixel at = {image % walk.pixels[0] + walk.base[0], first.h + in.h + walk.base[1] + halo.back_h,
                      first.w + in.w + walk.base[2] + halo.back_w};
#else
    const auto [n, pixel, m_pixel] = place_of_row(row_block, row, walk, a);
    const Pixel at = {pixel.d * walk.unit[0] + walk.base[0], pixel.h * walk.unit[1] + walk.base[1],
                      pixel.w * walk.unit[2] + walk.base[2]};
#endif
    first_taps[row] = {n * x.row + at.d * x.axis[0] + at.h * x.axis[1] + at.w * x.axis[2],
                       {m_pixel ? at.d : NOWHERE, at.h, at.w}};
  }
#if PACK > 1
  for (int chunk = threadIdx.x; chunk < STAGES * RIGHT_BYTES / 16; chunk += THREADS)
    reinterpret_cast<Vector<TYPE>*>(right_tiles)[chunk] = {};
#endif
  int left_row[MI];  // of the source, whose address this lane gives to ldmatrix
#pragma unroll
  for (int i = 0; i < MI; ++i) {
    left_row[i] = warp_row() + 16 * i + lane() % 16;
#if HALO
    left_row[i] = halo.row(split_pixel(left_row[i], a.window_h, a.window_w));
#endif
  }
  __syncthreads();

  // ---- what a step copies
  const auto start_copying = [&](int i, const Step& step) {
#if HALO
    const Pixel shift = {step.t * walk.step[0], 0, 0};
    unsigned char* const source = shared + step.window % SOURCES * rows * ROW;
    if (step.r == 0 && step.s == 0)
#else
    const Pixel shift = {step.t * walk.step[0], step.r * walk.step[1], step.s * walk.step[2]};
    unsigned char* const source = shared + i % SOURCES * rows * ROW;
#endif
    {
      const offset_t o_shift = shift.d * x.axis[0] + shift.h * x.axis[1] + shift.w * x.axis[2];
      stage<ALONG, BK, A_VECTOR>(source, rows, x.p + step.c * x.channel, channels - step.c, x.channel,
                                 [&](int row) -> offset_t {
                                   const FirstTap first = first_taps[row];
                                   const Pixel at = {first.at.d + shift.d, first.at.h + shift.h, first.at.w + shift.w};
                                   return inside(at, walk.size) ? first.offset + o_shift : -1;
                                 });
    }
    const TYPE* p_tap = w.p + (step.t * w.axis[0] + step.r * w.axis[1] + step.s * w.axis[2]);
    unsigned char* const right = right_tiles + i % STAGES * RIGHT_BYTES;
#if PACK > 1
    stage_pack<RIGHT, RIGHT_WIDTH, B_VECTOR>(right, p_tap, w.row, w.channel);
#else
    const int filter = RIGHT == ALONG ? column : step.c, filters = RIGHT == ALONG ? columns : channels;
    const int channel = RIGHT == ALONG ? step.c : column, channels_of_w = RIGHT == ALONG ? channels : columns;
    stage<RIGHT, RIGHT_WIDTH, B_VECTOR>(
        right, RIGHT_ROWS, p_tap + channel * w.channel, channels_of_w - channel, w.channel,
        [&](int row) -> offset_t { return filter + row < filters ? (filter + row) * w.row : -1; });
#endif
  };

  // ---- the loop: STAGES − 1 steps are being copied while one is multiplied
  const int steps = walk.taps[0] * walk.taps[1] * walk.taps[2] * ceil_div(channels, BK);
  Step copied = {0, 0, 0, 0, 0}, step = copied;
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; ++i) {
    if (i < steps) start_copying(i, copied), copied.advance(walk.taps, channels);
    close_group();
  }
  for (int i = 0; i < steps; ++i, step.advance(walk.taps, channels)) {
    wait_for_groups<STAGES - 2>();
    __syncthreads();  // step i has arrived, and step i − 1, whose place the next one takes, has been multiplied
    if (i + STAGES - 1 < steps) start_copying(i + STAGES - 1, copied), copied.advance(walk.taps, channels);
    close_group();
#if HALO
    const unsigned char* const source = shared + step.window % SOURCES * rows * ROW;
    const int shift = (step.r * walk.step[1] - halo.back_h) * halo.width + step.s * walk.step[2] - halo.back_w;
#else
    const unsigned char* const source = shared + i % SOURCES * rows * ROW;
    constexpr int shift = 0;
#endif
#pragma unroll
    for (int k = 0; k < K_STEPS; ++k) {
      unsigned left[MI][4];
#pragma unroll
      for (int m = 0; m < MI; ++m) left_along(left[m], source, left_row[m] + shift, k);
      multiply_piece<RIGHT>(acc, left, right_tiles + i % STAGES * RIGHT_BYTES, k, [k](int c) {
        constexpr int PIECE = 2 * UNIT;  // of channels in forward, of filters in grad_input
        return RIGHT == ALONG ? share_group<16, PIECE>(c, PIECE * k) : share_group<PIECE, 16>(PIECE * k, c);
      });
    }
  }
  wait_for_groups<0>();
  __syncthreads();  // shared memory is free for another use
}
