// What the depthwise kernels share: tiles of an image with their margin in shared memory, in either layout.
//
// A filter of a depthwise convolution has one channel, so nothing is summed over channels and there is no matrix
// product: a tap costs one multiply-add, and up to about 7 × 7 taps the bytes are what takes time. So every number is
// fetched once for a tile of TH × TW results, 16 bytes at a time, margin included, and used from shared memory by all
// the taps that need it. A thread owns a strip of STRIP neighbours of a row for V channels and keeps them in registers.
//
//   CHANNELS_LAST 1   V channels, 16 bytes, belong to a thread, and CHUNKS · V to a block; any strides will do, but
//                     only where 16 bytes of channels lie together (X_VECTOR, Y_VECTOR) do they move as one.
//   CHANNELS_LAST 0   packed planes: V = 1, and CHUNKS planes belong to a block. What it fetches or stores of them is
//                     made of *runs* of neighbours in memory, which pass through shared memory as they are: a row of
//                     seven numbers is no multiple of 16 bytes, all rows of a plane are nearly one.
//
// Filters, strides and dilations are compile-time constants, so that all loops over taps of a row unroll.
#include "epilogue.cuh"
#include "ptx.cuh"

constexpr int SIZE = Vector<TYPE>::SIZE, LANE = Vector<accumulator>::SIZE;
constexpr int V = CHANNELS_LAST ? SIZE : 1;
constexpr int CHANNELS = CHUNKS * V;  // of a block
constexpr int STRIPS = TW / STRIP;  // of a row of a tile
static_assert(TW % STRIP == 0 && THREADS % 32 == 0 && (CHANNELS_LAST || STRIP % LANE == 0), "see depthwise.py");

__device__ constexpr int round_up(int a, int unit) { return (a + unit - 1) / unit * unit; }

__device__ constexpr int larger(int a, int b) { return a < b ? b : a; }

// Rows are `pitch` numbers of the tile apart: 16 bytes that neighbouring lanes read in neighbouring rows, STEP rows
// apart, then lie in different banks. In planes every second row would meet the same banks again after four of them, and
// 16 bytes more for every second eight rows (`skew_of`) puts the next four between.
template <int STEP>
__device__ constexpr int pitch_of(int columns) {
  constexpr int unit = CHANNELS_LAST ? SIZE : LANE, banks = 8 * unit;  // numbers in 16 and in 128 bytes
  constexpr int wanted = CHANNELS_LAST ? (CHUNKS >= STEP ? CHUNKS / STEP : 1) * unit % banks : unit;
  const int least = CHANNELS_LAST ? columns * CHANNELS : round_up(columns, unit) + (STEP - 1) * unit;
  return least + (wanted + banks - least % banks) % banks;
}

template <int STEP>
__device__ constexpr int skew_of(int row) {
  return STEP == 2 ? row / 8 % 2 * LANE : 0;
}

// ---- packed planes: runs --------------------------------------------------------------------------------------------

// A box of `rows` × `columns` pixels from each of some planes, as `count` runs of `length` neighbours. Whole planes
// that follow each other are one run, whole rows one for each plane, else each row is one. In shared memory a run
// begins as far from a multiple of 16 bytes as it does in global memory, so that whole vectors are aligned in both.
struct Runs {
  long long first, plane_stride;  // offset of the box's first element; from one plane to the next
  int width, rows, columns;  // width: of the image
  int count, of_plane, length, slot;
  bool merged;
  Pixel low;  // the box's first pixel

  __device__ __forceinline__ long long start(int run) const {
    return first + run / of_plane * plane_stride + wide(run % of_plane) * width;
  }
  __device__ __forceinline__ int before(int run) const { return static_cast<int>(start(run) % SIZE); }
  // Which run row `row` of a plane is in, and which of its rows it is.
  struct Spot {
    int run, row;
  };
  __device__ __forceinline__ Spot spot(int plane, int row) const {
    return {merged          ? 0
            : of_plane == 1 ? plane
                            : plane * rows + row,
            merged          ? plane * rows + row
            : of_plane == 1 ? row
                            : 0};
  }
};

// Rows and columns from `low` to before `high` of `planes` planes, the first of which begins at offset `first`.
__device__ __forceinline__ Runs runs_of(long long first, long long plane_stride, int planes, const int (&image)[3],
                                        Pixel low, Pixel high) {
  const int rows = max(high.h - low.h, 0), columns = max(high.w - low.w, 0), width = image[2];
  const bool whole = columns == width, merged = whole && rows == image[1] && plane_stride == wide(rows) * width;
  Runs runs = {first + wide(low.h) * width + low.w, plane_stride, width, rows, columns, 0, 0, 0, 0, merged, low};
  runs.of_plane = whole ? 1 : max(rows, 1);
  runs.count = rows * columns == 0 ? 0 : merged ? 1 : whole ? planes : planes * rows;
  runs.length = merged ? planes * rows * columns : whole ? rows * columns : columns;
  runs.slot = round_up(runs.length + SIZE - 1, SIZE);
  return runs;
}

// Call f(run, place from where the run's first vector is, offset in global memory, begin, end) for every aligned vector
// that overlaps the runs: its elements from begin to before end belong to them.
template <typename F>
__device__ __forceinline__ void each_vector(const Runs& runs, const F& f) {
  const int vectors = runs.slot / SIZE;
  for (int i = threadIdx.x; i < runs.count * vectors; i += THREADS) {
    const long long start = runs.start(i / vectors);
    const int before = start % SIZE, at = i % vectors * SIZE;
    f(i / vectors, at, start - before + at, max(before - at, 0), min(before + runs.length - at, SIZE));
  }
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

#if CHANNELS_LAST
typedef TYPE Number;  // of a tile
#else
typedef accumulator Number;
#endif

// ROWS × COLUMNS pixels of CHANNELS channels. NEXT: where the next plane begins, in 16 bytes modulo 128.
template <int ROWS_, int COLUMNS_, int STEP, int NEXT>
struct Tiled {
  static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, PITCH = pitch_of<STEP>(COLUMNS_);
  static constexpr int PLANE = ROWS * PITCH + (NEXT % 8 + 8 - ROWS % 8) % 8 * LANE;  // rows are 16 bytes modulo 128
  static constexpr int RAW = CHUNKS * ROWS * (COLUMNS + 2 * SIZE);  // numbers that may pass through shared memory
  static constexpr int NUMBERS = CHANNELS_LAST ? ROWS * PITCH : CHUNKS * PLANE;
  Number* s;

  // The strip that begins at (row, column) for the thread's chunk.
  __device__ __forceinline__ Number* at(int chunk, int row, int column) const {
    if (CHANNELS_LAST) return s + row * PITCH + column * CHANNELS + chunk * V;
    const int plane = CHUNKS > 1 ? opaque(chunk) : 0;  // or two products would be dp2a, which the emulator lacks
    return s + plane * PLANE + row * PITCH + skew_of<STEP>(row) + column;
  }
};

// Load COUNT columns of a strip, widened.
template <int COUNT>
__device__ __forceinline__ void load_strip(accumulator (&b)[COUNT][V], const Number* s) {
#if CHANNELS_LAST
#pragma unroll
  for (int j = 0; j < COUNT; ++j) {
    const Vector<TYPE> packed = *reinterpret_cast<const Vector<TYPE>*>(s + j * CHANNELS);
#pragma unroll
    for (int v = 0; v < V; ++v) b[j][v] = widen(packed.at[v]);
  }
#else
#pragma unroll
  for (int j = 0; j < COUNT; j += LANE) {
    const Vector<accumulator> packed = *reinterpret_cast<const Vector<accumulator>*>(s + j);
#pragma unroll
    for (int i = 0; i < LANE; ++i)
      if (j + i < COUNT) b[j + i][0] = packed.at[i];
  }
#endif
}

// An image in global memory, from the block's first channel on.
struct Image {
  const TYPE* p;
  long long first;  // offset
  const long long (&strides)[5];
  long long channel_stride;
  const int (&size)[3];
  int channels;  // from the block's first to the last; there may be more than the block takes
};

// Fetch the tile whose first pixel is `corner`, with zeros where there is no image. No thread may still be reading the
// tile or s_raw, and the caller has all threads wait before the tile is read. s_raw: Tiled::RAW numbers, not used with
// channels last.
template <typename T>
__device__ __forceinline__ void stage(const T& tile, const Image& image, Pixel corner, [[maybe_unused]] TYPE* s_raw) {
#if CHANNELS_LAST
  const TYPE* p_first = image.p + image.first;
  for (int i = threadIdx.x; i < T::ROWS * T::COLUMNS * CHUNKS; i += THREADS) {
    const int chunk = i % CHUNKS, j = i / CHUNKS % T::COLUMNS, row = i / CHUNKS / T::COLUMNS;
    const Pixel at = {0, corner.h + row, corner.w + j};
    const bool m_inside = inside(at, image.size);
    const offset_t o_pixel = m_inside ? at.h * offset_t(image.strides[3]) + at.w * offset_t(image.strides[4]) : 0;
    TYPE* const to = tile.s + row * T::PITCH + j * CHANNELS + chunk * V;
    if (X_VECTOR) {
      const bool m = m_inside && chunk * V < image.channels;
      copy_16(to, p_first + (m ? o_pixel + chunk * V : 0), m);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int c = chunk * V + v;
        to[v] = m_inside && c < image.channels ? p_first[o_pixel + c * image.channel_stride] : TYPE{};
      }
    }
  }
  close_group();
  wait_for_groups<0>();
#else
  const int planes = min(image.channels, CHUNKS);
  const Pixel low = {0, max(corner.h, 0), max(corner.w, 0)};
  const Pixel high = {0, min(corner.h + T::ROWS, image.size[1]), min(corner.w + T::COLUMNS, image.size[2])};
  const Runs runs = runs_of(image.first, image.channel_stride, planes, image.size, low, high);
  each_vector(runs, [&](int run, int at, long long from, int begin, int end) {
    const int place = run * runs.slot + at;
    if (X_VECTOR && begin == 0 && end == SIZE) {
      copy_16(s_raw + place, image.p + from, true);
    } else {
      for (int e = begin; e < end; ++e) s_raw[place + e] = image.p[from + e];
    }
  });
  close_group();
  wait_for_groups<0>();
  __syncthreads();
  // As many lanes to a row as it needs; then a tile's rows are in place, its margin is zeros, and it is widened. Rows of a
  // warp are those whose numbers lie in different banks: of two rows every fourth, of four every second.
  constexpr int LANES = T::COLUMNS > 16 ? 32 : T::COLUMNS > 8 ? 16 : 8, APART = LANES / 4, TOGETHER = 8 / APART;
  for (int k = threadIdx.x / LANES; k < round_up(CHUNKS * T::ROWS, 8); k += THREADS / LANES) {
    const int i = k / 8 * 8 + k % TOGETHER * APART + k % 8 / TOGETHER;
    if (i >= CHUNKS * T::ROWS) continue;
    const int plane = i / T::ROWS, row = i % T::ROWS, h = corner.h + row;
    const bool m_row = plane < planes && h >= low.h && h < high.h;
    const auto [run, before] = runs.spot(plane, h - low.h);
    const int place = m_row ? run * runs.slot + runs.before(run) + before * runs.width - low.w : 0;
    Number* const to = tile.at(plane, row, 0);
    for (int j = threadIdx.x % LANES; j < T::COLUMNS; j += LANES) {
      const int w = corner.w + j;
      to[j] = m_row && w >= low.w && w < high.w ? widen(s_raw[place + w]) : accumulator(0);
    }
  }
#endif
}
