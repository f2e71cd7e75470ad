// Copies of one or two tensors whose channels then lie side by side: copy[n, p, c] = x[n, c, p], p counting pixels.
//
// Memory-bound: everything is read once and written once. A weight's filters are images here, and its taps are pixels;
// in a result that was computed channels last, and is copied to where it is to lie, pixels are channels and channels
// pixels. Channels come in groups of UNIT, 16 bytes of them, or less where they are no whole number of those. A block
// reads a tile along its pixels, keeps it so in shared memory, and writes it along the channels, a group a thread; eight
// threads write eight groups of a pixel. There each group begins an odd number of groups after the one before, so that
// the eight read from different banks.
//
//   block   →  BC channels × BP pixels of an image, channels fastest; first those of a, then those of b
//   block   →  where FLAT, `many` groups × all pixels, which lie together in memory as one run of vectors: an image
//              whose rows of pixels begin anywhere, as filters of 3 × 3 taps do
//   masks   →  pixels and groups beyond the last
#include "common.cuh"

struct Source {
  long long n, c, d, h, w;  // strides
  int groups, groups_of_image;
  int pixels, height, width;  // pixels of an image; sizes of its last two axes
  int many;  // FLAT: groups of a block
};
struct Pack {
  Source of[2];
  long long blocks_of_a;
};
static_assert(sizeof(Source) == 5 * 8 + 6 * 4 && sizeof(Pack) == 2 * sizeof(Source) + 8, "the launcher fills them in");

constexpr int THREADS = 256, UNIT = Vector<TYPE>::SIZE;
constexpr int BC = 8 * UNIT, BP = 256 / sizeof(TYPE);
// What is read side by side: the pixels of a channel, which lie side by side; those that do not; the channels of one.
enum How { NONE, FLAT, ROWS, PIXELS, CHANNELS };

// GROUP rows of pixels, turned into a group of channels: element `pixel` of each.
template <int GROUP>
__device__ __forceinline__ Run<GROUP, TYPE> channels_of(const TYPE* s_row, int row_pitch) {
  Run<GROUP, TYPE> channels;
#pragma unroll
  for (int c = 0; c < GROUP; ++c) channels.at[c] = s_row[c * row_pitch];
  return channels;
}

template <int RUN>
__device__ __forceinline__ void move(TYPE* to, const TYPE* from) {
  *reinterpret_cast<Run<RUN, TYPE>*>(to) = *reinterpret_cast<const Run<RUN, TYPE>*>(from);
}

template <int GROUP>
__device__ __forceinline__ void store(TYPE* p_copy, const Source& x, int n, int group, int pixel, Run<GROUP, TYPE> b) {
  const long long at = (wide(n) * x.pixels + pixel) * x.groups_of_image + group;
  reinterpret_cast<Run<GROUP, TYPE>*>(p_copy)[at] = b;
}

// TOGETHER: groups that a row of threads writes side by side.
template <int RUN, int TOGETHER>
__device__ __forceinline__ void copy_flat(int block, const TYPE* p_x, TYPE* p_copy, const Source& x, TYPE* s_x) {
  const int first = block * x.many, groups = min(x.many, x.groups - first);
  const int length = x.pixels * UNIT, pitch = (x.pixels | 1) * UNIT;  // of a group, and from one to the next
  const TYPE* const p = p_x + wide(first) * length;
#pragma unroll 4
  for (int i = threadIdx.x * RUN; i < groups * length; i += THREADS * RUN)
    move<RUN>(s_x + i + i / length * (pitch - length), p + i);
  __syncthreads();
  constexpr int ROWS_OF_WARP = 32 / TOGETHER;  // a warp's are of the same groups, so that their banks differ
  const int rows = ceil_div(x.pixels, ROWS_OF_WARP) * ROWS_OF_WARP;
#pragma unroll 2
  for (int i = threadIdx.x; i < ceil_div(groups, TOGETHER) * TOGETHER * rows; i += THREADS) {
    const int row = i / TOGETHER, pixel = row % rows, group = row / rows * TOGETHER + i % TOGETHER;
    if (group >= groups || pixel >= x.pixels) continue;
    const int n = (first + group) / x.groups_of_image, of_image = (first + group) % x.groups_of_image;
    store(p_copy, x, n, of_image, pixel, channels_of<UNIT>(s_x + group * pitch + pixel, x.pixels));
  }
}

__device__ __forceinline__ long long offset_of_pixel(int pixel, const Source& x) {
  const Pixel at = split_pixel(pixel, x.height, x.width);
  return at.d * x.d + at.h * x.h + at.w * x.w;
}

template <int RUN, int GROUP, int HOW>
__device__ __forceinline__ void copy_tile(int block, const TYPE* p_x, TYPE* p_copy, const Source& x, TYPE* s_x) {
  constexpr int BG = BC / GROUP, PITCH = (BP + 1) * GROUP;  // groups of a tile; from one to the next, in elements
  const int group_blocks = ceil_div(x.groups_of_image, BG), pixel_blocks = ceil_div(x.pixels, BP);
  const int n = block / group_blocks / pixel_blocks;
  const int first_group = block % group_blocks * BG, first_pixel = block / group_blocks % pixel_blocks * BP;
  const int groups = min(BG, x.groups_of_image - first_group), pixels = min(BP, x.pixels - first_pixel);
  const TYPE* const p = p_x + n * x.n + wide(first_group) * GROUP * x.c;
#pragma unroll(RUN > 1 ? BC * BP / RUN / THREADS : 8)
  for (int i = threadIdx.x * RUN; i < BC * BP; i += THREADS * RUN) {
    const int c = HOW == CHANNELS ? i % BC : i / BP, pixel = HOW == CHANNELS ? i / BC : i % BP;
    if (c >= groups * GROUP || pixel >= pixels) continue;
    if (HOW == CHANNELS)
      move<RUN>(s_x + i, p + offset_of_pixel(first_pixel + pixel, x) + c);
    else
      move<RUN>(s_x + c / GROUP * PITCH + c % GROUP * BP + pixel,
                p + c * x.c + (HOW == ROWS ? first_pixel + pixel : offset_of_pixel(first_pixel + pixel, x)));
  }
  __syncthreads();
#pragma unroll
  for (int i = threadIdx.x; i < BG * BP; i += THREADS) {
    const int group = i % BG, pixel = i / BG;
    if (group >= groups || pixel >= pixels) continue;
    const Run<GROUP, TYPE> b = HOW == CHANNELS ? reinterpret_cast<const Run<GROUP, TYPE>*>(s_x)[i]
                                               : channels_of<GROUP>(s_x + group * PITCH + pixel, BP);
    store(p_copy, x, n, first_group + group, first_pixel + pixel, b);
  }
}

template <int HOW, int RUN, int GROUP, int TOGETHER>
__device__ __forceinline__ void copy(int block, const TYPE* p_x, TYPE* p_copy, const Source& x, TYPE* s_x) {
  if constexpr (HOW == FLAT) copy_flat<RUN, TOGETHER>(block, p_x, p_copy, x, s_x);
  if constexpr (HOW > FLAT) copy_tile<RUN, GROUP, HOW>(block, p_x, p_copy, x, s_x);
}

// What is not copied is null, with its copy.
extern "C" __global__ void __launch_bounds__(THREADS)
pack(const TYPE* __restrict__ p_a, const TYPE* __restrict__ p_b, TYPE* __restrict__ p_copy_a,
     TYPE* __restrict__ p_copy_b, const Pack x) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  TYPE* const s_x = reinterpret_cast<TYPE*>(shared_memory);
  if (blockIdx.x < x.blocks_of_a)
    copy<A_HOW, A_RUN, A_GROUP, A_TOGETHER>(blockIdx.x, p_a, p_copy_a, x.of[0], s_x);
  else
    copy<B_HOW, B_RUN, B_GROUP, B_TOGETHER>(blockIdx.x - x.blocks_of_a, p_b, p_copy_b, x.of[1], s_x);
}
