// What all CUDA kernels share: the number types, the one parameter struct, and which tile of the result a block owns.
//
// In CUDA C a kernel is written for one *thread*; the threads of a block share some memory and can wait for each other.
// Each .cu file here holds the kernels of one module; the .cuh files are shared. A module is compiled at run time, with
// its number type, its tile and all other choices given as macros (TYPE, BM, BN, BK, ...): one text serves every
// instance, and only what is used is compiled.
//
//   p_ pointer   o_ offset, counted in elements   b_ block of values in registers   m_ mask   s_ in shared memory
//   CAPITALS compile-time constants and sizes
//
// BM rows × BN columns of the result belong to a block; a step of its loop takes BK terms of the sum.

// ---- numbers --------------------------------------------------------------------------------------------------------

struct float16 {
  unsigned short bits;
};
struct bfloat16 {
  unsigned short bits;
};

__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(float v) { return v; }

__device__ __forceinline__ float widen(bfloat16 v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }

__device__ __forceinline__ float widen(float16 v) {
#ifdef HOST_CHECK
  return host::half_to_float(v.bits);
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(v.bits));
  return result;
#endif
}

// v rounded to the nearest T, ties to even.
template <typename T>
__device__ __forceinline__ T narrow(double v) {
  return v;
}
template <typename T>
__device__ __forceinline__ T narrow(float v) {
  return v;
}
template <>
__device__ __forceinline__ bfloat16 narrow<bfloat16>(float v) {
  const unsigned bits = __float_as_uint(v);
  const unsigned rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return {static_cast<unsigned short>(v == v ? rounded >> 16 : 0x7fc0)};
}
template <>
__device__ __forceinline__ float16 narrow<float16>(float v) {
#ifdef HOST_CHECK
  return {host::float_to_half(v)};
#else
  float16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(v));
  return result;
#endif
}

// The type in which numbers of type T are summed.
template <typename T>
struct Accumulator {
  typedef float type;
};
template <>
struct Accumulator<double> {
  typedef double type;
};
typedef Accumulator<TYPE>::type accumulator;

// 16 bytes of Ts, which move as one.
template <typename T>
struct alignas(16) Vector {
  static constexpr int SIZE = 16 / sizeof(T);
  T at[SIZE];
};

// SIZE neighbours that move as one.
template <int SIZE, typename T = float>
struct alignas(SIZE * sizeof(T)) Run {
  T at[SIZE];
};

// ---- the problem ----------------------------------------------------------------------------------------------------

// Everything about a convolution that is not a tensor; the same for all directions and kernels. Axes are d, h, w; one
// that the problem lacks has size 1, filter 1, stride 1, dilation 1, no padding. Strides are counted in elements, 0 for
// an axis of size 1. x stands for the input or its gradient, y for the output or its gradient, w for the weight or its
// gradient.
struct Conv {
  int N, C, K, groups;  // images; channels and filters of one group
  int in[3], out[3], filter[3], stride[3], pad[3], dilation[3];  // pad: on the low side
  int common[3], inverse[3];  // grad_input: gcd(stride, dilation); inverse of dilation/common modulo stride/common
  int splits;  // grad_weight: blocks that share a sum
  int activation;  // of epilogue.cuh
  int phase_blocks;  // grad_input: blocks of BM rows in the largest phase
  int window_h, window_w;  // the window of pixels that a block with a halo owns
  int step[3];  // coordinates of what is gathered, from one tap to the next: dilation, in grad_input −dilation/common
  int pixel_step[4];  // grad_weight: BK pixels as n d h w
  double slope;
  long long per_split;  // grad_weight: pixels of one split, a multiple of BK
  long long x[5], w[5], y[5], residual[5];  // strides: n c d h w | k c t r s | n k z p q | n k z p q
  long long w_tap[3];  // w's strides from one tap to the next: its own, in grad_input times stride/common
  long long gw_split, gb_split;  // of sums that another launch adds: strides of splits; w is then theirs too; else 0
};
static_assert(sizeof(Conv) == 40 * 4 + 27 * 8, "the launcher fills in this layout");

// Offsets inside loops are 64-bit only where 32 bits could overflow; what is computed once is 64-bit always.
#if WIDE
typedef long long offset_t;
#else
typedef int offset_t;
#endif
__device__ __forceinline__ constexpr long long wide(long long v) { return v; }

// v, as a value whose origin the compiler cannot trace. So what depends on it is computed anew, which after a long loop
// is better than keeping it in registers all the while.
__device__ __forceinline__ unsigned opaque(unsigned v) {
#ifndef HOST_CHECK
  asm volatile("" : "+r"(v));
#endif
  return v;
}
template <typename T>
__device__ __forceinline__ const T* opaque(const T* p) {
#ifndef HOST_CHECK
  asm("" : "+l"(p));
#endif
  return p;
}

// ---- who computes what ----------------------------------------------------------------------------------------------

__device__ __forceinline__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ __forceinline__ constexpr long long ceil_div(long long a, int b) { return (a + b - 1) / b; }

struct Tile {
  int row, column;
};

// The tile of a block. BAND rows of tiles are walked column by column, so that blocks that run at the same time share
// rows as well as columns, and both stay in the L2 cache.
constexpr int BAND = 8;

__device__ __forceinline__ Tile tile_of_block(int block, int row_blocks, int column_blocks) {
  const int in_band = BAND * column_blocks;
  const int first = block / in_band * BAND, within = block % in_band;
  const int height = min(row_blocks - first, BAND);
  return {first + within % height, within / height};
}

struct Pixel {
  int d, h, w;
};

// The coordinates of a flat pixel number, w fastest.
__device__ __forceinline__ Pixel split_pixel(int pixel, int height, int width) {
  const int row = pixel / width;
  return {row / height, row % height, pixel % width};
}

// The offset of coordinates (n, pixel) in a tensor with these strides.
template <typename O = long long>
__device__ __forceinline__ O offset_of(int n, Pixel at, const long long (&strides)[5]) {
  return n * O(strides[0]) + at.d * O(strides[2]) + at.h * O(strides[3]) + at.w * O(strides[4]);
}

// Whether coordinates are inside an image of this size: one comparison an axis, since a negative number is a large
// unsigned.
__device__ __forceinline__ bool inside(Pixel at, const int (&size)[3]) {
  return unsigned(at.d) < unsigned(size[0]) && unsigned(at.h) < unsigned(size[1]) && unsigned(at.w) < unsigned(size[2]);
}
