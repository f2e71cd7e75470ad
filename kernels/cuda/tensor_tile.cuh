// What the tensor-core kernels share: tiles in shared memory, the product of two of them, and the way back to memory.
//
// A block of WARPS_M × WARPS_N warps computes BM × BN sums; a warp WM × WN of them, as MI × NI products of 16 × 8 that
// stay in registers until the end. A step of the loop adds BK terms to each: two tiles come into shared memory, BM × BK
// and BK × BN, and every warp takes fragments of both (ptx.cuh). There is room for STAGES of each, so that all but one
// may be under way while one is multiplied.
//
// The terms of the sum lie ALONG the rows of a tile (the row is a pixel, its channels follow) or DOWN the columns (the
// rows are pixels or filters that are summed over). Either way a row's bytes are neighbours in memory, so tiles are
// copied in chunks of 16 bytes; a tile whose terms lie DOWN is transposed while it is taken into registers.
//
// Banks. Shared memory serves 8 chunks at once if they lie in different places modulo 128 bytes. ldmatrix takes the
// same chunk of 8 consecutive rows, so chunk c of row r is put where chunk c ^ (r mod 8) would be (a swizzle): all
// different (`SharedTile::place`). ldmatrix cannot transpose floats: where they lie DOWN a warp takes words, 8
// neighbours of 4 consecutive rows at once. There rows are 32 bytes longer than what they hold, so that the words lie
// in different banks.
//
// Groups of few channels are packed: PACK of them, of GROUP_C channels and GROUP_K filters each, count as one group
// that fits a tile, whose weights are blocks along a diagonal with zeros beside them. Blocks of 16 columns × 32 bytes
// of terms in which no channel has a filter of its group are skipped (`share_group`). In the others zeros are
// multiplied: there a value that is not finite makes NaN of what belongs to neighbouring groups.
#include "common.cuh"
#include "ptx.cuh"

constexpr int THREADS = 32 * WARPS_M * WARPS_N;
constexpr int UNIT = Vector<TYPE>::SIZE;  // elements of a chunk
constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;
constexpr int MI = WM / 16, NI = WN / 8;
constexpr int K_STEPS = BK * int(sizeof(TYPE)) / 32;  // of 32 bytes each
static_assert(WM % 16 == 0 && WN % 16 == 0 && K_STEPS > 0, "a warp multiplies 16 × 32 bytes with 32 bytes × 16");

typedef float Sums[MI][NI][4];

enum Terms { ALONG, DOWN };

#ifndef PACK
#define PACK 1
#endif
#if PACK > 1
// The first of the channels of filter k's group; and whether of FILTERS filters from k on and CHANNELS channels from c
// on some belong to the same group. All counted within the pack.
__device__ __forceinline__ constexpr int first_channel(int k) { return k / GROUP_K * GROUP_C; }
template <int FILTERS, int CHANNELS>
__device__ __forceinline__ constexpr bool share_group(int k, int c) {
  return first_channel(k) < c + CHANNELS && c < first_channel(k + FILTERS - 1) + GROUP_C;
}
#else
__device__ __forceinline__ constexpr int first_channel(int) { return 0; }
template <int FILTERS, int CHANNELS>
__device__ __forceinline__ constexpr bool share_group(int, int) {
  return true;
}
#endif

// ---- tiles in shared memory -----------------------------------------------------------------------------------------

template <Terms TERMS, int WIDTH>  // WIDTH: elements of a row
struct SharedTile {
  static constexpr int CHUNKS = WIDTH / UNIT;
  static constexpr int SWIZZLED = CHUNKS < 8 ? CHUNKS : 8;  // chunks that are swizzled with each other
  static constexpr bool BY_WORD = TERMS == DOWN && sizeof(TYPE) == 4;
  static constexpr int PITCH = 16 * CHUNKS + (BY_WORD ? 32 : 0);  // bytes from one row to the next
  static_assert(CHUNKS >= 2 && (CHUNKS & (CHUNKS - 1)) == 0, "a row is two, four, eight, ... chunks");

  // Where chunk `chunk` of row `row` is, in bytes. Rows shorter than 128 bytes share a line of banks and change places
  // together.
  __device__ __forceinline__ static int place(unsigned row, unsigned chunk) {
    return row * PITCH + 16 * (BY_WORD ? chunk : chunk ^ (row / (8 / SWIZZLED) % SWIZZLED));
  }
  // The 4 bytes at (row, column), as a register of a fragment.
  __device__ __forceinline__ static unsigned word(const unsigned char* tile, int row, int column) {
    return *reinterpret_cast<const unsigned*>(tile + place(row, column / UNIT) + column % UNIT * int(sizeof(TYPE)));
  }
};

// What one thread copies of a tile that comes in vectors: chunk `chunk` of every APART-th row, COUNT of them.
template <Terms TERMS, int ROWS, int WIDTH>
struct Share {
  using Tiling = SharedTile<TERMS, WIDTH>;
  static constexpr int PITCH = Tiling::PITCH, CHUNKS = Tiling::CHUNKS, APART = THREADS / CHUNKS;
  static constexpr int COUNT = ceil_div(ROWS, APART);
  static_assert(COUNT <= 16 && (Tiling::BY_WORD || APART % 8 == 0), "rows are swizzled alike");

  const int first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
  const int place = opaque(Tiling::place(first, chunk));  // so that it is kept

  __device__ __forceinline__ int row(int j) const { return first + j * APART; }
  // Bits 2j and 2j + 1: the j-th chunk lies within rows × columns. (One bit alone the compiler would shift about.)
  __device__ __forceinline__ unsigned within(int rows, int columns) const {
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < COUNT; ++j) bits |= row(j) < rows ? 3u << 2 * j : 0;
    return chunk * UNIT < columns ? bits : 0;
  }
  // Start copying the j-th chunk, or zeros, if its turn is in part `part` of `parts`. Where copies are not asynchronous all
  // are loaded in the first part, into `held`, and written in the last.
  __device__ __forceinline__ void copy(unsigned char* tile, int j, const TYPE* from, bool inside, int part, int parts,
                                       uint4& held) const {
    if (ROWS % APART != 0 && row(j) >= ROWS) return;
    unsigned char* const to = tile + place + j * APART * PITCH;
    if (ASYNCHRONOUS) {
      if (j * parts / COUNT == part) copy_16(to, from, inside);
    } else {
      if (part == 0) held = load_16(from, inside);
      if (part == parts - 1) *reinterpret_cast<uint4*>(to) = held;
    }
  }
};

// Start filling a tile: row r from base + offset_of(r), where `columns` elements lie `step` apart. What lies beyond
// them, and rows whose offset is negative, become zero. VECTOR: step is 1, and all is aligned to 16 bytes. Otherwise a
// chunk is put together in registers, and neighbouring threads take neighbouring rows.
template <Terms TERMS, int WIDTH, bool VECTOR, typename OffsetOf>
__device__ __forceinline__ void stage(unsigned char* tile, int rows, const TYPE* base, int columns, offset_t step,
                                      OffsetOf offset_of) {
  using Tiling = SharedTile<TERMS, WIDTH>;
  constexpr int CHUNKS = Tiling::CHUNKS;
  if constexpr (VECTOR) {
    const int chunk = threadIdx.x % CHUNKS;
    const bool m_chunk = chunk * UNIT < columns;
#pragma unroll 2  // more would cost registers
    for (int row = threadIdx.x / CHUNKS; row < rows; row += THREADS / CHUNKS) {
      const offset_t offset = offset_of(row);
      copy_16(tile + Tiling::place(row, chunk), base + max(offset, offset_t(0)) + chunk * UNIT, m_chunk && offset >= 0);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < ceil_div(rows, 32) * 32 * CHUNKS; i += THREADS) {
      const int row = i / (32 * CHUNKS) * 32 + i % 32, chunk = i / 32 % CHUNKS;
      if (row >= rows) continue;
      const offset_t offset = offset_of(row);
      const int left = offset < 0 ? 0 : columns - chunk * UNIT;
      Vector<TYPE> values;
#pragma unroll
      for (int e = 0; e < UNIT; ++e) values.at[e] = e < left ? base[offset + (chunk * UNIT + e) * step] : TYPE{};
      *reinterpret_cast<Vector<TYPE>*>(tile + Tiling::place(row, chunk)) = values;
    }
  }
}

#if PACK > 1
// Start filling a tile of w between its zeros, which are there already and stay: row k with the channels of its group.
template <Terms TERMS, int WIDTH, bool VECTOR>
__device__ __forceinline__ void stage_pack(unsigned char* tile, const TYPE* p, offset_t filter, offset_t channel) {
  constexpr bool WHOLE = GROUP_C % UNIT == 0 || UNIT % GROUP_C == 0;  // no chunk is shared with half a group
  constexpr int CHUNKS = WHOLE ? ceil_div(GROUP_C, UNIT) : (GROUP_C + UNIT - 2) / UNIT + 1;  // of a row, at most
  for (int i = threadIdx.x; i < PACK * GROUP_K * CHUNKS; i += THREADS) {
    const int k = i / CHUNKS, first = first_channel(k), chunk = first / UNIT + i % CHUNKS;
    const int c = chunk * UNIT - first;  // within the group
    if (c >= GROUP_C) continue;
    unsigned char* to = tile + SharedTile<TERMS, WIDTH>::place(k, chunk);
    if constexpr (VECTOR) {
      copy_16(to, p + k * filter + c, true);
    } else {
      Vector<TYPE> values;
#pragma unroll
      for (int e = 0; e < UNIT; ++e)
        values.at[e] = unsigned(c + e) < unsigned(GROUP_C) ? p[k * filter + (c + e) * channel] : TYPE{};
      *reinterpret_cast<Vector<TYPE>*>(to) = values;
    }
  }
}
#endif

// ---- fragments; k counts pieces of 32 bytes of terms ----------------------------------------------------------------

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp_row() { return threadIdx.x / 32 / WARPS_N * WM; }
__device__ __forceinline__ int warp_column() { return threadIdx.x / 32 % WARPS_N * WN; }

// Where a lane reads the first piece of a fragment of the left operand, 16 rows. `row`: the one whose address this lane
// gives to ldmatrix, the (lane % 16)-th. Bits 5 and up are changed by the number of the piece.
__device__ __forceinline__ int left_lane(int row) { return SharedTile<ALONG, BK>::place(row, lane() / 16); }
__device__ __forceinline__ void left_along(unsigned (&a)[4], const unsigned char* tile, int row, int k) {
  ldmatrix(a, tile + (left_lane(row) ^ 32 * k));
}
// The same where the terms lie DOWN; `row`: the fragment's first.
__device__ __forceinline__ void left_down(unsigned (&a)[4], const unsigned char* tile, int row, int k) {
  using Tiling = SharedTile<DOWN, BM>;
  if constexpr (sizeof(TYPE) == 2) {
    const int term = 16 * k + lane() % 8 + lane() / 16 * 8;
    ldmatrix_transposed(a, tile + Tiling::place(term, row / 8 + lane() / 8 % 2));
  } else {
    const int term = 8 * k + lane() % 4, g = row + lane() / 4;
    a[0] = Tiling::word(tile, term, g);
    a[1] = Tiling::word(tile, term, g + 8);
    a[2] = Tiling::word(tile, term + 4, g);
    a[3] = Tiling::word(tile, term + 4, g + 8);
  }
}
// Where a lane begins to read the right operand's tile, in bytes; and its fragments from there, of the pair-th 16 columns
// of the warp: b[0], b[1] of the first eight, b[2], b[3] of the others. Swizzled places differ by bits of the chunk.
template <Terms RIGHT>
__device__ __forceinline__ int right_lane() {
  if constexpr (RIGHT == ALONG)
    return SharedTile<ALONG, BK>::place(warp_column() + lane() % 8 + lane() / 16 * 8, lane() / 8 % 2);
  else if constexpr (sizeof(TYPE) == 2)
    return SharedTile<DOWN, BN>::place(lane() % 16, warp_column() / 8 + lane() / 16);
  else
    return lane() % 4 * SharedTile<DOWN, BN>::PITCH + 4 * (warp_column() + lane() / 4);
}
template <Terms RIGHT>
__device__ __forceinline__ void right_fragment(unsigned (&b)[4], const unsigned char* tile, int first, int pair,
                                               int k) {
  constexpr int PITCH = SharedTile < RIGHT, RIGHT == ALONG ? BK : BN > ::PITCH;
  if constexpr (RIGHT == ALONG) {
    ldmatrix(b, tile + (first ^ 32 * k) + 16 * pair * PITCH);
  } else if constexpr (sizeof(TYPE) == 2) {
    ldmatrix_transposed(b, tile + (first ^ 32 * pair) + 16 * k * PITCH);
  } else {
    const unsigned char* const from = tile + first + 8 * k * PITCH + 64 * pair;
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = *reinterpret_cast<const unsigned*>(from + i % 2 * 4 * PITCH + i / 2 * 32);
  }
}

// acc += left fragments times those of the warp's pair-th 16 columns.
__device__ __forceinline__ void multiply_pair(Sums& acc, int pair, const unsigned (&a)[MI][4], const unsigned (&b)[4]) {
#pragma unroll
  for (int i = 0; i < MI; ++i) {
    multiply(acc[i][2 * pair], a[i], b[0], b[1], TYPE{});
    multiply(acc[i][2 * pair + 1], a[i], b[2], b[3], TYPE{});
  }
}

// acc += one piece of 32 bytes of terms: the left fragments times those of the right tile, of which 16 columns from c
// on are left out unless wanted(c).
template <Terms RIGHT, typename Wanted>
__device__ __forceinline__ void multiply_piece(Sums& acc, const unsigned (&a)[MI][4], const unsigned char* right, int k,
                                               Wanted wanted) {
#pragma unroll
  for (int pair = 0; pair < NI / 2; ++pair) {
    if (!wanted(warp_column() + 16 * pair)) continue;
    unsigned b[4];
    right_fragment<RIGHT>(b, right, right_lane<RIGHT>(), pair, k);
    multiply_pair(acc, pair, a, b);
  }
}

// ---- from sums to memory --------------------------------------------------------------------------------------------

constexpr int SLAB_PITCH = WN + 8;  // floats; the 8 keep a warp's rows in different banks
constexpr int SLABS = WARPS_M * WARPS_N * 16 * SLAB_PITCH * int(sizeof(float));  // bytes of shared memory

// A warp's slab: sums on their way out, which leave registers in passes so that a thread gets EACH neighbours of a line.
// Lines are 16 rows (ACROSS) or 8 columns. No bank conflicts: of runs of eight the second halves lie behind all first
// ones, and lanes that read at the same time have lines whose banks differ.
template <bool ACROSS, int EACH>
struct Slab {
  static constexpr int LENGTH = ACROSS ? WN : WM, LINES = ACROSS ? 16 : 8, PITCH = LENGTH + (ACROSS ? 8 : 4);
  static constexpr int RUNS = LENGTH / EACH, ITEMS = LINES * RUNS, STEP = EACH < 4 ? EACH : 4;  // STEP: read as one
  static constexpr int HALF = EACH == 8 ? LENGTH / 2 + 4 : 0;
  static_assert(LINES * PITCH <= 16 * SLAB_PITCH, "it fits");

  __device__ __forceinline__ static int place(int line, int i) {
    return line * PITCH + (EACH == 8 ? i / 8 * 4 + i % 4 + (i / 4 % 2 ? HALF : 0) : i);
  }
  __device__ __forceinline__ static int line(int item) {
    constexpr int TOGETHER = 32 / STEP / RUNS;  // lines that are read at the same time
    const int q = item / RUNS;
    if (ACROSS) return TOGETHER == 2 ? q / 4 * 4 + q % 2 * 2 + q / 2 % 2 : q;
    return TOGETHER > 1 ? q % TOGETHER * (LINES / TOGETHER) + q / TOGETHER : q;
  }
  __device__ __forceinline__ static int first(int item) { return item % RUNS * EACH; }
  // Write a pass: 16 rows of the warp, or 8 columns.
  __device__ __forceinline__ static void write(float* slab, const Sums& acc, int pass) {
    const int g = lane() / 4, t = lane() % 4;
    if constexpr (ACROSS) {
#pragma unroll
      for (int j = 0; j < NI; ++j) {
        *reinterpret_cast<Run<2>*>(slab + place(g, 8 * j + 2 * t)) = {acc[pass][j][0], acc[pass][j][1]};
        *reinterpret_cast<Run<2>*>(slab + place(g + 8, 8 * j + 2 * t)) = {acc[pass][j][2], acc[pass][j][3]};
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4 * MI; ++i)
        slab[place(2 * t + i % 2, i / 4 * 16 + i / 2 % 2 * 8 + g)] = acc[i / 4][pass][i % 4];
    }
  }
  __device__ __forceinline__ static void read(float* values, const float* slab, int item) {
#pragma unroll
    for (int e = 0; e < EACH; e += STEP)
      *reinterpret_cast<Run<STEP>*>(values + e) =
          *reinterpret_cast<const Run<STEP>*>(slab + place(line(item), first(item) + e));
  }
};

// EACH elements from p on, as one; and values += elements.
template <int EACH>
__device__ __forceinline__ Run<EACH, TYPE> load(const TYPE* p) {
  return *reinterpret_cast<const Run<EACH, TYPE>*>(p);
}
template <int EACH>
__device__ __forceinline__ void add(float* values, const Run<EACH, TYPE>& run) {
#pragma unroll
  for (int e = 0; e < EACH; ++e) values[e] += widen(run.at[e]);
}
template <int EACH>
__device__ __forceinline__ void add(float* values, const TYPE* p) {
  add<EACH>(values, load<EACH>(p));
}

// A mask that keeps every element of a tile.
struct Everything {
  __device__ __forceinline__ constexpr bool operator()(int, int) const { return true; }
};
// What is fetched for a sum where nothing is.
struct Nothing {
  __device__ __forceinline__ constexpr Nothing operator()(int, int) const { return {}; }
};

// Store the block's sums, (row, column) at base + to[row] + column · step, where to[row] is not negative, column is
// below `columns` and m_there(row, column). ACROSS: RUN columns of one row at a time, 16 bytes if RUN is 0; otherwise RUN
// rows of one column, which are neighbours in memory from to[row] on, and neighbouring threads have neighbouring rows.
// finish(values, row, column, fetch(row, column)) may change them before they are rounded; what is fetched is asked for
// before sums go to the slab.
template <bool ACROSS, int RUN = 0, typename Result, typename Finish, typename There = Everything,
          typename Fetch = Nothing>
__device__ __forceinline__ void store(const Sums& acc, unsigned char* slabs, Result* base, const offset_t* to,
                                      int columns, offset_t step, Finish finish, There m_there = {}, Fetch fetch = {}) {
  constexpr int EACH = RUN > 0 ? RUN : ACROSS ? Vector<Result>::SIZE : 1;
  using Way = Slab<ACROSS, EACH>;
  constexpr int ROUNDS = ceil_div(Way::ITEMS, 32), HELD = ROUNDS > 4 ? 1 : ROUNDS;
  typedef decltype(fetch(0, 0)) Fetched;
  float* const slab = reinterpret_cast<float*>(slabs) + threadIdx.x / 32 * 16 * SLAB_PITCH;
#pragma unroll
  for (int pass = 0; pass < (ACROSS ? MI : NI); ++pass) {
    const auto row_of = [&](int item) {
      return warp_row() + (ACROSS ? 16 * pass + Way::line(item) : Way::first(item));
    };
    const auto column_of = [&](int item) {
      return warp_column() + (ACROSS ? Way::first(item) : 8 * pass + Way::line(item));
    };
    const auto fetched = [&](int item) {
      const int row = row_of(item), column = column_of(item);
      const bool m_item = item < Way::ITEMS && to[row] >= 0 && column < columns;
      return m_item ? fetch(row, column) : Fetched{};
    };
    Fetched held[HELD];  // for the next rounds
#pragma unroll
    for (int i = 0; i < HELD; ++i) held[i] = fetched(lane() + 32 * i);
    __syncwarp();  // the slab has been read
    Way::write(slab, acc, pass);
    __syncwarp();  // the slab has been written
#pragma unroll 1
    for (int item = lane(); item < Way::ITEMS; item += 32) {
      const Fetched now = held[0];
#pragma unroll
      for (int i = 1; i < HELD; ++i) held[i - 1] = held[i];
      if (HELD < ROUNDS) held[HELD - 1] = fetched(item + 32 * HELD);
      const int row = row_of(item), column = column_of(item);
      if (to[row] < 0 || column >= columns || !m_there(row, column)) continue;
      alignas(16) float values[EACH];
      Way::read(values, slab, item);
      finish(values, row, column, now);
      Run<EACH, Result> out;
#pragma unroll
      for (int e = 0; e < EACH; ++e) out.at[e] = narrow<Result>(values[e]);
      Result* const p = base + to[row] + column * (ACROSS ? 1 : step);
      if constexpr (sizeof out == 16) {
        store_16(p, *reinterpret_cast<const uint4*>(&out));
      } else {
        *reinterpret_cast<Run<EACH, Result>*>(p) = out;
      }
    }
  }
}
