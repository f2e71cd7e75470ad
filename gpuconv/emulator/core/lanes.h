// Exchanges between the lanes of a warp, and traps.
#pragma once
#include "memory.h"

// modifier[0]: up, down, bfly, idx. Operands: d, p (or −1), a, b, c, member mask.
inline void shuffle(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *p = i[1] < 0 ? nullptr : w.reg(i[1]), *b = w.reg(i[3]), *c = w.reg(i[4]);
    u64 from[32];
    std::memcpy(from, w.reg(i[2]), sizeof from);
    m.defined(w, i, i[3], mask, "the lane");
    m.defined(w, i, i[4], mask, "the clamp");
    const u32 undefined = m.checks ? w.undefined[i[2]] : 0;
    if (undefined) m.defined(w, i, w.in_flight[i[2]] ? i[2] : -1, mask, "what is shuffled");
    u32 bad = 0;
    each_lane(mask, [&](int l) {
        const int clamp = c[l] & 31, segment = c[l] >> 8 & 31, by = b[l] & 31;
        const int most = (l & segment) | (clamp & ~segment), least = l & segment;
        int other;
        bool inside;
        switch (i.modifier[0]) {
            case 0:  other = l - by, inside = other >= most; break;
            case 1:  other = l + by, inside = other <= most; break;
            case 2:  other = l ^ by, inside = other <= most; break;
            default: other = least | (by & ~segment), inside = other <= most; break;
        }
        if (!inside) other = l;
        if (!(mask >> other & 1)) m.fail(BARRIER, w, i, l, "shfl from lane %d, which does not take part", other);
        d[l] = from[other];
        bad |= (undefined >> other & 1) << l;
        if (p) p[l] = inside;
    });
    if (m.checks) {
        w.undefined[i[0]] = (w.undefined[i[0]] & ~mask) | bad;
        if (p) w.undefined[i[1]] &= ~mask;
    }
}
// modifier[0]: all, any, uni, ballot; [1]: the predicate is negated. Operands: d, a, member mask.
inline void vote(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]);
    u32 ballot = 0;
    each_lane(mask, [&](int l) { ballot |= (u32)((a[l] & 1) != (u64)i.modifier[1]) << l; });
    const u64 result = i.modifier[0] == 0   ? ballot == mask
                       : i.modifier[0] == 1 ? ballot != 0
                       : i.modifier[0] == 2 ? ballot == mask || !ballot
                                            : ballot;
    each_lane(mask, [&](int l) { d[l] = result; });
}
// modifier[0]: any (the lanes with the same value), all (all lanes, if they have). Operands: d, p (or −1), a, members.
inline void match(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *p = i[1] < 0 ? nullptr : w.reg(i[1]), *a = w.reg(i[2]);
    u64 result[32] = {};
    each_lane(mask, [&](int l) { each_lane(mask, [&](int k) { result[l] |= (u64)(a[k] == a[l]) << k; }); });
    each_lane(mask, [&](int l) {
        const bool all = result[l] == mask;
        d[l] = i.modifier[0] && !all ? 0 : result[l];
        if (p) p[l] = all;
    });
}
// redux.sync. modifier[1]: operation, as of atomics. Operands: d, a, members.
inline void reduce(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]);
    u64 result = a[__builtin_ctz(mask)];
    each_lane(mask & (mask - 1), [&](int l) { result = atomic_value(result, a[l], 0, i) & 0xffffffff; });
    each_lane(mask, [&](int l) { d[l] = result; });
}
inline void elect(Machine&, Warp& w, const Instruction& i, u32 mask) {  // operands: d (or −1), p, members
    const int leader = __builtin_ctz(mask);
    each_lane(mask, [&](int l) {
        if (i[0] >= 0) w.reg(i[0])[l] = leader;
        w.reg(i[1])[l] = l == leader;
    });
}
inline void active_mask(Machine&, Warp& w, const Instruction& i, u32 mask) {
    each_lane(mask, [&](int l) { w.reg(i[0])[l] = mask; });
}
inline void clock(Machine& m, Warp& w, const Instruction& i, u32 mask) {  // %clock, %globaltimer: instructions so far
    u64 runs = 0;
    for (size_t k = 0; k < m.program.code.size(); k++) runs += m.counts[k].runs;
    each_lane(mask, [&](int l) { w.reg(i[0])[l] = runs & ones(width(i)); });
}
inline void nothing(Machine&, Warp&, const Instruction&, u32) {}
inline void warp_barrier(Machine&, Warp& w, const Instruction&, u32) { w.step++; }
inline void trap(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    m.fail(TRAP, w, i, __builtin_ctz(mask), "the kernel stops itself (trap)");
}
