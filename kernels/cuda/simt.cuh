// What the SIMT kernels share: the product of two tiles with ordinary multiply-adds, the same on every GPU.
//
//   acc[m, n] += Σ_k rows[k][m] · columns[k][n]          m < BM, n < BN, k < BK
//
// Both tiles lie in shared memory with k outermost, widened to the type of the sum. A thread owns TM × TN outputs: for
// each k it reads TM + TN numbers, 16 bytes at a time, and does TM·TN multiply-adds, all of its sums in registers. Its
// outputs come in runs of LANE neighbours, and the runs of one thread are spread over the tile, so that threads side by
// side read numbers side by side and no two collide in a bank of shared memory.
//
// There are two stages: while one is multiplied the numbers of the next step are already on their way into registers. A
// step stores them into its stage, waits once for all threads, starts fetching the next and multiplies. One wait is
// enough: a thread that stores into a stage has passed the wait of the step between, and by then all threads had
// finished reading that stage.
#include "common.cuh"

constexpr int THREADS = (BM / TM) * (BN / TN);
constexpr int BLOCKS = THREADS == 128 ? 3 : 512 / THREADS;  // on a multiprocessor at once: registers must leave room
constexpr int LANE = Vector<accumulator>::SIZE;
constexpr int ROW_RUN = BM * BK / THREADS, COLUMN_RUN = BN * BK / THREADS;  // numbers that a thread fetches in a step
static_assert(TM % LANE == 0 && TN % LANE == 0, "a thread's outputs come in runs of LANE");
static_assert(ROW_RUN * THREADS == BM * BK && COLUMN_RUN * THREADS == BN * BK, "threads share the fetching evenly");

struct Stage {
  accumulator rows[BK][BM + LANE];  // the LANE more spread the rows over the banks of shared memory
  accumulator columns[BK][BN + LANE];
};
struct Shared {
  Stage stage[2];
};

// The place of number i of thread t among the `threads` × COUNT neighbours.
template <int COUNT>
__device__ __forceinline__ constexpr int owned(int t, int threads, int i) {
  return i / LANE * threads * LANE + t * LANE + i % LANE;
}

// A thread's place in the tile, counted in TM rows and TN columns. Threads of a warp are neighbours along the rows.
__device__ __forceinline__ Tile place_in_tile(int thread) { return {thread % (BM / TM), thread / (BM / TM)}; }

template <int COUNT>
__device__ __forceinline__ void read_owned(accumulator (&b)[COUNT], const accumulator* s_row, int t, int threads) {
#pragma unroll
  for (int i = 0; i < COUNT; i += LANE)
    *reinterpret_cast<Vector<accumulator>*>(b + i) =
        *reinterpret_cast<const Vector<accumulator>*>(s_row + owned<COUNT>(t, threads, i));
}

// acc += rowsᵀ · columns
__device__ __forceinline__ void multiply(accumulator (&acc)[TM][TN], const Stage& stage, Tile place) {
#pragma unroll
  for (int k = 0; k < BK; ++k) {
    alignas(16) accumulator b_row[TM], b_column[TN];
    read_owned(b_row, stage.rows[k], place.row, BM / TM);
    read_owned(b_column, stage.columns[k], place.column, BN / TN);
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
      for (int j = 0; j < TN; ++j) acc[i][j] = fma(b_row[i], b_column[j], acc[i][j]);
  }
}

// Load RUN numbers that lie `stride` apart, the first `count` of them; zeros beyond. With VECTOR they lie together, p
// is aligned and count is a multiple of a vector, so they come 16 bytes at a time (if a run is that long).
template <int VECTOR, int RUN>
__device__ __forceinline__ void load_run(TYPE (&b)[RUN], const TYPE* p, offset_t stride, int count) {
  constexpr int WIDTH = Vector<TYPE>::SIZE;
  if (VECTOR && RUN % WIDTH == 0) {
#pragma unroll
    for (int i = 0; i < RUN; i += WIDTH)
      *reinterpret_cast<Vector<TYPE>*>(b + i) =
          i < count ? *reinterpret_cast<const Vector<TYPE>*>(p + i) : Vector<TYPE>{};
  } else {
#pragma unroll
    for (int i = 0; i < RUN; ++i) b[i] = i < count ? p[i * stride] : TYPE{};
  }
}

// Store LANE sums, rounded once, `stride` apart, the first `count` of them; as one where they lie together.
template <typename T>
__device__ __forceinline__ void store_run(T* p, long long stride, int count, const accumulator* b) {
  struct alignas(sizeof(T) * LANE) Packed {
    T at[LANE];
  } packed;
#pragma unroll
  for (int i = 0; i < LANE; ++i) packed.at[i] = narrow<T>(b[i]);
  if (stride == 1 && count >= LANE && reinterpret_cast<size_t>(p) % sizeof(Packed) == 0) {
    *reinterpret_cast<Packed*>(p) = packed;
  } else {
#pragma unroll
    for (int i = 0; i < LANE; ++i)
      if (i < count) p[i * stride] = packed.at[i];
  }
}
