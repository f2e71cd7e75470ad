// Logic, shifts of two words, bit fields, and sums with a carry.
#pragma once
#include "arithmetic.h"

struct And {
    static u64 of(u64 a, u64 b, const Instruction&) { return a & b; }
};
struct Or {
    static u64 of(u64 a, u64 b, const Instruction&) { return a | b; }
};
struct Xor {
    static u64 of(u64 a, u64 b, const Instruction&) { return a ^ b; }
};
inline u64 ones(int bits) { return bits >= 64 ? ~0ull : (1ull << bits) - 1; }
inline int width(const Instruction& i) { return i.type == PRED ? 1 : 8 * BYTES[i.type]; }
struct Not {
    static u64 of(u64 a, const Instruction& i) { return ~a & ones(width(i)); }
};
struct LogicalNot {
    static u64 of(u64 a, const Instruction& i) { return (a & ones(width(i))) == 0; }
};
struct PopulationCount {
    static u64 of(u64 a, const Instruction& i) { return __builtin_popcountll(a & ones(width(i))); }
};
struct LeadingZeros {
    static u64 of(u64 a, const Instruction& i) {
        a &= ones(width(i));
        return a ? __builtin_clzll(a) - (64 - width(i)) : width(i);
    }
};
struct BitReverse {
    static u64 of(u64 a, const Instruction& i) {
        u64 r = 0;
        for (int k = 0; k < width(i); k++) r |= (a >> k & 1) << (width(i) - 1 - k);
        return r;
    }
};
struct FindBit {  // the most significant bit that is not the sign; modifier[0]: its distance from the top
    static u64 of(u64 a, const Instruction& i) {
        const int n = width(i);
        a &= ones(n);
        if (is_signed(i.type) && a >> (n - 1) & 1) a = ~a & ones(n);
        if (!a) return 0xffffffff;
        const int at = 63 - __builtin_clzll(a);
        return i.modifier[0] ? n - 1 - at : at;
    }
};
struct BitFieldExtract {
    static u64 of(u64 a, u64 b, u64 c, const Instruction& i) {
        const int n = width(i), at = b & 255, length = c & 255;
        a &= ones(n);
        if (length == 0) return 0;
        u64 field = at < n ? a >> at & ones(length) : 0;
        if (is_signed(i.type) && a >> std::min(at + length - 1, n - 1) & 1) {
            const int have = at < n ? std::min(length, n - at) : 0;
            field |= ~ones(have);
        }
        return field & ones(n);
    }
};
inline void bit_field_insert(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]), *c = w.reg(i[3]), *e = w.reg(i[4]);
    const int n = width(i);
    each_lane(mask, [&](int l) {
        const int at = c[l] & 255, length = e[l] & 255;
        const u64 field = at < n ? ones(length) << at & ones(n) : 0;
        d[l] = ((b[l] & ~field) | ((at < n ? a[l] << at : 0) & field)) & ones(n);
    });
}
struct Permute {  // modifier[0]: 0 by selectors, 1 f4e, 2 b4e, 3 rc8, 4 ecl, 5 ecr, 6 rc16
    static u64 of(u64 a, u64 b, u64 c, const Instruction& i) {
        const u64 bytes = (u32)a | (u64)(u32)b << 32;
        static const u8 table[6][4][4] = {
            {{0, 1, 2, 3}, {1, 2, 3, 4}, {2, 3, 4, 5}, {3, 4, 5, 6}},
            {{0, 7, 6, 5}, {1, 0, 7, 6}, {2, 1, 0, 7}, {3, 2, 1, 0}},
            {{0, 0, 0, 0}, {1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}},
            {{0, 1, 2, 3}, {1, 1, 2, 3}, {2, 2, 2, 3}, {3, 3, 3, 3}},
            {{0, 0, 0, 0}, {0, 1, 1, 1}, {0, 1, 2, 2}, {0, 1, 2, 3}},
            {{0, 1, 0, 1}, {2, 3, 2, 3}, {0, 1, 0, 1}, {2, 3, 2, 3}},
        };
        u32 result = 0;
        for (int k = 0; k < 4; k++) {
            const u32 s = i.modifier[0] ? table[i.modifier[0] - 1][c & 3][k] : c >> (4 * k) & 15;
            u32 byte = bytes >> (8 * (s & 7)) & 255;
            if (s & 8) byte = byte & 128 ? 255 : 0;
            result |= byte << (8 * k);
        }
        return result;
    }
};
struct FunnelShift {  // modifier[0]: right; [1]: clamp, else wrap
    static u64 of(u64 a, u64 b, u64 c, const Instruction& i) {
        const u64 both = (u64)(u32)b << 32 | (u32)a;
        const u32 by = i.modifier[1] ? std::min<u32>((u32)c, 32) : (u32)c & 31;
        return i.modifier[0] ? (u32)(both >> by) : (u32)(by == 32 ? a : (both << by) >> 32);
    }
};
struct Logic3 {  // modifier[0]: the truth table
    static u64 of(u64 a, u64 b, u64 c, const Instruction& i) {
        u32 result = 0;
        for (int k = 0; k < 8; k++)
            if (i.modifier[0] >> k & 1) result |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
        return result;
    }
};
struct SumOfAbsoluteDifference {
    template <class A> static A of(A a, A b, A c, const Instruction&) {
        return (A)((u64)c + (a < b ? (u64)b - (u64)a : (u64)a - (u64)b));
    }
};
struct DotProduct4 {  // modifier[0], [1]: whether a, b are signed
    static u64 of(u64 a, u64 b, u64 c, const Instruction& i) {
        s64 sum = (s32)c;
        for (int k = 0; k < 4; k++) {
            const s32 x = i.modifier[0] ? (s8)(a >> 8 * k) : (u8)(a >> 8 * k),
                      y = i.modifier[1] ? (s8)(b >> 8 * k) : (u8)(b >> 8 * k);
            sum += x * y;
        }
        return (u32)sum;
    }
};
struct DotProduct2 {  // of halves of a with bytes of b; modifier[0], [1]: whether a, b are signed; [2]: the upper bytes
    static u64 of(u64 a, u64 b, u64 c, const Instruction& i) {
        s64 sum = (s32)c;
        for (int k = 0; k < 2; k++) {
            const int at = 8 * (k + 2 * i.modifier[2]);
            const s64 x = i.modifier[0] ? (s16)(a >> 16 * k) : (u16)(a >> 16 * k),
                      y = i.modifier[1] ? (s8)(b >> at) : (u8)(b >> at);
            sum += x * y;
        }
        return (u32)sum;
    }
};
template <class A> void add_with_carry(Machine&, Warp& w, const Instruction& i, u32 mask) {
    // d, carry out = a ± b ± carry in; modifier[0]: subtract; operands: d, carry, a, b, carry in (or −1)
    u64 *d = w.reg(i[0]), *a = w.reg(i[2]), *b = w.reg(i[3]), *in = i[4] < 0 ? nullptr : w.reg(i[4]),
        *out = i[1] < 0 ? nullptr : w.reg(i[1]);
    each_lane(mask, [&](int l) {
        const u128 carry = in ? in[l] & 1 : 0;
        const u128 x = (A)a[l], y = (A)b[l];
        const u128 sum = i.modifier[0] ? x - y - carry : x + y + carry;
        d[l] = (A)sum;
        if (out) out[l] = (u64)(sum >> 8 * sizeof(A)) & 1;
    });
}
