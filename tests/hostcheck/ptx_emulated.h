// The instructions of kernels/cuda/ptx.cuh in plain C++, for the host check. A warp's threads are fibers: for a
// collective each puts its share into its warp's slots (eight 64-bit words a lane), all meet, and each takes what it
// needs.
//
// Stricter than the hardware on purpose:
// - a copy is made as late as the rules allow, at the wait for its group, and until then the destination holds NaN:
//   data read without the wait are wrong, and the thread sanitizer sees writes at both ends of the time in which the
//   hardware may write; a copy to where another is under way, which may arrive after it, is refused;
// - ldmatrix refuses rows that are not multiples of 16 bytes and matrices whose rows meet in a bank of shared memory;
// - TF32 operands are cut off to 10 bits of fraction, so that a result that needs more is wrong.
#pragma once
#include <deque>
#include <vector>

#define NOT_INLINE __attribute__((noinline))  // a kernel has hundreds of calls

namespace host {
struct Copy {
  void* to;
  const void* from;
  bool inside;
  int bytes;
};
struct Copies {
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

// Copies under way of the calling thread. A thread that ends with copies under way is a fault.
inline Copies& copies() {
  static Copies of_thread[1024];
  return of_thread[(threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x];
}
// Whether some thread's copy to some of these bytes of shared memory is under way; and set whether it is from `now` on.
__attribute__((noinline, no_sanitize_thread)) inline bool under_way(const void* to, int bytes, bool now) {
  static bool flags[1 << 16];  // for every 4 bytes
  bool before = false;
  for (int i = 0; i < bytes / 4; ++i) {
    bool& flag = flags[((const unsigned char*)to - shared_memory) / 4 + i];
    before |= flag;
    flag = now;
  }
  return before;
}
inline void check_aligned(const void* p, const char* what, int bytes = 16) {
  if ((uintptr_t)p % bytes) fail(what);
}
// The slots of one collective; `meet` comes between putting and taking.
struct Slots {
  uint64_t* const slots = warp_slots();
  void put(int word, uint64_t value) const { slots[lane() * 8 + word] = value; }
  uint64_t of(int other, int word) const { return slots[other * 8 + word]; }
  void meet() const { sync_warp(~0u); }
};

// The rows that the lanes gave to ldmatrix, checked: those of a matrix must lie in different banks.
struct MatrixRows : Slots {
  explicit MatrixRows(const void* mine) {
    check_aligned(mine, "ldmatrix: row is not aligned to 16 bytes");
    put(0, (uint64_t)mine);
    meet();
    if (lane() == 0) check_banks();
  }
  const char* row(int matrix, int number) const { return (const char*)of(8 * matrix + number, 0); }
  void check_banks() const {
    for (int matrix = 0; matrix < 4; ++matrix) {
      unsigned banks = 0;
      for (int i = 0; i < 8; ++i) banks |= 1u << ((uintptr_t)row(matrix, i) / 16 % 8);
      if (banks != 0xff) fail("ldmatrix: rows of a matrix share a bank");
    }
  }
};

template <class T>
struct Operand;
template <>
struct Operand<float16> {
  static constexpr int each = 2;
  static float value(uint32_t word, int i) { return widen(float16{(unsigned short)(word >> 16 * i)}); }
};
template <>
struct Operand<bfloat16> {
  static constexpr int each = 2;
  static float value(uint32_t word, int i) { return widen(bfloat16{(unsigned short)(word >> 16 * i)}); }
};
template <>
struct Operand<float> {
  static constexpr int each = 1;
  static float value(uint32_t word, int) {
    word &= 0xffffe000u;
    float f;
    std::memcpy(&f, &word, 4);
    return f;
  }
};
}  // namespace host

template <int BYTES>
NOT_INLINE void copy(void* to, const void* from, bool inside) {
  host::check_aligned(to, "cp.async: destination is not aligned to its bytes", BYTES);
  host::check_aligned(from, "cp.async: source is not aligned to its bytes", BYTES);  // even if it is not read
  if (BYTES == 2) {  // no cp.async
    *(unsigned short*)to = inside ? *(const unsigned short*)from : 0;
    return;
  }
  if (host::under_way(to, BYTES, true)) host::fail("cp.async: another copy to the same place is under way");
  std::memset(to, 0xff, BYTES);  // NaN
  host::copies().open.push_back({to, from, inside, BYTES});
}
NOT_INLINE inline void copy_16(void* to, const void* from, bool inside) { copy<16>(to, from, inside); }
NOT_INLINE inline void close_group() {
  host::Copies& mine = host::copies();
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}
template <int NEWEST>
NOT_INLINE void wait_for_groups() {
  host::Copies& mine = host::copies();
  for (; (int)mine.groups.size() > NEWEST; mine.groups.pop_front())
    for (const host::Copy& copy : mine.groups.front()) {
      if (copy.inside) std::memcpy(copy.to, copy.from, copy.bytes);
      else std::memset(copy.to, 0, copy.bytes);
      host::under_way(copy.to, copy.bytes, false);
    }
}

constexpr bool ASYNCHRONOUS = true;
inline uint4 load_16(const void* from, bool inside) {
  host::check_aligned(from, "ld.v4: source is not aligned to 16 bytes");
  return inside ? *(const uint4*)from : uint4{0, 0, 0, 0};
}
inline void store_16(void* to, uint4 v) {
  host::check_aligned(to, "st.v4: destination is not aligned to 16 bytes");
  std::memcpy(to, &v, sizeof v);
}

inline void put_16(void* to, uint4 v) {
  host::check_aligned(to, "st.shared.v4: destination is not aligned to 16 bytes");
  std::memcpy(to, &v, sizeof v);
}

NOT_INLINE inline void ldmatrix(unsigned (&r)[4], const void* row) {
  const host::MatrixRows rows(row);
  const int g = host::lane() / 4, t = host::lane() % 4;
  for (int i = 0; i < 4; ++i) r[i] = *(const unsigned*)(rows.row(i, g) + 4 * t);
}
NOT_INLINE inline void ldmatrix_transposed(unsigned (&r)[4], const void* row) {
  const host::MatrixRows rows(row);
  const int g = host::lane() / 4, t = host::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const unsigned low = *(const unsigned short*)(rows.row(i, 2 * t) + 2 * g);
    const unsigned high = *(const unsigned short*)(rows.row(i, 2 * t + 1) + 2 * g);
    r[i] = low | high << 16;
  }
}

NOT_INLINE inline float exchange(float v, int bit) {
  const host::Slots slots;
  slots.put(0, __float_as_uint(v));
  slots.meet();
  return __uint_as_float((unsigned)slots.of(host::lane() ^ bit, 0));
}

template <class T>
NOT_INLINE void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, T) {
  using Element = host::Operand<T>;
  const host::Slots slots;
  for (int i = 0; i < 4; ++i) slots.put(i, a[i]);
  slots.put(4, b0);
  slots.put(5, b1);
  slots.meet();
  const int g = host::lane() / 4, t = host::lane() % 4;
  for (int half = 0; half < 2; ++half)  // 16 bytes of the reduction
    for (int from = 0; from < 4; ++from)  // the lane of a quad that holds 4 of them
      for (int e = 0; e < Element::each; ++e) {
        float left[2], right[2];  // of rows g and g + 8, of columns 2t and 2t + 1
        for (int i = 0; i < 2; ++i) {
          left[i] = Element::value((uint32_t)slots.of(4 * g + from, i + 2 * half), e);
          right[i] = Element::value((uint32_t)slots.of(4 * (2 * t + i) + from, 4 + half), e);
        }
        for (int i = 0; i < 4; ++i) d[i] += left[i / 2] * right[i % 2];
      }
}
