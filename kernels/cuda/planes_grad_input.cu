// Gradient of the input of a 1 × 1 convolution of contiguous tensors on tensor cores: for each image a product of matrices,
//
//   gx[n, c, m] = Σ_k w[k, c] · gy[n, k, m]        m counts the pixels of a plane
//
// Rows are the channels c, columns the pixels; see planes.cuh for the loop, and for who computes what.
#include "planes.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
planes_grad_input(const TYPE* __restrict__ p_gy, const TYPE* __restrict__ p_w, TYPE* __restrict__ p_gx, const Conv a) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const int pixels = a.in[0] * a.in[1] * a.in[2];
  const auto [row, pixel, n, group] = plane_tile(a.C, pixels, a);
  const offset_t k = group * a.K, c = group * a.C + row, gy_k = offset_t(a.y[1]), gx_c = offset_t(a.x[1]);

  Sums acc = {};
  planes_product<DOWN>(acc, shared_memory, p_gy + n * offset_t(a.y[0]) + k * gy_k + pixel, gy_k,
                       p_w + k * offset_t(a.w[0]) + row * offset_t(a.w[1]), offset_t(a.w[1]), offset_t(a.w[0]),
                       a.C - row, a.K, pixels - pixel);
  const auto finish = [](float*, int, int, Nothing) {};
  store<true, EACH>(acc, shared_memory, p_gx + n * offset_t(a.x[0]) + c * gx_c + pixel,
                    places_of_rows(shared_memory, gx_c, a.C - row), pixels - pixel, 1, finish);
}
