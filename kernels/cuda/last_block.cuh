// A sum that is split over blocks, added by the one of them that comes last: no launch of its own.
//
//   sums = Σ_split of what the blocks of a tile have, in the order of the splits, whichever block adds
//
// Each block of a tile leaves its sums in the workspace, then counts itself. The one that counts the last knows that all
// the others are there, reads them all, its own too, and puts the counter back to 0 for the next launch. Only integers
// are added atomically, so the same inputs give the same bits.
//
//   workspace  →  [tiles][splits][BM · BN + BM]: every thread's sums as it holds them, then the bias's
//   counters   →  [tiles], all 0 before and after
//
// Why the others' sums are seen: a barrier orders the stores of a block's threads before the atomic of one of them,
// which releases them to the GPU and acquires those of the blocks that came before; after the next barrier all threads
// of the last block may read them.
//
// The file that includes this one says how many THREADS a block has.

constexpr bool LAST_ADDS = BM * BN <= 64 * THREADS;  // with more sums in a thread there are no registers to add them in
constexpr int PART = BM * BN + BM;  // of a workspace: one split of one tile

// One block more has come; how many had before.
__device__ __forceinline__ int count_arrival(int* p_arrived) {
#ifdef HOST_CHECK
  return (*p_arrived)++;
#else
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(p_arrived))
               : "memory");
  return before;
#endif
}

// Whether this block is the last of a tile's to come. s_before: anywhere in shared memory, which is free for it.
__device__ __forceinline__ bool comes_last(int* p_arrived, int splits, int& s_before) {
  __syncthreads();  // every thread has left its sums
  if (threadIdx.x == 0) {
    s_before = count_arrival(p_arrived);
    if (s_before == splits - 1) *p_arrived = 0;
  }
  __syncthreads();
  const bool last = s_before == splits - 1;
  __syncthreads();  // shared memory is free for another use
  return last;
}

// Leave a thread's sums at p, a part of the workspace, 16 bytes at a time.
template <int COUNT>
__device__ __forceinline__ void leave(accumulator* p, const accumulator (&sums)[COUNT]) {
  using Chunk = Vector<accumulator>;
#pragma unroll
  for (int i = 0; i < COUNT; i += Chunk::SIZE) {
    Chunk chunk;
#pragma unroll
    for (int e = 0; e < Chunk::SIZE; ++e) chunk.at[e] = sums[i + e];
    reinterpret_cast<Chunk*>(p)[i / Chunk::SIZE * THREADS + threadIdx.x] = chunk;
  }
}

// sums = Σ_split of what was left at p.
template <int COUNT>
__device__ __forceinline__ void add_parts(accumulator (&sums)[COUNT], const accumulator* p, int splits) {
  using Chunk = Vector<accumulator>;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) sums[i] = 0;
#pragma unroll 1
  for (int split = 0; split < splits; ++split, p += PART) {
#pragma unroll
    for (int i = 0; i < COUNT; i += Chunk::SIZE) {
      const Chunk chunk = reinterpret_cast<const Chunk*>(p)[i / Chunk::SIZE * THREADS + threadIdx.x];
#pragma unroll
      for (int e = 0; e < Chunk::SIZE; ++e) sums[i + e] += chunk.at[e];
    }
  }
}

// Σ_split of one number of each part.
__device__ __forceinline__ accumulator add_numbers(const accumulator* p, int splits) {
  accumulator sum = 0;
  for (int split = 0; split < splits; ++split) sum += p[wide(split) * PART];
  return sum;
}
