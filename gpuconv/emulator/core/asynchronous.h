// cp.async, and mbarriers, which signal that copies are done.
#pragma once
#include "memory.h"

// ---- cp.async --------------------------------------------------------------------------------------------------------
// Operands: to, from, bytes that are read (or −1: all). modifier[0]: bytes; [1]: offset of `from`; immediate: of `to`.

inline void perform(Machine& m, Warp& w, const Copy& c) {
    u8* to = &c.to.block->shared[c.to.offset];
    if (c.from_bytes) std::memcpy(to, m.global(w, *c.by, c.lane, c.from, c.from_bytes, c.bytes), c.from_bytes);
    std::memset(to + c.from_bytes, 0, c.bytes - c.from_bytes);
    std::memset(&c.to.block->written[c.to.offset], 255, c.bytes);
}
inline void copy_async(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    const s32 bytes = i.modifier[0];
    u64 *to = w.reg(i[0]), *from = w.reg(i[1]), *size = i[2] < 0 ? nullptr : w.reg(i[2]);
    u64 address[32];
    u32 offset[32], reading = 0;
    const bool now = m.at_once();
    each_lane(mask, [&](int l) {
        Copy c{&i, from[l] + i.modifier[1], m.place(w, i, l, to[l] + i.immediate, bytes, bytes), bytes, bytes, l,
            w.copy_group};
        if (size) c.from_bytes = (s32)size[l];
        if (c.from_bytes < 0 || c.from_bytes > bytes)
            m.fail(BOUNDS, w, i, l, "cp.async reads %d bytes of %d", c.from_bytes, bytes);
        address[l] = c.from;
        offset[l] = c.to.offset;
        if (c.from_bytes) reading |= 1u << l, m.global(w, i, l, c.from, c.from_bytes, bytes);
        if (m.checks) {
            m.beside_mbarriers(w, i, l, c.to, bytes);
            m.shared_access(w, i, l, c.to, bytes, true,
                {i.index, m.components.cp_async(w.index), w.copy_group, false, false, (u32)l, w.index, w.step});
        }
        if (now)
            perform(m, w, c);
        else
            w.copies.push_back(c);
    });
    if (reading) count_sectors(m, i, address, reading, bytes);
    count_passes(m, i, offset, mask, bytes);
}
inline void finish_copies(Machine& m, Warp& w, u32 up_to) {
    size_t kept = 0;
    for (Copy& c : w.copies) {
        if (c.group <= up_to)
            perform(m, w, c);
        else
            w.copies[kept++] = c;
    }
    w.copies.resize(kept, Copy{});
    w.clock.learn(m.components.cp_async(w.index), up_to);
}
inline void copy_commit(Machine&, Warp& w, const Instruction&, u32) { w.copy_group++; }
inline void copy_wait(
    Machine& m, Warp& w, const Instruction& i, u32) {  // modifier[0]: groups that may be open; −1: none
    if (i.modifier[0] < 0) w.copy_group++;
    const s64 up_to = (s64)w.copy_group - 1 - std::max(0, i.modifier[0]);
    if (up_to > 0) finish_copies(m, w, (u32)up_to);
}

// ---- mbarriers -------------------------------------------------------------------------------------------------------

inline Mbarrier& mbarrier_at(Machine& m, Warp& w, const Instruction& i, int lane, Place at) {
    auto found = at.block->mbarriers.find(at.offset);
    if (found == at.block->mbarriers.end())
        m.fail(BARRIER, w, i, lane, "there is no mbarrier at byte %u of shared memory", at.offset);
    if (m.checks) m.shared_access(w, i, lane, at, 8, false, m.by_lane(w, i, (u32)lane));  // after its initialisation
    return found->second;
}
inline void settle(Machine& m, Mbarrier& b) {
    if (b.arrived < b.expected || b.transactions) return;
    b.phase++;
    b.arrived = 0;
    b.complete.join(b.pending);
    b.complete.learn(b.component, b.before + b.phase);
    m.events++;
}
inline void mbarrier_init(Machine& m, Warp& w, const Instruction& i, u32 mask) {  // operands: address, count
    each_lane(mask, [&](int l) {
        const Place at = m.place(w, i, l, w.reg(i[0])[l] + i.immediate, 8, 8);
        const u32 expected = (u32)w.reg(i[1])[l];
        if (!expected || expected >= 1u << 20)
            m.fail(BARRIER, w, i, l, "an mbarrier for %u arrivals: 1 to 2^20 - 1 are possible", expected);
        if (at.block->mbarriers.count(at.offset))
            m.fail(BARRIER, w, i, l, "mbarrier.init of one that is there already: no mbarrier.inval has ended it");
        const u8 value[8] = {(u8)expected, (u8)(expected >> 8), (u8)(expected >> 16), 1};
        if (m.checks) m.shared_access(w, i, l, at, 8, true, m.by_lane(w, i, (u32)l));
        std::memcpy(&at.block->shared[at.offset], value, 8);
        std::memset(&at.block->written[at.offset], 255, 8);
        Mbarrier b;
        b.expected = expected;
        auto was = at.block->components.find(at.offset);
        if (was != at.block->components.end()) {
            b.component = was->second.first;
            b.before = was->second.second;
        } else {
            b.component = m.components.mbarrier(m.components.mbarriers++);
            at.block->components[at.offset] = {b.component, 0};
        }
        at.block->mbarriers[at.offset] = b;
    });
    m.events++;
}
inline void mbarrier_invalidate(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    each_lane(mask, [&](int l) {
        const Place at = m.place(w, i, l, w.reg(i[0])[l] + i.immediate, 8, 8);
        auto found = at.block->mbarriers.find(at.offset);
        if (found == at.block->mbarriers.end())
            m.fail(BARRIER, w, i, l, "there is no mbarrier at byte %u of shared memory", at.offset);
        if (m.checks) m.shared_access(w, i, l, at, 8, true, m.by_lane(w, i, (u32)l));
        if (found->second.transactions)
            m.fail(BARRIER, w, i, l, "mbarrier.inval while %lld bytes are under way",
                (long long)found->second.transactions);
        at.block->components[at.offset].second = found->second.before + found->second.phase + 1;
        at.block->mbarriers.erase(found);
    });
}
inline void arrive(Machine& m, Warp& w, const Instruction& i, int l, Mbarrier& b, u32 count) {
    if (b.arrived + count > b.expected)
        m.fail(
            BARRIER, w, i, l, "%u arrivals at an mbarrier that expects %u in a phase", b.arrived + count, b.expected);
    b.arrived += count;
    b.pending.join(w.clock);
}
// modifier[0]: arrives; [1]: expects bytes. Operands: state (or −1), address, bytes or count (or −1).
inline void mbarrier_arrive(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    each_lane(mask, [&](int l) {
        const u64 raw = w.reg(i[1])[l] + i.immediate;
        const Place at = m.place(w, i, l, raw, 8, 8);
        Mbarrier& b = mbarrier_at(m, w, i, l, at);
        const u32 value = i[2] < 0 ? 1 : (u32)w.reg(i[2])[l];
        if (i.modifier[1]) {
            b.transactions += value;
            if (b.transactions >= 1 << 20)
                m.fail(BARRIER, w, i, l, "an mbarrier that expects %lld bytes: fewer than 2^20 are possible",
                    (long long)b.transactions);
        }
        if (i[0] >= 0) w.reg(i[0])[l] = b.phase & 1;
        if (i.modifier[0]) arrive(m, w, i, l, b, i.modifier[1] ? 1 : value);
        settle(m, b);
    });
    if (i[0] >= 0) w.undefined[i[0]] &= ~mask;
    w.tick();
    m.events++;
}
// cp.async.mbarrier.arrive[.noinc]: arrives when the copies so far of the thread are done. Once for a lane.
inline void copies_arrive(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    finish_copies(m, w, w.copy_group);
    w.copy_group++;
    each_lane(mask, [&](int l) {
        Mbarrier& b = mbarrier_at(m, w, i, l, m.place(w, i, l, w.reg(i[0])[l] + i.immediate, 8, 8));
        if (!i.modifier[0]) b.expected++;  // without .noinc it is one more than was expected
        b.arrived++;
        b.pending.learn(m.components.cp_async(w.index), w.copy_group - 1);  // of the warp's own accesses nothing
        settle(m, b);
        if (!i.modifier[0]) b.expected--;
    });
    m.events++;
}
// try_wait and test_wait. modifier[0]: may block; [1]: the operand is a parity, else a state. Operands: p, address, parity.
inline void mbarrier_wait(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    u32 waiting = 0;
    Place at{};
    each_lane(mask, [&](int l) {
        at = m.place(w, i, l, w.reg(i[1])[l] + i.immediate, 8, 8);
        Mbarrier& b = mbarrier_at(m, w, i, l, at);
        const bool done = (b.phase & 1) != (w.reg(i[2])[l] & 1);
        w.reg(i[0])[l] = done;
        if (done)
            w.clock.join(b.complete);
        else
            waiting |= 1u << l;
    });
    w.step += waiting != mask;
    w.undefined[i[0]] &= ~mask;
    if (!waiting) return;
    if (i.modifier[0] &&
        !m.coin(4)) {  // comes back when something has happened; sometimes, by chance, with `false` at once
        w.blocked = true;
        m.count(i).waits++;
    } else {
        w.yielded = true;
    }
}
