// Barriers of threads: of a block, by number, and of a cluster.
#pragma once
#include "asynchronous.h"

// bar.sync, bar.arrive, bar.red. modifier[0]: 0 sync, 1 arrive, 2 red; [1]: popc, and, or; [2]: its predicate is negated;
// [3]: .aligned. Operands: result (or −1), number, threads (or −1), predicate (or −1).
inline void barrier(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    const int lane = __builtin_ctz(mask);
    const u32 number = (u32)w.reg(i[1])[lane];
    if (number > 15) m.fail(BARRIER, w, i, lane, "barrier %u: there are 0 to 15", number);
    NamedBarrier& b = w.block->barriers[number];
    if (*w.ticket >= 0) {  // has arrived before
        if (*w.ticket == (s64)b.generation) {
            w.blocked = true;
            return;
        }
        *w.ticket = -1;
        w.step++;
        w.clock.join(b.complete);
        if (i.modifier[0] == 2) {
            const u64 result = i.modifier[1] == 0 ? b.red_count : i.modifier[1] == 1 ? b.red_all : b.red_any;
            each_lane(mask, [&](int l) { w.reg(i[0])[l] = result; });
            w.undefined[i[0]] &= ~mask;
        }
        return;
    }
    u32 threads = i[2] < 0 ? 0 : (u32)w.reg(i[2])[lane];
    if (threads % 32) m.fail(BARRIER, w, i, lane, "barrier %u for %u threads: not whole warps", number, threads);
    if (i[2] >= 0 && threads == 0) m.fail(BARRIER, w, i, lane, "barrier %u for 0 threads", number);
    if (b.arrived && b.threads != threads && i[2] >= 0 && b.threads)
        m.fail(
            BARRIER, w, i, lane, "barrier %u for %u threads, where another warp said %u", number, threads, b.threads);
    if (b.arrived && (b.threads == 0) != (threads == 0))
        m.fail(BARRIER, w, i, lane, "barrier %u for %u threads, where another warp said %u (0: all)", number, threads,
            b.threads);
    b.threads = threads;
    b.instruction = (s32)i.index;
    b.arrived += 32;
    if (threads && b.arrived > threads)
        m.fail(BARRIER, w, i, lane, "barrier %u: %u threads have come, and it is for %u", number, b.arrived, threads);
    b.clock.join(w.clock);
    w.tick();
    if (i.modifier[0] == 2) {
        const u64* p = w.reg(i[3]);
        each_lane(mask, [&](int l) {
            const bool yes = (p[l] & 1) != (u64)i.modifier[2];
            b.count += yes, b.any |= yes, b.all &= yes;
        });
    }
    if (i.modifier[0] != 1) {
        b.waiting++;
        *w.ticket = b.generation;
        w.blocked = true;
        m.count(i).waits++;
    }
    m.events++;
}
// A barrier is complete when as many have come as it is for, or all that have not ended.
inline void complete_barriers(Machine& m, Block& block) {
    u32 live = 0;
    for (int k = 0; k < block.warps; k++) live += 32 * (m.warps[block.first_warp + k].live != 0);
    for (NamedBarrier& b : block.barriers) {
        if (!b.arrived || b.arrived < (b.threads ? b.threads : live)) continue;
        b.complete = b.clock;
        b.clock = Clock();
        b.red_any = b.any, b.red_all = b.all, b.red_count = b.count;
        b.any = 0, b.all = 1, b.count = 0;
        b.arrived = b.waiting = 0;
        b.generation++;
        m.events++;
    }
}
// barrier.cluster. modifier[0]: 1 arrives, 2 waits, 3 both.
inline void cluster_barrier(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    const int lane = __builtin_ctz(mask);
    const bool first = *w.ticket < 0;
    if (first && i.modifier[0] & 1) {
        if (w.in_cluster_barrier) m.fail(BARRIER, w, i, lane, "barrier.cluster.arrive twice, without a wait between");
        w.in_cluster_barrier = true;
        m.cluster_arrived++;
        m.cluster_clock.join(w.clock);
        w.tick();
        m.events++;
    }
    if (!(i.modifier[0] & 2)) {
        w.cluster_generation = m.cluster_generation;
        return;
    }
    if (first) {
        if (!w.in_cluster_barrier) m.fail(BARRIER, w, i, lane, "barrier.cluster.wait without arriving before");
        *w.ticket = i.modifier[0] & 1 ? m.cluster_generation : w.cluster_generation;
    }
    if (*w.ticket == (s64)m.cluster_generation) {
        u32 live = 0;
        for (const Warp& other : m.warps) live += other.live != 0;
        if (m.cluster_arrived < live) {
            w.blocked = true;
            return;
        }
        m.cluster_generation++;
        m.cluster_arrived = 0;
        m.cluster_complete = m.cluster_clock;
        m.cluster_clock = Clock();
        m.events++;
    }
    *w.ticket = -1;
    w.in_cluster_barrier = false;
    w.step++;
    w.clock.join(m.cluster_complete);
}
