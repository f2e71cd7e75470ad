// CUDA C on the CPU: the part of CUDA that the kernels need, so that g++ compiles their very text.
//
// A CUDA thread is a fiber (fibers.cpp): it runs until it waits for others, at __syncthreads or at an instruction of a
// warp, and then the next one runs. The blocks of a launch run one after the other. Everything happens on one thread of
// the operating system, so the order is known and can be chosen. The fibers and their waits are announced to the thread
// sanitizer, which reports what would be a race on a GPU.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#define HOST_CHECK 1
#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Set by fibers.cpp whenever it goes from one fiber to another.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// The shared memory of the block that runs. Filled with NaN before each block; with the address sanitizer, what lies
// beyond the size given at the launch may not be touched.
extern unsigned char shared_memory[];

namespace host {

void sync_block();
void sync_warp(unsigned mask);  // until all lanes in the mask have come
unsigned lane();
// 32 lanes × 8 words, in which the lanes of this thread's warp exchange values. The next wait of the warp gives other
// ones, so that a lane that is early at the next instruction overwrites nothing that another still reads.
uint64_t* warp_slots();
[[noreturn]] void fail(const char* what);

// `order`: 0 threads run by their number, 1 from the last to the first, else shuffled with this seed.
void launch(dim3 grid, dim3 block, unsigned shared, const std::function<void()>& kernel, unsigned order);

inline float half_to_float(unsigned short bits) {
  _Float16 half;
  std::memcpy(&half, &bits, sizeof half);
  return static_cast<float>(half);
}
inline unsigned short float_to_half(float v) {  // rounds to the nearest, ties to even
  const _Float16 half = static_cast<_Float16>(v);
  unsigned short bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}

template <typename... A, size_t... I>
void call(void (*kernel)(A...), void** parameters, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<A>*>(parameters[I])...);
}

// As cuLaunchKernel: parameters[i] points to the value of the kernel's parameter i.
template <typename... A>
void launch_with(void (*kernel)(A...), unsigned grid, unsigned block, unsigned shared, void** parameters,
                 unsigned order) {
  const auto run = [=] { call(kernel, parameters, std::index_sequence_for<A...>()); };
  launch({grid, 1, 1}, {block, 1, 1}, shared, run, order);
}

}  // namespace host

// The function by which the harness calls a kernel.
#define HOST_KERNEL(name)                                                                                              \
  extern "C" __attribute__((visibility("default"))) void launch_##name(unsigned grid, unsigned block, unsigned shared, \
                                                                       void** parameters, unsigned order) {            \
    host::launch_with(name, grid, block, shared, parameters, order);                                                   \
  }

inline void __syncthreads() { host::sync_block(); }
inline void __syncwarp(unsigned mask = ~0u) { host::sync_warp(mask); }

inline unsigned __float_as_uint(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
template <typename T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
using std::fma;
