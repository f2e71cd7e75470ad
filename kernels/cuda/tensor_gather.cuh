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
//   shared memory  →  source tiles (STAGES of BM rows, or two halos), STAGES tiles of w, a `Row` for each row of source
//   masks          →  rows beyond the last pixel, taps outside the image, channels and columns beyond the last: zeros
#include "tensor_walk.cuh"

// RIGHT: how the terms lie in w's tiles, whose rows are filters: ALONG if these are the columns, DOWN if they are
// summed.
template <Terms RIGHT>
__device__ __forceinline__ void gather_product(Sums& acc, unsigned char* shared, const Operand& x, const Operand& w,
                                               const Walk& walk, int row_block, int column, int columns, int channels,
                                               const Conv& a) {
  constexpr int RIGHT_WIDTH = RIGHT == ALONG ? BK : BN, RIGHT_ROWS = RIGHT == ALONG ? BN : BK;
  using Left = Share<ALONG, BM, BK>;
  using Right = Share<RIGHT, RIGHT_ROWS, RIGHT_WIDTH>;
  constexpr int ROW = Left::PITCH, RIGHT_BYTES = RIGHT_ROWS * Right::PITCH;
#if HALO
  const Halo halo = halo_of(walk, a);
  const int rows = halo.rows(a);
  constexpr int SOURCES = 2;
#else
  constexpr int rows = BM, SOURCES = STAGES;
#endif
  const int source_bytes = rows * ROW;
  const int o_right = ceil_div(SOURCES * source_bytes, 128) * 128;  // of w's tiles in shared memory
  Row* const table = reinterpret_cast<Row*>(shared + o_right + STAGES * RIGHT_BYTES);  // [rows]

  // ---- every row of source; found once, and looked up once or in every step
  for (int row = threadIdx.x; row < rows; row += THREADS) {
    const Place first = first_tap_of_row(row_block, row, walk, a);
    const Pixel at = first.at;
    table[row] = Row::of(first.n * x.row + at.d * x.axis[0] + at.h * x.axis[1] + at.w * x.axis[2], first, walk, a);
  }
#if PACK > 1
  for (int chunk = threadIdx.x; chunk < STAGES * RIGHT_BYTES / 16; chunk += THREADS)
    reinterpret_cast<Vector<TYPE>*>(shared + o_right)[chunk] = {};
#endif
  __syncthreads();

  // ---- what a thread copies of every step
  constexpr bool KEPT = A_VECTOR && TAP_MASKS && !HALO && !WIDE;  // rows stay in registers
  constexpr bool W_KEPT = B_VECTOR && PACK == 1;
  const Left left_share;
  const Right right_share;
  offset_t o_row[Left::COUNT];
  unsigned missed[Left::COUNT];
  if constexpr (KEPT) {
#pragma unroll
    for (int j = 0; j < Left::COUNT; ++j) {
      const Row row = table[left_share.row(j)];
      o_row[j] = row.offset + left_share.chunk * UNIT, missed[j] = row.missed;
    }
  }
  const offset_t w_term = RIGHT == ALONG ? w.channel : w.row;
  const TYPE* const p_w = opaque(w.p + (RIGHT == ALONG ? column * w.row : column * w.channel) +
                                 (W_KEPT ? right_share.first * w.row + right_share.chunk * UNIT : 0));

  // What changes only where a row of taps begins: offsets, and what there is of x and of w.
  Step copied = {0, 0, 0, 0, 0};
  offset_t o_x, o_w;
  unsigned bits, m_w;
  const auto begin_row_of_taps = [&] {
    const int left = copied.t < walk.taps[0] ? channels - copied.c : 0;  // terms
    o_x = copied.c * x.channel + copied.t * (a.step[0] * x.axis[0]) + copied.r * (a.step[1] * x.axis[1]);
    o_w = copied.c * w_term + copied.t * w.axis[0] + copied.r * w.axis[1];
    bits = left_share.chunk * UNIT < left ? Row::across(copied, walk) : Row::NO_TERM;
    m_w = right_share.within(RIGHT == ALONG ? columns - column : left, RIGHT == ALONG ? left : columns - column);
  };
  begin_row_of_taps();
  const auto next_to_copy = [&] {
    o_x += a.step[2] * x.axis[2], o_w += w.axis[2];
    if (copied.advance(walk.taps, channels)) begin_row_of_taps();
  };

  [[maybe_unused]] uint4 held_x[Left::COUNT], held_w[Right::COUNT];
  // Start copying the step to the stage at `slot`: part `part` of what comes in vectors, and the rest at once.
  const auto start_copying_part = [&](int slot, int part, int parts) {
    if constexpr (KEPT) {
      const TYPE* const p = opaque(x.p + o_x);
      const unsigned step = bits | Row::along_w(copied);
#pragma unroll
      for (int j = 0; j < Left::COUNT; ++j)
        left_share.copy(shared + slot * source_bytes, j, p + o_row[j], !(missed[j] & step), part, parts, held_x[j]);
    }
    if constexpr (W_KEPT) {
      const TYPE* const p = opaque(p_w + o_w);
#pragma unroll
      for (int j = 0; j < Right::COUNT; ++j)
        right_share.copy(shared + o_right + slot * RIGHT_BYTES, j, p + j * Right::APART * w.row, m_w & 3u << 2 * j,
                         part, parts, held_w[j]);
    }
  };
  const auto start_copying_rest = [&](int slot) {
    if (copied.t >= walk.taps[0]) return;  // there is no such step
    const int left = channels - copied.c;
#if HALO
    unsigned char* const source = shared + copied.window % 2 * source_bytes;
    const bool begins = copied.r == 0 && copied.s == 0;  // a window
#else
    unsigned char* const source = shared + slot * source_bytes;
    constexpr bool begins = true;
#endif
    if constexpr (HALO && A_VECTOR) {
      if (begins) {
        const TYPE* const p = opaque(x.p + o_x + left_share.chunk * UNIT);
#pragma unroll 1
        for (int row = left_share.first, to = left_share.place; row < rows; row += Left::APART, to += Left::APART * ROW)
          copy_16(source + to, p + table[row].offset, table[row].meets(bits, copied, walk, a));
      }
    } else if constexpr (!KEPT) {
      const unsigned step = Row::across(copied, walk) | Row::along_w(copied);
      if (begins)
        stage<ALONG, BK, A_VECTOR>(source, rows, x.p, left, x.channel, [&](int row) -> offset_t {
          return table[row].meets(step, copied, walk, a) ? table[row].offset + o_x : -1;
        });
    }
    [[maybe_unused]] unsigned char* const right = shared + o_right + slot * RIGHT_BYTES;
#if PACK > 1
    stage_pack<RIGHT, RIGHT_WIDTH, B_VECTOR>(right, w.p + o_w, w.row, w.channel);
#else
    if constexpr (!W_KEPT) {
      const int filters = RIGHT == ALONG ? columns - column : left;
      stage<RIGHT, RIGHT_WIDTH, false>(right, RIGHT_ROWS, p_w + o_w, RIGHT == ALONG ? left : columns - column,
                                       w.channel,
                                       [&](int row) -> offset_t { return row < filters ? row * w.row : -1; });
    }
#endif
  };

  // ---- fragments: places of this lane's rows in the tiles of the step that is being multiplied
#if HALO
  int left_row[MI];  // of the halo, for the first tap
#pragma unroll
  for (int i = 0; i < MI; ++i)
    left_row[i] = halo.row(split_pixel(warp_row() + 16 * i + lane() % 16, a.window_h, a.window_w));
  const int first_shift = -(halo.back_h * halo.width + halo.back_w);
  int o_left[MI], r = 0, s = 0, shift = first_shift, source = 0;  // of the step whose fragments are taken next
#else
  const int left_first = opaque(left_lane(warp_row() + lane() % 16));
  int o_left;
#endif
  const int right_first = opaque(o_right + right_lane<RIGHT>());
  int o_tile_of_w;
  const auto begin_step = [&](int slot) {
#if HALO
#pragma unroll
    for (int i = 0; i < MI; ++i) o_left[i] = source + left_lane(left_row[i] + shift);
    shift += a.step[2];
    if (++s == walk.taps[2]) {
      s = 0, ++r;
      if (r == walk.taps[1]) r = 0, source = source_bytes - source;
      shift = first_shift + r * a.step[1] * halo.width;
    }
#else
    o_left = left_first + slot * source_bytes;
#endif
    o_tile_of_w = right_first + slot * RIGHT_BYTES;
  };
  const auto wanted = [](int pair, int k) {
    constexpr int PIECE = 2 * UNIT;  // of channels in forward, of filters in grad_input
    const int c = warp_column() + 16 * pair;
    return RIGHT == ALONG ? share_group<16, PIECE>(c, PIECE * k) : share_group<PIECE, 16>(PIECE * k, c);
  };
  constexpr int AHEAD = K_STEPS > 1;  // left fragments come a piece of terms ahead, where a step has several
  unsigned left[1 + AHEAD][MI][4], right[NI / 2][4];
  const auto take_left = [&](int k) {
#pragma unroll
    for (int i = 0; i < MI; ++i) {
#if HALO
      ldmatrix(left[k % (1 + AHEAD)][i], shared + (o_left[i] ^ 32 * k));
#else
      ldmatrix(left[k % (1 + AHEAD)][i], shared + (o_left ^ 32 * k) + 16 * i * ROW);
#endif
    }
  };
  const auto take_right = [&](int pair, int k) {
    if (wanted(pair, k)) right_fragment<RIGHT>(right[pair], shared, o_tile_of_w, pair, k);
  };

  // ---- the loop: STAGES − 1 steps are being copied while one is multiplied
  const int steps = walk.taps[0] * walk.taps[1] * walk.taps[2] * ceil_div(channels, BK);
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; ++i) {
    if (i < steps) start_copying_rest(i % STAGES), start_copying_part(i % STAGES, 0, 1), next_to_copy();
    close_group();
  }
  wait_for_groups<STAGES - 2>();
  __syncthreads();  // step 0 has arrived
  begin_step(0);
  take_left(0);
#pragma unroll
  for (int pair = 0; pair < NI / 2; ++pair) take_right(pair, 0);
  int slot = 0, free = STAGES - 1;
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    start_copying_rest(free);
#pragma unroll
    for (int k = 0; k < K_STEPS; ++k) {
      start_copying_part(free, k, K_STEPS);
      if (k == K_STEPS - 1) {
        next_to_copy();
        close_group();
        wait_for_groups<STAGES - 2>();
        __syncthreads();  // step i + 1 has arrived, and fragments of step i, whose place is free, have been taken
        free = slot;
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        begin_step(slot);
      }
      const int next = (k + 1) % K_STEPS;
      if (AHEAD) take_left(next);
#pragma unroll
      for (int pair = 0; pair < NI / 2; ++pair) {
        if (wanted(pair, k)) multiply_pair(acc, pair, left[k % (1 + AHEAD)], right[pair]);
        take_right(pair, next);
      }
      if (!AHEAD) take_left(next);
    }
  }
  wait_for_groups<0>();
  __syncthreads();  // shared memory is free for another use
}
