// Pixels of a batch, counted on in steps of BK without a division: (n, z, p, q) are the digits of a number, to which those
// of BK are added (`pixel_step`), carrying at most one from each to the next.
#include "common.cuh"

// A pixel of the batch, as digits: image n and coordinates.
struct PixelCounter {
  int n;
  Pixel at;
};

__device__ __forceinline__ PixelCounter counter_of(long long pixel, const int (&size)[3]) {
  const int image = size[0] * size[1] * size[2];
  return {static_cast<int>(pixel / image), split_pixel(pixel % image, size[1], size[2])};
}

__device__ __forceinline__ void advance(PixelCounter& counter, const int (&step)[4], const int (&size)[3]) {
  counter.n += step[0];
  counter.at.d += step[1];
  counter.at.h += step[2];
  counter.at.w += step[3];
  if (counter.at.w >= size[2]) counter.at.w -= size[2], ++counter.at.h;
  if (counter.at.h >= size[1]) counter.at.h -= size[1], ++counter.at.d;
  if (counter.at.d >= size[0]) counter.at.d -= size[0], ++counter.n;
}
