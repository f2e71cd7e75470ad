// The second kernel of grad_weight where the pixels were split: the partial sums, added in the order of the splits.
//
//   gw[k, c, tap] = Σ_split partial[split][tap, k, c]        gb[k] = Σ_split partial_gb[split][k]        one rounding
//
//   thread  →  one element of gw; threads beyond the last, if the bias's gradient is wanted, one of gb
//
// Neighbouring threads write neighbours: where channels are not side by side, as in a contiguous result, its taps are.
#include "common.cuh"

constexpr int SUM_THREADS = 256;

extern "C" __global__ void __launch_bounds__(SUM_THREADS)
sum_partials(const void* p_partial, TYPE* p_gw, TYPE* p_gb, const Conv a) {  // gb may be null
  const long long i = wide(blockIdx.x) * SUM_THREADS + threadIdx.x;
  const long long filters = wide(a.K) * a.groups;
  const long long size = filters * a.C * a.filter[0] * a.filter[1] * a.filter[2];
  const accumulator* p = static_cast<const accumulator*>(p_partial);
  accumulator sum = 0;
  if (i < size) {
    const long long plane = filters * a.C;
    const int taps = a.filter[0] * a.filter[1] * a.filter[2];
    const bool taps_fast = a.w[1] != 1;
    const long long of_plane = taps_fast ? i / taps : i % plane;  // filter and channel
    const int at_tap = taps_fast ? i % taps : i / plane;
    p += at_tap * plane + of_plane;
    for (int split = 0; split < a.splits; ++split) sum += p[split * size];
    const int c = of_plane % a.C;
    const int k = of_plane / a.C;
    const Pixel tap = split_pixel(at_tap, a.filter[1], a.filter[2]);
    p_gw[offset_of(k, tap, a.w) + c * a.w[1]] = narrow<TYPE>(sum);
  } else if (p_gb && i < size + filters) {
    p += a.splits * size + (i - size);
    for (int split = 0; split < a.splits; ++split) sum += p[split * filters];
    p_gb[i - size] = narrow<TYPE>(sum);
  }
}
