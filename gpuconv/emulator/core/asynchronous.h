// cp.async, the copy engine (TMA), and the barriers that tell of their completion.
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
        Copy c{&i, from[l] + i.modifier[1], m.place(w, i, l, to[l] + i.immediate, bytes, bytes), bytes, bytes, l, w.copy_group};
        if (size) c.from_bytes = (s32)size[l];
        if (c.from_bytes < 0 || c.from_bytes > bytes) m.fail(BOUNDS, w, i, l, "cp.async reads %d bytes of %d", c.from_bytes, bytes);
        address[l] = c.from;
        offset[l] = c.to.offset;
        if (c.from_bytes) reading |= 1u << l, m.global(w, i, l, c.from, c.from_bytes, bytes);
        if (m.checks) {
            m.beside_mbarriers(w, i, l, c.to, bytes);
            m.shared_access(w, i, l, c.to, bytes, true, {i.index, m.components.cp_async(w.index), w.copy_group, false, false, (u32)l, w.index, w.step});
        }
        if (now) perform(m, w, c);
        else w.copies.push_back(c);
    });
    if (reading) count_sectors(m, i, address, reading, bytes);
    count_passes(m, i, offset, mask, bytes);
}
inline void finish_copies(Machine& m, Warp& w, u32 up_to) {
    size_t kept = 0;
    for (Copy& c : w.copies) {
        if (c.group <= up_to) perform(m, w, c);
        else w.copies[kept++] = c;
    }
    w.copies.resize(kept, Copy{});
    u32& known = w.clock.known[m.components.cp_async(w.index)];
    known = std::max(known, up_to);
}
inline void copy_commit(Machine&, Warp& w, const Instruction&, u32) { w.copy_group++; }
inline void copy_wait(Machine& m, Warp& w, const Instruction& i, u32) {  // modifier[0]: groups that may be open; −1: none
    if (i.modifier[0] < 0) w.copy_group++;
    const s64 up_to = (s64)w.copy_group - 1 - std::max(0, i.modifier[0]);
    if (up_to > 0) finish_copies(m, w, (u32)up_to);
}

// ---- mbarriers -------------------------------------------------------------------------------------------------------

inline Mbarrier& mbarrier_at(Machine& m, Warp& w, const Instruction& i, int lane, Place at) {
    auto found = at.block->mbarriers.find(at.offset);
    if (found == at.block->mbarriers.end()) m.fail(BARRIER, w, i, lane, "there is no mbarrier at byte %u of shared memory", at.offset);
    if (m.checks) m.shared_access(w, i, lane, at, 8, false, {i.index, m.components.generic(w.index), w.time(), false, false, (u32)lane, w.index, w.step});  // after its initialisation
    return found->second;
}
inline void settle(Machine& m, Mbarrier& b) {
    if (b.arrived < b.expected || b.transactions) return;
    b.phase++;
    b.arrived = 0;
    b.complete.join(b.pending);
    u32& known = b.complete.known[b.component];
    known = std::max(known, b.before + b.phase);
    m.events++;
}
inline void mbarrier_init(Machine& m, Warp& w, const Instruction& i, u32 mask) {  // operands: address, count
    each_lane(mask, [&](int l) {
        const Place at = m.place(w, i, l, w.reg(i[0])[l] + i.immediate, 8, 8);
        const u32 expected = (u32)w.reg(i[1])[l];
        if (!expected || expected >= 1u << 20) m.fail(BARRIER, w, i, l, "an mbarrier for %u arrivals: 1 to 2^20 - 1 are possible", expected);
        if (at.block->mbarriers.count(at.offset)) m.fail(BARRIER, w, i, l, "mbarrier.init of one that is there already: no mbarrier.inval has ended it");
        const u8 value[8] = {(u8)expected, (u8)(expected >> 8), (u8)(expected >> 16), 1};
        if (m.checks) m.shared_access(w, i, l, at, 8, true, {i.index, m.components.generic(w.index), w.time(), false, false, (u32)l, w.index, w.step});
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
            const int n = m.components.count();
            auto grow = [n](Clock& c) { c.known.resize(n, 0), c.fenced.resize(n, 0); };
            for (Warp& other : m.warps) grow(other.clock);
            for (Block& block : m.blocks) {
                for (auto& [_, other] : block.mbarriers) grow(other.pending), grow(other.complete);
                for (auto& [_, known] : block.atomics) grow(known);
                for (NamedBarrier& barrier : block.barriers) grow(barrier.clock), grow(barrier.complete);
            }
            for (auto& [_, written] : m.descriptors) grow(written.second);
            grow(m.cluster_clock), grow(m.cluster_complete);
        }
        b.pending.reset(m.components.count());
        b.complete.reset(m.components.count());
        at.block->mbarriers[at.offset] = b;
    });
    m.events++;
}
inline void mbarrier_invalidate(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    each_lane(mask, [&](int l) {
        const Place at = m.place(w, i, l, w.reg(i[0])[l] + i.immediate, 8, 8);
        auto found = at.block->mbarriers.find(at.offset);
        if (found == at.block->mbarriers.end()) m.fail(BARRIER, w, i, l, "there is no mbarrier at byte %u of shared memory", at.offset);
        if (m.checks) m.shared_access(w, i, l, at, 8, true, {i.index, m.components.generic(w.index), w.time(), false, false, (u32)l, w.index, w.step});
        if (found->second.transactions) m.fail(BARRIER, w, i, l, "mbarrier.inval while %lld bytes are under way", (long long)found->second.transactions);
        at.block->components[at.offset].second = found->second.before + found->second.phase + 1;
        at.block->mbarriers.erase(found);
    });
}
inline void arrive(Machine& m, Warp& w, const Instruction& i, int l, Mbarrier& b, u32 count) {
    if (b.arrived + count > b.expected) m.fail(BARRIER, w, i, l, "%u arrivals at an mbarrier that expects %u in a phase", b.arrived + count, b.expected);
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
            if (b.transactions >= 1 << 20) m.fail(BARRIER, w, i, l, "an mbarrier that expects %lld bytes: fewer than 2^20 are possible", (long long)b.transactions);
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
        Clock& known = b.pending;  // of the warp's own accesses nothing
        u32& copies = known.known[m.components.cp_async(w.index)];
        copies = std::max(copies, w.copy_group - 1);
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
        if (done) w.clock.join(b.complete);
        else waiting |= 1u << l;
    });
    w.step += waiting != mask;
    w.undefined[i[0]] &= ~mask;
    if (!waiting) return;
    if (i.modifier[0] && !m.coin(4)) {  // comes back when something has happened; sometimes, by chance, with `false` at once
        w.blocked = true;
        m.count(i).waits++;
    } else {
        w.yielded = true;
    }
}
inline void mbarrier_pending(Machine& m, Warp& w, const Instruction& i, u32 mask) {  // pending_count of a state: what is still expected
    (void)mask;
    m.fail(UNSUPPORTED, w, i, -1, "mbarrier.pending_count");
}

// ---- the copy engine -------------------------------------------------------------------------------------------------

// In the order of tensormap.replace's elemtype: u8 u16 u32 s32 u64 s64 f16 f32 f32.ftz f64 bf16 tf32 tf32.ftz.
constexpr u32 ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2, 4, 4};
constexpr char MAGIC[9] = "GPUCONVT";

// Bits 4 … of an address in shared memory are changed by bits 7 …: 1, 2 or 3 of them for 32, 64 and 128 bytes.
inline u32 swizzled(u32 address, int bits) { return address ^ ((address >> 3) & (((1u << bits) - 1) << 4)); }
inline u64 stride_of(const TensorMap& map, int axis) { return from_bits<u64>(*reinterpret_cast<const u64*>(map.stride[axis - 1])); }

inline void check_map(Machine& m, Warp& w, const Instruction& i, int l, const TensorMap& map, int rank) {
    auto refuse = [&](const char* what, u64 value, int axis) {
        m.fail(COPY_ENGINE, w, i, l, "a descriptor with %s %llu%s%c", what, (unsigned long long)value, axis < 0 ? "" : " on axis ", axis < 0 ? ' ' : '0' + axis);
    };
    if (std::memcmp(map.magic, MAGIC, 8)) m.fail(COPY_ENGINE, w, i, l, "what lies there is no descriptor (or some of its fields were never set)");
    if ((int)map.rank_minus_1 + 1 != rank) refuse("rank", map.rank_minus_1 + 1, -1);
    if (map.element > 12) refuse("element type", map.element, -1);
    if (map.element == 8 || map.element >= 11) m.fail(UNSUPPORTED, w, i, l, "element type %d of a descriptor", map.element);
    if (map.interleave) m.fail(UNSUPPORTED, w, i, l, "interleave layout %d of a descriptor", map.interleave);
    if (map.swizzle > 3) refuse("swizzle mode", map.swizzle, -1);
    if (map.fill > 1) refuse("fill mode", map.fill, -1);
    const u32 bytes = ELEMENT_BYTES[map.element];
    if (map.address % 16) m.fail(COPY_ENGINE, w, i, l, "a descriptor of a tensor whose address is not a multiple of 16 bytes");
    for (int a = 0; a < rank; a++) {
        if (map.box[a] < 1 || map.box[a] > 256) refuse("a box of size", map.box[a], a);
        if (map.size[a] == 0) refuse("a tensor of size", 0, a);
        if (map.element_stride[a] != 1) {
            if (map.element_stride[a] == 0 || map.element_stride[a] > 8) refuse("an element stride of", map.element_stride[a], a);
            m.fail(UNSUPPORTED, w, i, l, "element stride %u of a descriptor", map.element_stride[a]);
        }
        if (a && (stride_of(map, a) % 16 || stride_of(map, a) >= 1ull << 40)) refuse("a stride in bytes of", stride_of(map, a), a);
    }
    const u32 row = map.box[0] * bytes;
    if (row % 16) refuse("an inner box whose bytes are", row, -1);
    if (map.swizzle && row > 16u << map.swizzle) refuse("an inner box wider than its swizzle, in bytes", row, -1);
}
inline u32 tile_bytes(const TensorMap& map) {
    u32 bytes = ELEMENT_BYTES[map.element];
    for (u32 a = 0; a <= map.rank_minus_1; a++) bytes *= map.box[a];
    return bytes;
}

// Calls f(shared offset, bytes inside the tensor, global address) for every 16 bytes of a tile; `inside`: which of its
// elements are in the tensor, as a mask.
template <class F> inline void each_chunk(const BulkCopy& c, u32 start, F f) {
    const TensorMap& map = c.map;
    const int rank = map.rank_minus_1 + 1;
    const u32 bytes = ELEMENT_BYTES[map.element], row = map.box[0] * bytes, per_chunk = 16 / bytes;
    u32 index[MOST_AXES] = {};
    const u32 rows = tile_bytes(map) / row;
    for (u32 r = 0; r < rows; r++) {
        bool in = true;
        u64 address = map.address;
        for (int a = 1; a < rank; a++) {
            const s64 x = (s64)c.at[a] + index[a];
            in = in && x >= 0 && x < (s64)map.size[a];
            address += (u64)(x * (s64)stride_of(map, a));
        }
        for (u32 e = 0; e < map.box[0]; e += per_chunk) {
            const s64 x = (s64)c.at[0] + e;
            u32 inside = 0;
            for (u32 k = 0; in && k < per_chunk; k++) inside |= (u32)(x + k >= 0 && x + k < (s64)map.size[0]) << k;
            f(swizzled(start + r * row + e * bytes, map.swizzle), inside, address + (u64)(x * (s64)bytes), bytes, per_chunk);
        }
        for (int a = 1; a < rank; a++) {
            if (++index[a] < map.box[a]) break;
            index[a] = 0;
        }
    }
}
inline u64 fill_of(const TensorMap& map) {
    if (!map.fill) return 0;
    switch (map.element) {
        case 6: case 10: return 0x7fff;
        case 7: return 0x7fffffff;
        case 9: return 0x7fffffffffffffffull;
        default: return 0;
    }
}
template <class A> inline void reduce_element(u8* to, const u8* from, s32 operation) {
    A old, value;
    std::memcpy(&old, to, sizeof old);
    std::memcpy(&value, from, sizeof value);
    A result;
    if constexpr (std::is_integral<A>::value) {
        result = operation == A_AND ? (A)(old & value) : operation == A_OR ? (A)(old | value) : operation == A_XOR ? (A)(old ^ value) : atomic_result<A>(old, value, operation);
    } else if constexpr (std::is_same<A, float>::value || std::is_same<A, double>::value) {
        result = atomic_result<A>(old, value, operation);
    } else {
        const float x = old, y = value;
        result = operation == A_ADD ? A(x + y) : A(operation == A_MIN ? std::min(x, y) : std::max(x, y));
    }
    std::memcpy(to, &result, sizeof result);
}
inline void reduce_elements(u8* to, const u8* from, u8 element, s32 operation) {
    switch (element) {
        case 2: return reduce_element<u32>(to, from, operation);
        case 3: return reduce_element<s32>(to, from, operation);
        case 4: return reduce_element<u64>(to, from, operation);
        case 5: return reduce_element<s64>(to, from, operation);
        case 6: return reduce_element<Half>(to, from, operation);
        case 7: return reduce_element<float>(to, from, operation);
        case 9: return reduce_element<double>(to, from, operation);
        case 10: return reduce_element<BFloat>(to, from, operation);
    }
}
inline void perform(Machine& m, BulkCopy& c) {
    Warp& w = *c.warp;
    const Instruction& i = *c.by;
    if (!c.tensor) {
        if (c.store) {
            std::memcpy(m.global(w, i, c.lane, c.address, c.bytes, 16), &c.shared.block->shared[c.shared.offset], c.bytes);
        } else {
            for (Place to : c.to) {
                std::memcpy(&to.block->shared[to.offset], m.global(w, i, c.lane, c.address, c.bytes, 16), c.bytes);
                std::memset(&to.block->written[to.offset], 255, c.bytes);
            }
        }
    } else if (c.store) {
        each_chunk(c, c.shared.offset, [&](u32 offset, u32 inside, u64 address, u32 bytes, u32 per_chunk) {
            const u8* from = &c.shared.block->shared[offset];
            for (u32 k = 0; k < per_chunk; k++) {
                if (!(inside >> k & 1)) continue;
                if (m.checks && !Machine::all_written(&c.shared.block->written[offset + k * bytes], bytes))
                    m.fail(UNINITIALISED, w, i, c.lane, "the copy engine stores shared memory at byte %u, which was never written", offset + k * bytes);
                u8* to = m.global(w, i, c.lane, address + k * bytes, bytes, bytes);
                if (c.reduce < 0) std::memcpy(to, from + k * bytes, bytes);
                else reduce_elements(to, from + k * bytes, c.map.element, c.reduce);
            }
        });
    } else {
        const u64 fill = fill_of(c.map);
        for (Place destination : c.to)
            each_chunk(c, destination.offset, [&](u32 offset, u32 inside, u64 address, u32 bytes, u32 per_chunk) {
                u8* to = &destination.block->shared[offset];
                if (inside == ones(per_chunk)) std::memcpy(to, m.global(w, i, c.lane, address, 16, bytes), 16);
                else
                    for (u32 k = 0; k < per_chunk; k++) {
                        if (inside >> k & 1) std::memcpy(to + k * bytes, m.global(w, i, c.lane, address + k * bytes, bytes, bytes), bytes);
                        else std::memcpy(to + k * bytes, &fill, bytes);
                    }
                std::memset(&destination.block->written[offset], 255, 16);
            });
    }
    for (Place counted : c.counted) {
        auto found = counted.block->mbarriers.find(counted.offset);
        if (found == counted.block->mbarriers.end()) m.fail(BARRIER, w, i, c.lane, "a copy is done, and its mbarrier at byte %u is no more", counted.offset);
        Mbarrier& b = found->second;
        b.transactions -= c.tensor ? tile_bytes(c.map) : c.bytes;
        if (b.transactions <= -(1 << 20)) m.fail(BARRIER, w, i, c.lane, "an mbarrier counts %lld bytes that nobody expects", (long long)-b.transactions);
        settle(m, b);
    }
    m.events++;
}

// A descriptor in global memory (made on the device, or by the host) or in a parameter.
inline TensorMap map_at(Machine& m, Warp& w, const Instruction& i, int l, u64 address) {
    TensorMap map;
    if (address >= PARAMETER_WINDOW) {
        const u64 at = address - PARAMETER_WINDOW;
        if (at + sizeof map > (u64)m.launch.parameter_bytes) m.fail(BOUNDS, w, i, l, "a descriptor at parameter byte %llu: there are %d", (unsigned long long)at, m.launch.parameter_bytes);
        std::memcpy(&map, m.launch.parameters + at, sizeof map);
        return map;
    }
    std::memcpy(&map, m.global(w, i, l, address, sizeof map, 64), sizeof map);
    auto written = m.descriptors.find(address);
    if (m.checks && written != m.descriptors.end()) {
        bool known = false;
        for (const Warp& other : m.warps) {
            const auto acquired = other.acquired.find(address);
            known = known || (acquired != other.acquired.end() && acquired->second.first == written->second.first && w.clock.known[other.index] >= acquired->second.second);
        }
        if (!known) m.fail(COPY_ENGINE, w, i, l, "a descriptor that the kernel has made is used before fence.proxy.tensormap::generic.acquire");
    }
    return map;
}
// Operands: to, map, mbarrier, coordinates …, and the blocks of a multicast (or −1). modifier[0]: rank; [1]: multicast;
// [2], [3], [4]: what is added to the first three.
inline void tensor_load(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    const int rank = i.modifier[0];
    each_lane(mask, [&](int l) {
        BulkCopy c;
        c.by = &i, c.warp = &w, c.lane = l;
        c.map = map_at(m, w, i, l, w.reg(i[1])[l] + i.modifier[3]);
        check_map(m, w, i, l, c.map, rank);
        for (int a = 0; a < rank; a++) c.at[a] = (s32)w.reg(i[3 + a])[l];
        const u32 bytes = tile_bytes(c.map);
        const Place to = m.place(w, i, l, w.reg(i[0])[l] + i.modifier[2], bytes, 128);
        const Place counted = m.place(w, i, l, w.reg(i[2])[l] + i.modifier[4], 8, 8);
        if (i.modifier[1]) {
            const u32 blocks = (u32)w.reg(i[3 + rank])[l];
            for (size_t b = 0; b < m.blocks.size(); b++)
                if (blocks >> b & 1) c.to.push_back({&m.blocks[b], to.offset}), c.counted.push_back({&m.blocks[b], counted.offset});
        } else {
            c.to.push_back(to), c.counted.push_back(counted);
        }
        for (size_t k = 0; k < c.to.size(); k++) {
            const Mbarrier& b = mbarrier_at(m, w, i, l, c.counted[k]);
            m.last_loads[b.component] = {b.time(), &i, &w};
            if (m.checks) {
                const Shadow::Access access{i.index, b.component, b.time(), true};
                each_chunk(c, c.to[k].offset, [&](u32 offset, u32, u64, u32, u32) {
                    m.beside_mbarriers(w, i, l, {c.to[k].block, offset}, 16);
                    m.shared_access(w, i, l, {c.to[k].block, offset}, 16, true, access);
                });
            }
        }
        m.count(i).tma_bytes += bytes;
        if (m.at_once()) perform(m, c);
        else m.loads.push_back(c);
    });
}
// Operands: map, from, coordinates …. modifier[0]: rank; [1]: −1, or how to reduce; [2], [3]: what is added to the first two.
inline void tensor_store(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    const int rank = i.modifier[0];
    each_lane(mask, [&](int l) {
        BulkCopy c;
        c.by = &i, c.warp = &w, c.lane = l, c.store = true, c.reduce = i.modifier[1], c.group = w.store_group;
        c.map = map_at(m, w, i, l, w.reg(i[0])[l] + i.modifier[2]);
        check_map(m, w, i, l, c.map, rank);
        for (int a = 0; a < rank; a++) c.at[a] = (s32)w.reg(i[2 + a])[l];
        c.shared = m.place(w, i, l, w.reg(i[1])[l] + i.modifier[3], tile_bytes(c.map), 128);
        if (m.checks) {
            const Shadow::Access access{i.index, m.components.bulk_store(w.index), w.store_group, true};
            each_chunk(c, c.shared.offset, [&](u32 offset, u32, u64, u32, u32) { m.shared_access(w, i, l, {c.shared.block, offset}, 16, false, access); });
        }
        w.last_store = w.store_group, w.last_store_by = &i;
        m.count(i).tma_bytes += tile_bytes(c.map);
        if (m.at_once()) perform(m, c);
        else w.stores.push_back(c);
    });
}
// cp.async.bulk without a tensor. modifier[0]: 0 to shared memory (operands: to, from, bytes, mbarrier), 1 from it (to,
// from, bytes), 2 to the shared memory of another block; [1], [2], [3]: what is added to to, from and mbarrier.
inline void bulk_copy(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    each_lane(mask, [&](int l) {
        BulkCopy c;
        c.by = &i, c.warp = &w, c.lane = l, c.tensor = false, c.store = i.modifier[0] == 1;
        c.bytes = (u32)w.reg(i[2])[l];
        if (c.bytes % 16) m.fail(COPY_ENGINE, w, i, l, "a bulk copy of %u bytes: not a multiple of 16", c.bytes);
        if (i.modifier[0] == 2) m.fail(UNSUPPORTED, w, i, l, "a bulk copy between blocks");
        if (c.store) {
            c.address = w.reg(i[0])[l] + i.modifier[1], c.group = w.store_group;
            c.shared = m.place(w, i, l, w.reg(i[1])[l] + i.modifier[2], c.bytes, 16);
            w.last_store = w.store_group, w.last_store_by = &i;
            if (m.checks) m.shared_access(w, i, l, c.shared, c.bytes, false, {i.index, m.components.bulk_store(w.index), w.store_group, true});
        } else {
            c.address = w.reg(i[1])[l] + i.modifier[2];
            c.to.push_back(m.place(w, i, l, w.reg(i[0])[l] + i.modifier[1], c.bytes, 16));
            c.counted.push_back(m.place(w, i, l, w.reg(i[3])[l] + i.modifier[3], 8, 8));
            const Mbarrier& b = mbarrier_at(m, w, i, l, c.counted[0]);
            m.last_loads[b.component] = {b.time(), &i, &w};
            if (m.checks) {
                m.beside_mbarriers(w, i, l, c.to[0], c.bytes);
                m.shared_access(w, i, l, c.to[0], c.bytes, true, {i.index, b.component, b.time(), true});
            }
        }
        m.global(w, i, l, c.address, c.bytes, 16);
        m.count(i).tma_bytes += c.bytes;
        if (m.at_once()) perform(m, c);
        else if (c.store) w.stores.push_back(c);
        else m.loads.push_back(c);
    });
}
inline void finish_stores(Machine& m, Warp& w, u32 up_to) {
    while (!w.stores.empty() && w.stores.front().group <= up_to) {
        perform(m, w.stores.front());
        w.stores.pop_front();
    }
    u32& known = w.clock.known[m.components.bulk_store(w.index)];
    known = std::max(known, up_to);
}
inline void bulk_commit(Machine&, Warp& w, const Instruction&, u32) { w.store_group++; }
inline void bulk_wait(Machine& m, Warp& w, const Instruction& i, u32) {
    const s64 up_to = (s64)w.store_group - 1 - i.modifier[0];
    if (up_to > 0) finish_stores(m, w, (u32)up_to);
}

// ---- descriptors made on the device ----------------------------------------------------------------------------------

// modifier[0]: the field, as decode.py lists them; [1]: axis; [2]: in global memory. Operands: address, value.
inline void tensormap_replace(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    each_lane(mask, [&](int l) {
        const u64 address = w.reg(i[0])[l] + i.immediate, value = w.reg(i[1])[l];
        const Space space = space_of(address, i.modifier[2] ? GLOBAL : GENERIC);
        u8* at;
        if (space == GLOBAL && i.modifier[2]) {
            at = m.global(w, i, l, address, 128, 128);
        } else {
            const Place place = m.place(w, i, l, address, 128, 128);
            at = &place.block->shared[place.offset];
            if (m.checks) {
                if (!Machine::all_written(&place.block->written[place.offset], 128)) m.fail(UNINITIALISED, w, i, l, "the descriptor at byte %u of shared memory was never written", place.offset);
                u8 other[128];  // it changes
                for (int k = 0; k < 128; k++) other[k] = (u8)~at[k];
                m.generic_access(w, i, l, place, 128, other);
            }
        }
        TensorMap map;
        std::memcpy(&map, at, sizeof map);
        const int axis = i.modifier[1];
        if (axis >= MOST_AXES) m.fail(COPY_ENGINE, w, i, l, "axis %d of a descriptor", axis);
        switch (i.modifier[0]) {
            case 0: map.address = value; std::memcpy(map.magic, MAGIC, 8); break;
            case 1: map.rank_minus_1 = (u32)value; break;
            case 2: map.box[axis] = (u32)value; break;
            case 3: map.size[axis] = (u32)value; break;
            case 4: std::memcpy(map.stride[axis], &value, 8); break;
            case 5: map.element_stride[axis] = (u32)value; break;
            case 6: map.element = (u8)value; break;
            case 7: map.interleave = (u8)value; break;
            case 8: map.swizzle = (u8)value; break;
            default: map.fill = (u8)value; break;
        }
        std::memcpy(at, &map, sizeof map);
    });
}
// tensormap.cp_fenceproxy: from shared to global memory, by the whole warp, whose lanes it orders. Operands: to, from.
inline void tensormap_publish(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    const int l = __builtin_ctz(mask);
    w.step++;
    const Place from = m.place(w, i, l, w.reg(i[1])[l] + i.modifier[1], 128, 128);
    const u64 to = w.reg(i[0])[l] + i.modifier[0];
    if (m.checks) {
        m.generic_access(w, i, l, from, 128, nullptr, false, true);
        if (!Machine::all_written(&from.block->written[from.offset], 128)) m.fail(UNINITIALISED, w, i, l, "the descriptor at byte %u of shared memory was never written", from.offset);
    }
    std::memcpy(m.global(w, i, l, to, 128, 128), &from.block->shared[from.offset], 128);
    auto& written = m.descriptors[to];
    written.first++;
    written.second = w.clock;
    m.events++;
}
// fence.proxy.tensormap::generic.acquire: what this warp knows to be written may be used from now on.
inline void tensormap_acquire(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    each_lane(mask, [&](int l) {
        const u64 address = w.reg(i[0])[l] + i.immediate;
        auto written = m.descriptors.find(address);
        if (written == m.descriptors.end()) return;
        for (int k = 0; k < m.components.warps; k++)
            if (written->second.second.known[k] > w.clock.known[k]) return;
        w.acquired[address] = {written->second.first, w.time()};
    });
    w.tick();
}
inline void fence_async(Machine&, Warp& w, const Instruction&, u32) {
    w.clock.fence();
    w.tick();
}

// ---- barriers of threads ---------------------------------------------------------------------------------------------

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
        const u32 mine = w.time();
        w.step++;
        w.clock.join(b.complete);
        w.clock.known[w.index] = std::max(mine, w.clock.known[w.index]);
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
    if (b.arrived && b.threads != threads && i[2] >= 0 && b.threads) m.fail(BARRIER, w, i, lane, "barrier %u for %u threads, where another warp said %u", number, threads, b.threads);
    if (b.arrived && (b.threads == 0) != (threads == 0)) m.fail(BARRIER, w, i, lane, "barrier %u for %u threads, where another warp said %u (0: all)", number, threads, b.threads);
    if (b.clock.known.empty()) b.clock.reset(m.components.count()), b.complete.reset(m.components.count());
    b.threads = threads;
    b.instruction = (s32)i.index;
    b.arrived += 32;
    if (threads && b.arrived > threads) m.fail(BARRIER, w, i, lane, "barrier %u: %u threads have come, and it is for %u", number, b.arrived, threads);
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
        b.clock.reset(m.components.count());
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
    if (m.cluster_clock.known.empty()) m.cluster_clock.reset(m.components.count()), m.cluster_complete.reset(m.components.count());
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
        m.cluster_clock.reset(m.components.count());
        m.events++;
    }
    *w.ticket = -1;
    w.in_cluster_barrier = false;
    w.step++;
    w.clock.join(m.cluster_complete);
}
