// Instructions that CUDA C has no function for, each in one small function. All but copies and stores are *collective*:
// the 32 threads of a warp execute them together, and each holds a share (a fragment) of the matrices.
//
//   copy_16       16 bytes, global → shared memory, without passing through registers (cp.async; from sm_80)
//   copy          the same of 8 or 4 bytes; of 2 through a register
//   load_16       16 bytes, global memory → registers (ld.v4)
//   store_16      16 bytes, registers → global memory, as one (st.v4)
//   put_16        16 bytes, registers → shared memory, as one
//   ldmatrix      four 8 × 8 matrices of 16-bit elements, shared memory → fragments; each row has its own address
//   exchange      a value of the lane whose number differs in one bit (shfl.sync)
//   multiply      acc[16 × 8] += a[16 × k] · b[k × 8] on tensor cores (mma.sync), k being 32 bytes of operand: 16
//                 elements of float16 or bfloat16, 8 of float32, which is cut off to TF32
//
// A fragment, with g = lane / 4 and t = lane % 4. Each register is 4 bytes: two 16-bit elements or one float.
//
//   a[0], a[1]    rows g and g + 8, bytes 4t … 4t + 3 of the row's first 16;  a[2], a[3]  the same of its second 16
//   b[0], b[1]    column g, bytes 4t … 4t + 3 of the column's first and second 16
//   acc[0 … 3]    (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
//
// So ldmatrix, which hands the thread bytes 4t … 4t + 3 of row g of each matrix, makes fragments of either type.
#include "common.cuh"

#ifdef HOST_CHECK
#include <ptx_emulated.h>
#else

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// ---- copies: started, tied into groups, waited for ------------------------------------------------------------------

// 16 bytes of global memory, or zeros if not `inside`; then `from` is not read.
__device__ __forceinline__ uint4 load_16(const void* from, bool inside) {
  uint4 v;
  asm volatile(
      "{.reg .pred p; setp.ne.u32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
      "@p ld.global.v4.b32 {%0,%1,%2,%3}, [%4];}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(__cvta_generic_to_global(from)), "r"(unsigned(inside)));
  return v;
}

#if __CUDA_ARCH__ >= 800
constexpr bool ASYNCHRONOUS = true;
// Start copying 16 bytes, or writing 16 bytes of zeros if not `inside`; then `from` is not read.
__device__ __forceinline__ void copy_16(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}
// As copy_16, of fewer bytes.
template <int BYTES>
__device__ __forceinline__ void copy(void* to, const void* from, bool inside) {
  if constexpr (BYTES == 16) {
    copy_16(to, from, inside);
  } else if constexpr (BYTES == 2) {  // which cp.async has not
    *static_cast<unsigned short*>(to) = inside ? *static_cast<const unsigned short*>(from) : 0;
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;"
                 :
                 : "r"(shared_address(to)), "l"(from), "r"(inside ? BYTES : 0), "n"(BYTES)
                 : "memory");
  }
}
// The copies that this thread has started since its last group become a group.
__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until all but this thread's NEWEST latest groups have arrived. Others' copies are seen only after a barrier.
template <int NEWEST>
__device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory");
}
#else
constexpr bool ASYNCHRONOUS = false;
// Before sm_80 a copy passes through registers and is over when it has been stored.
__device__ __forceinline__ void copy_16(void* to, const void* from, bool inside) {
  *static_cast<uint4*>(to) = load_16(from, inside);
}
template <int BYTES>
__device__ __forceinline__ void copy(void* to, const void* from, bool inside) {
  typedef Run<BYTES / 2, unsigned short> Bytes;
  *static_cast<Bytes*>(to) = inside ? *static_cast<const Bytes*>(from) : Bytes{};
}
__device__ __forceinline__ void close_group() {}
template <int NEWEST>
__device__ __forceinline__ void wait_for_groups() {}
#endif

// An assignment would do the same, but compilers have been seen to split it.
__device__ __forceinline__ void store_16(void* to, uint4 v) {
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

__device__ __forceinline__ void put_16(void* to, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};"
               :
               : "r"(shared_address(to)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// ---- fragments ------------------------------------------------------------------------------------------------------

// Lane 8i + j gives the address of row j (16 bytes) of matrix i; r[i] becomes bytes 4t … 4t + 3 of its row g.
__device__ __forceinline__ void ldmatrix(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}
// As ldmatrix, with each matrix transposed on the way: r[i] becomes the elements of its rows 2t and 2t + 1 in column g.
__device__ __forceinline__ void ldmatrix_transposed(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}

__device__ __forceinline__ float exchange(float v, int bit) { return __shfl_xor_sync(~0u, v, bit); }

// ---- products; the last argument only says which type the operands have ---------------------------------------------

__device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, float16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else  // sm_75: in two halves
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}
#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, float) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
#endif
