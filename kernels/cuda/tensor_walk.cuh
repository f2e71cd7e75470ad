// Which pixels the rows of a block are, which taps they meet, and in which order the steps of the loop go.
//
// A walk takes the pixels of a result (in grad_input: of one phase of it) to the pixels of the source that its taps
// meet. Every row of a block's source has a `Row` in shared memory, found once: the offset of its first tap, and which
// taps miss the source. With TAP_MASKS these are bits, one for each tap of each axis, so that a step asks with one
// instruction; filters with more taps than a word has bits compare coordinates (TAP_MASKS 0).
#include "tensor_tile.cuh"

struct Walk {
  int N, pixels[3];  // of the result, or of its phase
  int taps[3];
  int unit[3], base[3];  // tap m of pixel j falls at j·unit + base + m·step, where step is that of Conv
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
  const int reach_h = (walk.taps[1] - 1) * a.step[1], reach_w = (walk.taps[2] - 1) * a.step[2];
  return {a.window_h + abs(reach_h), a.window_w + abs(reach_w), min(reach_h, 0), min(reach_w, 0)};
}
#else
__device__ __forceinline__ Place place_of_row(int row_block, int row, const Walk& walk, const Conv&) {
  const int image = walk.pixels[0] * walk.pixels[1] * walk.pixels[2];
  const int pixel = row_block * BM + row;
  return {pixel / image, split_pixel(pixel % image, walk.pixels[1], walk.pixels[2]), pixel < walk.N * image};
}
#endif

// The place of a row of source for its first tap (in a halo the first of all its taps).
#if HALO
__device__ __forceinline__ Place first_tap_of_row(int row_block, int row, const Walk& walk, const Conv& a) {
  const Halo halo = halo_of(walk, a);
  const Pixel first = window_of_block(row_block, walk, a), in = split_pixel(row, halo.height, halo.width);
  const int image = first.d + in.d;
  const Pixel at = {image % walk.pixels[0] + walk.base[0], first.h + in.h + walk.base[1] + halo.back_h,
                    first.w + in.w + walk.base[2] + halo.back_w};
  return {image / walk.pixels[0], at, image < walk.N * walk.pixels[0]};
}
#else
__device__ __forceinline__ Place first_tap_of_row(int row_block, int row, const Walk& walk, const Conv& a) {
  const auto [n, at, m_pixel] = place_of_row(row_block, row, walk, a);
  return {n,
          {at.d * walk.unit[0] + walk.base[0], at.h * walk.unit[1] + walk.base[1], at.w * walk.unit[2] + walk.base[2]},
          m_pixel};
}
#endif

// ---- steps ----------------------------------------------------------------------------------------------------------

// A step of the loop: a tap, and the first of BK channels. Taps within a window are innermost.
struct Step {
  int t, r, s, c;
  int window;  // how many windows (t, c) came before

  // The next step; whether it begins another row of taps.
  __device__ __forceinline__ bool advance(const int (&taps)[3], int channels) {
    if (++s < taps[2]) return false;
    s = 0;
    if (++r < taps[1]) return true;
    r = 0, ++window;
    if ((c += BK) < channels) return true;
    c = 0, ++t;
    return true;
  }
};

// ---- rows of source -------------------------------------------------------------------------------------------------

// Where a row's first tap falls, and which of its taps miss the source.
#if TAP_MASKS
struct Row {
  offset_t offset;
  unsigned missed;  // a bit for each tap of each axis: w lowest, then h, d (of a halo d alone); all, where no pixel is

  // The bits of an axis.
  static __device__ __forceinline__ unsigned missed_along(int at, int step, int taps, int size) {
    unsigned bits = 0;
#pragma unroll 1
    for (int i = 0; i < taps; ++i, at += step) bits |= unsigned(unsigned(at) >= unsigned(size)) << i;
    return bits;
  }
  static __device__ __forceinline__ Row of(offset_t offset, const Place& first, const Walk& walk, const Conv& a) {
    const Pixel at = first.at;
    unsigned missed = missed_along(at.d, a.step[0], walk.taps[0], walk.size[0]);
    bool m_pixel = first.m_pixel;
#if HALO
    m_pixel &= unsigned(at.h) < unsigned(walk.size[1]) && unsigned(at.w) < unsigned(walk.size[2]);
#else
    missed = missed << walk.taps[1] | missed_along(at.h, a.step[1], walk.taps[1], walk.size[1]);
    missed = missed << walk.taps[2] | missed_along(at.w, a.step[2], walk.taps[2], walk.size[2]);
#endif
    return {offset, m_pixel ? missed | NO_TERM : ~0u};
  }
  __device__ __forceinline__ bool meets(unsigned bits, const Step&, const Walk&, const Conv&) const {
    return !(missed & bits);
  }

  static constexpr unsigned NO_TERM = 1u << 31;  // which every row misses
  // The bits of a step's taps; of its tap along w, and of the others.
  static __device__ __forceinline__ unsigned along_w(const Step& step) { return HALO ? 0 : 1u << step.s; }
  static __device__ __forceinline__ unsigned across(const Step& step, const Walk& walk) {
    if (HALO) return 1u << step.t;
    return 1u << (walk.taps[2] + step.r) | 1u << (walk.taps[2] + walk.taps[1] + step.t);
  }
};
#else
struct Row {
  offset_t offset;
  Pixel at;

  static __device__ __forceinline__ Row of(offset_t offset, const Place& first, const Walk&, const Conv&) {
    constexpr int NOWHERE = -(1 << 30);
    return {offset, {first.m_pixel ? first.at.d : NOWHERE, first.at.h, first.at.w}};
  }
  __device__ __forceinline__ bool meets(unsigned, const Step& step, const Walk& walk, const Conv& a) const {
    return inside({at.d + step.t * a.step[0], at.h + step.r * a.step[1], at.w + step.s * a.step[2]}, walk.size);
  }

  static constexpr unsigned NO_TERM = 0, missed = 0;
  static __device__ __forceinline__ unsigned along_w(const Step&) { return 0; }
  static __device__ __forceinline__ unsigned across(const Step&, const Walk&) { return 0; }
};
#endif
