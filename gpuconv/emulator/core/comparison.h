// Comparisons, and what is chosen by them.
#pragma once
#include "bits.h"

// modifier[0]: eq ne lt le gt ge, num nan, + 8: true where unordered; [1]: combined with a predicate by and, or, xor;
// [2]: that predicate is negated. Operands of setp: p, q (or −1), a, b, c (or −1).

template <class A> inline bool compare(A a, A b, s32 how, bool flush) {
    if constexpr (floating<A>) {
        a = flushed_if(a, flush), b = flushed_if(b, flush);
        const bool nan = a != a || b != b;
        if (how == 6) return !nan;
        if (how == 7) return nan;
        if (nan) return how >= 8;
    }
    switch (how & 7) {
        case 0:  return a == b;
        case 1:  return a != b;
        case 2:  return a < b;
        case 3:  return a <= b;
        case 4:  return a > b;
        default: return a >= b;
    }
}
inline bool combined(bool r, bool c, s32 how) { return how == 1 ? r && c : how == 2 ? r || c : how == 3 ? r != c : r; }

template <class A> void set_predicate(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *p = w.reg(i[0]), *q = i[1] < 0 ? nullptr : w.reg(i[1]), *a = w.reg(i[2]), *b = w.reg(i[3]),
        *c = i[4] < 0 ? nullptr : w.reg(i[4]);
    each_lane(mask, [&](int l) {
        const bool r = compare(from_bits<A>(a[l]), from_bits<A>(b[l]), i.modifier[0], i.modifier[3]);
        const bool k = c && (c[l] & 1) != (u64)i.modifier[2];
        p[l] = combined(r, k, i.modifier[1]);
        if (q) q[l] = combined(!r, k, i.modifier[1]);
    });
}
// Of the two halves of registers, each into its own predicate.
template <class A> void set_predicates(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *p = w.reg(i[0]), *q = w.reg(i[1]), *a = w.reg(i[2]), *b = w.reg(i[3]), *c = i[4] < 0 ? nullptr : w.reg(i[4]);
    each_lane(mask, [&](int l) {
        const bool k = c && (c[l] & 1) != (u64)i.modifier[2];
        const bool low = compare(from_bits<A>(a[l]), from_bits<A>(b[l]), i.modifier[0], i.modifier[3]);
        const bool high = compare(from_bits<A>(a[l] >> 16), from_bits<A>(b[l] >> 16), i.modifier[0], i.modifier[3]);
        p[l] = combined(low, k, i.modifier[1]);
        q[l] = combined(high, k, i.modifier[1]);
    });
}
// set: all ones, or 1.0, where it holds. type2: of the operands.
template <class A> void set_value(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]), *c = i.sources > 2 ? w.reg(i[3]) : nullptr;
    const u64 yes = i.type == F32 ? to_bits(1.0f) : 0xffffffff;
    each_lane(mask, [&](int l) {
        const bool r = compare(from_bits<A>(a[l]), from_bits<A>(b[l]), i.modifier[0], i.modifier[3]);
        const bool k = c && (c[l] & 1) != (u64)i.modifier[2];
        d[l] = combined(r, k, i.modifier[1]) ? yes : 0;
    });
}
inline void select(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]), *c = w.reg(i[3]);
    each_lane(mask, [&](int l) { d[l] = c[l] & 1 ? a[l] : b[l]; });
    if (m.checks) {  // of what is not taken nothing needs to be known
        u32 first = 0;
        for (int l = 0; l < 32; l++) first |= (u32)(c[l] & 1) << l;
        const u32 undefined = (w.undefined[i[1]] & first) | (w.undefined[i[2]] & ~first) | w.undefined[i[3]];
        w.undefined[i[0]] = (w.undefined[i[0]] & ~mask) | (undefined & mask);
    }
}
// slct: a where c ≥ 0, else b. type2: of c.
inline void select_by_sign(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]), *c = w.reg(i[3]);
    each_lane(mask, [&](int l) {
        const bool first = i.type2 == F32 ? from_bits<float>(c[l]) >= 0 : (s32)c[l] >= 0;
        d[l] = first ? a[l] : b[l];
    });
}
// and, or of predicates: false and … is false, whatever the other is.
template <bool Conjunction> void both_or_either(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]);
    u32 first = 0, second = 0;
    for (int l = 0; l < 32; l++) first |= (u32)(a[l] & 1) << l, second |= (u32)(b[l] & 1) << l;
    if (m.checks) {
        const u32 u = w.undefined[i[1]], v = w.undefined[i[2]];
        const u32 decided_by_first = ~u & (Conjunction ? ~first : first),
                  decided_by_second = ~v & (Conjunction ? ~second : second);
        const u32 undefined = (u | v) & ~decided_by_first & ~decided_by_second;
        w.undefined[i[0]] = (w.undefined[i[0]] & ~mask) | (undefined & mask);
    }
    each_lane(mask, [&](int l) { d[l] = (Conjunction ? first & second : first | second) >> l & 1; });
}
