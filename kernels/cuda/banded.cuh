// What the banded kernels share: depthwise convolution as products with banded matrices, on tensor cores.
//
// They are for filters so large that arithmetic takes longer than moving the bytes. For one channel and one filter row
// r, the outputs of a window are a matrix product with a *banded* matrix:
//
//   Y[p, q] += Σ_j X[p + r, j] · T_r[j, q]      T_r[j, q] = w[r, j − q − LEFT] where that is a tap, else 0
//
// p, q count the window's outputs, j the columns of input under it, from one that is a multiple of PIECE on, LEFT
// before the first that a tap meets: so all windows share T_r. It is never built. What a thread holds of its fragment
// of PIECE rows × 8 columns depends only on how far apart rows and columns are, in units of 16 bytes of the input
// (`delta`):
//
//   w[r, UNIT · delta + EACH · t − g − LEFT]  and, of 16-bit numbers, its neighbour      g = lane / 4, t = lane % 4
//
// so that FRAGMENTS registers are all of T_r, whatever the window's width. They are read from a filter row between
// zeros; of 16-bit numbers there is a second copy, shifted by one, so that a pair is one aligned word. Blocks outside
// the band are skipped, and so are pieces of input that are padding throughout.
//
// The rows of a product are 16 rows of input, as two halves of 8 (the registers 0, 2 and 1, 3 of a fragment). Filter
// row r + 8 meets the second half of what row r met, and the half after it: with r, r + 8, r + 16, … together, a half
// is read once for all of them.
//
// Structural zeros are multiplied: an input that is not finite makes NaN of the up to TW outputs in its row's windows
// that share a product with it, not only of those whose taps meet it.
#include "common.cuh"
#include "ptx.cuh"

constexpr int THREADS = 32 * WARPS;
constexpr int EACH = 4 / int(sizeof(TYPE)), UNIT = 16 / int(sizeof(TYPE)), PIECE = 2 * UNIT;  // elements

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }

// ---- windows --------------------------------------------------------------------------------------------------------

// The first output of a window, in image n.
struct Window {
  int n, h, w;
};

// Windows of TH × TW outputs, those of an image together, row by row.
__device__ __forceinline__ Window window_of(int number, const int (&size)[3]) {
  const Pixel at = split_pixel(number, ceil_div(size[1], TH), ceil_div(size[2], TW));
  return {at.d, at.h * TH, at.w * TW};
}

// The pieces of WIDTH columns, the first at column `first` of an image, that are not padding throughout.
struct Pieces {
  int begin, end;
};
template <int WIDTH>
__device__ __forceinline__ Pieces pieces_inside(int first, int width, int pieces) {
  return {first < 0 ? min(-first / WIDTH, pieces) : 0, first < width ? min(ceil_div(width - first, WIDTH), pieces) : 0};
}

// One channel of one image.
struct Plane {
  const TYPE* p;
  int height, width;
  offset_t row, column;  // strides
};

// Copy rows × pieces of a plane from (first_h, first_w) on to shared memory, zeros where it ends. RUN neighbours move
// as one, and a run is inside or outside as a whole; 16 bytes need not have arrived before their group is waited for.
template <int RUN, int WIDTH, int PITCH>
__device__ __forceinline__ void stage(unsigned char* to, int rows, Pieces pieces, const Plane& from, int first_h,
                                      int first_w, int thread, int threads) {
  constexpr int RUNS = WIDTH / RUN;
  for (int piece = pieces.begin; piece < pieces.end; ++piece) {
#pragma unroll 4
    for (int i = thread; i < rows * RUNS; i += threads) {
      const int row = i / RUNS, column = piece * WIDTH + i % RUNS * RUN;
      const int h = first_h + row, w = first_w + column;
      const bool m_inside = unsigned(h) < unsigned(from.height) && unsigned(w) < unsigned(from.width);
      const TYPE* p = from.p + (m_inside ? h * from.row + w * (RUN > 1 ? 1 : from.column) : 0);
      unsigned char* at = to + row * PITCH + column * int(sizeof(TYPE));
      if constexpr (RUN == UNIT) {
        copy_16(at, p, m_inside);
      } else {
        Run<RUN, TYPE> run = {};
        if (m_inside) run = *reinterpret_cast<const Run<RUN, TYPE>*>(p);
        *reinterpret_cast<Run<RUN, TYPE>*>(at) = run;
      }
    }
  }
}
