// The phases of grad_input: a phase has the pixels of the input that lie at one place modulo the stride. The formulas
// are in simt_grad_input.cu.
#include "common.cuh"

struct Phase {
  int offset[3];  // a: the pixels are a + u·j
  int size[3];  // how many on each axis
  int taps[3], first[3];  // how many taps, and r0
  int base[3];  // tap r0 of pixel j falls at j + base
};

// Phase number `phase` of the stride[0]·stride[1]·stride[2].
__device__ __forceinline__ Phase phase_of(int phase, const Conv& a) {
  const Pixel at = split_pixel(phase, a.stride[1], a.stride[2]);
  Phase result = {{at.d, at.h, at.w}, {}, {}, {}, {}};
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const int u = a.stride[axis], g = a.common[axis], offset = result.offset[axis];
    const int phi = (offset + a.pad[axis]) % u, step = u / g;
    const int first = phi / g * a.inverse[axis] % step;
    result.size[axis] = ceil_div(max(a.in[axis] - offset, 0), u);
    result.taps[axis] = phi % g == 0 ? ceil_div(max(a.filter[axis] - first, 0), step) : 0;
    result.first[axis] = first;
    result.base[axis] = (offset + a.pad[axis] - first * a.dilation[axis]) / u;  // exact where there are taps
  }
  return result;
}

// The input pixel that is pixel j of the phase.
__device__ __forceinline__ Pixel pixel_of(const Phase& phase, Pixel j, const Conv& a) {
  return {phase.offset[0] + a.stride[0] * j.d, phase.offset[1] + a.stride[1] * j.h,
          phase.offset[2] + a.stride[2] * j.w};
}
