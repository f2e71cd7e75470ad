// The loop that planes_forward and planes_grad_input share: 1 × 1 convolution of contiguous tensors on tensor cores, for
// each image a matrix product whose columns are its pixels,
//
//   result[n, row, m] = Σ_term w[row, term] · source[n, term, m]
//
// The pixels of a plane are neighbours in memory, so a tile of terms × pixels is copied in pieces along them and
// transposed while it is taken into registers (tensor_tile.cuh); the result is stored in pieces along them.
//
//   block   →  group, image, then a tile of BM rows × BN pixels; row blocks vary fastest: they share the source in the
//              L2 cache
//   warp    →  WM × WN of them
//   thread  →  copies PIECE bytes of the source, 16 of w (A_VECTOR) or elements; stores PIECE bytes of a row
//   masks   →  zeros for terms and pixels beyond the last; at the store rows and pixels beyond the last
#include "tensor_tile.cuh"

using SourceTile = SharedTile<DOWN, BN>;
constexpr int EACH = PIECE / int(sizeof(TYPE));  // pixels of a piece

// Start filling a tile of the source: row r from p + r · channel, zeros where there are no such channels or pixels.
__device__ __forceinline__ void stage_pixels(unsigned char* tile, const TYPE* p, offset_t channel, int channels,
                                             int pixels) {
  constexpr int ACROSS = BN / EACH, DOWN_EACH = THREADS / ACROSS;  // rows that the threads copy at a time
  static_assert(THREADS % ACROSS == 0 && BK % DOWN_EACH == 0, "every thread copies the same pixels of several rows");
  const int row = threadIdx.x / ACROSS, pixel = threadIdx.x % ACROSS * EACH;
  const int m_rows = pixel < pixels ? channels - row : 0;
  const TYPE* from = p + row * channel + pixel;
#pragma unroll
  for (int r = 0; r < BK; r += DOWN_EACH, from += DOWN_EACH * channel) {
    unsigned char* to = tile + SourceTile::place(row + r, pixel / UNIT) + pixel % UNIT * int(sizeof(TYPE));
    copy<PIECE>(to, r < m_rows ? from : p, r < m_rows);  // the address must be valid even so
  }
}

// Which tile a block owns: rows and pixels from these on, of an image.
struct PlaneTile {
  int row, pixel;
  offset_t n, group;
};

__device__ __forceinline__ PlaneTile plane_tile(int rows, int pixels, const Conv& a) {
  const int row_blocks = ceil_div(rows, BM), pixel_blocks = ceil_div(pixels, BN);
  const int block = blockIdx.x / row_blocks / pixel_blocks;
  return {int(blockIdx.x % row_blocks) * BM, int(blockIdx.x / row_blocks % pixel_blocks) * BN, block % a.N,
          block / a.N};
}

// acc += the sum over all terms. p_source: at the tile's first pixel, and p_w at its first row, both at term 0 of the
// group; left: how many rows, terms and pixels there are from there on. LEFT: how the terms lie in w's tiles, whose rows
// in memory are filters: ALONG if these are the rows, DOWN if they are summed.
template <Terms LEFT>
__device__ __forceinline__ void planes_product(Sums& acc, unsigned char* shared, const TYPE* p_source, offset_t channel,
                                               const TYPE* p_w, offset_t w_row, offset_t w_term, int rows, int terms,
                                               int pixels) {
  constexpr int W_WIDTH = LEFT == ALONG ? BK : BM, W_ROWS = LEFT == ALONG ? BM : BK;
  constexpr int W_BYTES = W_ROWS * SharedTile<LEFT, W_WIDTH>::PITCH, SOURCE_BYTES = BK * SourceTile::PITCH;
  unsigned char* const sources = shared + STAGES * W_BYTES;
  const auto start_copying = [&](int i) {
    const int term = i * BK;
    unsigned char* const w = shared + i % STAGES * W_BYTES;
    if constexpr (LEFT == ALONG) {
      stage<ALONG, BK, A_VECTOR>(w, BM, p_w + term * w_term, terms - term, w_term,
                                 [&](int r) -> offset_t { return r < rows ? r * w_row : -1; });
    } else {
      stage<DOWN, BM, A_VECTOR>(w, BK, p_w + term * w_term, rows, w_row,
                                [&](int r) -> offset_t { return term + r < terms ? r * w_term : -1; });
    }
    stage_pixels(sources + i % STAGES * SOURCE_BYTES, p_source + term * channel, channel, terms - term, pixels);
  };

  // ---- STAGES − 1 steps are being copied while one is multiplied
  const int steps = ceil_div(terms, BK);
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; ++i) {
    if (i < steps) start_copying(i);
    close_group();
  }
  for (int i = 0; i < steps; ++i) {
    wait_for_groups<STAGES - 2>();
    __syncthreads();  // step i has arrived, and step i − 1, whose place the next one takes, has been multiplied
    if (i + STAGES - 1 < steps) start_copying(i + STAGES - 1);
    close_group();
    const unsigned char* const w = shared + i % STAGES * W_BYTES;
#pragma unroll
    for (int k = 0; k < K_STEPS; ++k) {
      unsigned left[MI][4];
#pragma unroll
      for (int m = 0; m < MI; ++m) {
        if constexpr (LEFT == ALONG) {
          left_along(left[m], w, warp_row() + 16 * m + lane() % 16, k);
        } else {
          left_down(left[m], w, warp_row() + 16 * m, k);
        }
      }
      multiply_piece<DOWN>(acc, left, sources + i % STAGES * SOURCE_BYTES, k, [](int) { return true; });
    }
  }
  wait_for_groups<0>();
  __syncthreads();  // shared memory is free for another use
}

// Where `store` puts the rows of a tile, `channel` apart: a table [BM], negative beyond the last row.
__device__ __forceinline__ const offset_t* places_of_rows(unsigned char* shared, offset_t channel, int rows) {
  offset_t* const to = reinterpret_cast<offset_t*>(shared + SLABS);
  for (int row = threadIdx.x; row < BM; row += THREADS) to[row] = row < rows ? row * channel : -1;
  __syncthreads();
  return to;
}
