// How tensor_grad_weight.cu fetches pixels: each thread chunks of 16 bytes of one pixel, or a few, of every step.
//
// A step has BK pixels, rows of a tile. LANES threads share a row, neighbours if its chunks are vectors; else
// neighbouring threads have neighbouring pixels, as they may lie in memory. Which filters and channels a thread has
// never changes, and its pixels move on by BK with each step, which costs a few additions (pixel_counter.cuh).
//
// Banks. Eight neighbouring lanes, which are served at once, write LANES chunks of each of 8 / LANES rows. The rows of a
// swizzled tile are in different lines of banks; so the rows begin with different chunks (`PixelShare::chunk`).
#include "pixel_counter.cuh"
#include "tensor_tile.cuh"

__device__ __forceinline__ int pixels_of(const Conv& a) { return a.N * a.out[0] * a.out[1] * a.out[2]; }

// The part that a thread has of a tile of BK rows of WIDTH elements: chunks `chunk(i)`, COUNT of them, of each of the
// rows `row(j)`, PIXELS of them.
template <bool VECTOR, int WIDTH>
struct PixelShare {
  typedef SharedTile<DOWN, WIDTH> Tiling;
  static constexpr int LANES = VECTOR && THREADS < 2 * BK ? 2 : THREADS / BK, ROWS = THREADS / LANES;
  static constexpr int PIXELS = BK / ROWS, CHUNKS = WIDTH / UNIT, COUNT = ceil_div(CHUNKS, LANES);
  static constexpr int TURNS = VECTOR && !Tiling::BY_WORD && Tiling::SWIZZLED > LANES ? Tiling::SWIZZLED / LANES : 1;
  static_assert(LANES > 0 && BK % ROWS == 0 && (PIXELS == 1 || ROWS % 8 == 0), "rows of a thread are swizzled alike");

  __device__ __forceinline__ static int row(int j) {
    return (VECTOR ? threadIdx.x / LANES : threadIdx.x % ROWS) + j * ROWS;
  }
  __device__ __forceinline__ static int chunk(int i) {
    if (VECTOR) return (i ^ row(0) / (8 / Tiling::SWIZZLED) % TURNS) * LANES + threadIdx.x % LANES;
    constexpr bool SWAPPED = Tiling::BY_WORD && LANES > 1;  // rows that are 128 bytes apart take neighbouring chunks
    return i * LANES + (threadIdx.x / ROWS ^ (SWAPPED ? row(0) / 4 % 2 : 0));
  }
  // The i-th chunk of a pixel whose first element is at p, if m_pixel; zeros beyond the first `columns`.
  __device__ __forceinline__ static Vector<TYPE> load(const TYPE* p, bool m_pixel, int i, int columns, offset_t step) {
    const int left = m_pixel && chunk(i) < CHUNKS ? columns - chunk(i) * UNIT : 0;
    Vector<TYPE> values = {};
    if constexpr (VECTOR) {
      if (left > 0) values = *reinterpret_cast<const Vector<TYPE>*>(p + chunk(i) * UNIT);
    } else {
      p += chunk(i) * UNIT * step;
#pragma unroll
      for (int e = 0; e < UNIT; ++e)
        if (e < left) values.at[e] = p[e * step];
    }
    return values;
  }
  // Start copying all chunks to row(j) of a tile. WHOLE: there are no fewer than WIDTH columns.
  template <bool WHOLE>
  __device__ __forceinline__ static void copy(unsigned char* tile, int j, const TYPE* p, bool m_pixel, int columns,
                                              offset_t step) {
    if (WHOLE) columns = WIDTH;
    if (VECTOR) p = opaque(p);  // or each chunk's address would be worked out from the start
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (CHUNKS % LANES && chunk(i) >= CHUNKS) continue;
      if constexpr (VECTOR) {
        const int turned = i % TURNS, further = (i - turned) * LANES;  // as a constant it is part of an instruction
        const bool m_chunk = WHOLE || chunk(i) * UNIT < columns;
        copy_16(tile + Tiling::place(row(j), chunk(turned)) + 16 * further,
                p + (m_chunk ? chunk(turned) * UNIT : 0) + further * UNIT * m_chunk, m_pixel && m_chunk);
      } else {
        *reinterpret_cast<Vector<TYPE>*>(tile + Tiling::place(row(j), chunk(i))) = load(p, m_pixel, i, columns, step);
      }
    }
  }
};

// The pixels of a thread, in the step that is to be copied next.
template <bool VECTOR>
struct Walker {
  static constexpr int PIXELS = PixelShare<VECTOR, BM>::PIXELS;
  PixelCounter at[PIXELS];
  int ahead[PIXELS];  // pixels from this one to the split's last, both counted

  __device__ __forceinline__ Walker(int begin, int end, const Conv& a) {
#pragma unroll
    for (int j = 0; j < PIXELS; ++j) {
      const int pixel = begin + PixelShare<VECTOR, BM>::row(j);
      at[j] = counter_of(pixel, a.out), ahead[j] = end - pixel;
    }
  }
  __device__ __forceinline__ void advance(const Conv& a) {
#pragma unroll
    for (int j = 0; j < PIXELS; ++j) ::advance(at[j], a.pixel_step, a.out), ahead[j] -= BK;
  }
  __device__ __forceinline__ bool in_gy(int j) const { return ahead[j] > 0; }
  __device__ __forceinline__ offset_t offset_in_gy(int j, const Conv& a) const {
    return in_gy(j) ? offset_of<offset_t>(at[j].n, at[j].at, a.y) : 0;
  }
  template <bool WHOLE>
  __device__ __forceinline__ void copy_gy(unsigned char* tile, const TYPE* p, int filters, const Conv& a) const {
#pragma unroll
    for (int j = 0; j < PIXELS; ++j)
      PixelShare<VECTOR, BM>::template copy<WHOLE>(tile, j, p + offset_in_gy(j, a), in_gy(j), filters, a.y[1]);
  }
  // shift: from a pixel of gy, times the stride, to that of x.
  template <bool WHOLE>
  __device__ __forceinline__ void copy_x(unsigned char* tile, const TYPE* p, int channels, Pixel shift,
                                         const Conv& a) const {
#pragma unroll
    for (int j = 0; j < PIXELS; ++j) {
      const Pixel out = at[j].at;
      const Pixel in = {out.d * a.stride[0] + shift.d, out.h * a.stride[1] + shift.h, out.w * a.stride[2] + shift.w};
      const bool m_inside = in_gy(j) & inside(in, a.in);
      const offset_t offset = offset_of<offset_t>(at[j].n, in, a.x);
      PixelShare<VECTOR, BN>::template copy<WHOLE>(tile, j, p + (m_inside ? offset : 0), m_inside, channels, a.x[1]);
    }
  }
};
