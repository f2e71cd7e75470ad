// The copy engine (TMA): tiles of tensors and rows of bytes between global and shared memory.
#pragma once
#include "asynchronous.h"

// In the order of tensormap.replace's elemtype: u8 u16 u32 s32 u64 s64 f16 f32 f32.ftz f64 bf16 tf32 tf32.ftz.
constexpr u32 ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2, 4, 4};
constexpr char MAGIC[9] = "GPUCONVT";

// Bits 4 … of an address in shared memory are changed by bits 7 …: 1, 2 or 3 of them for 32, 64 and 128 bytes.
inline u32 swizzled(u32 address, int bits) { return address ^ ((address >> 3) & (((1u << bits) - 1) << 4)); }
inline u64 stride_of(const TensorMap& map, int axis) {
    return from_bits<u64>(*reinterpret_cast<const u64*>(map.stride[axis - 1]));
}

inline void check_map(Machine& m, Warp& w, const Instruction& i, int l, const TensorMap& map, int rank) {
    auto refuse = [&](const char* what, u64 value, int axis) {
        m.fail(COPY_ENGINE, w, i, l, "a descriptor with %s %llu%s%c", what, (unsigned long long)value,
            axis < 0 ? "" : " on axis ", axis < 0 ? ' ' : '0' + axis);
    };
    if (std::memcmp(map.magic, MAGIC, 8))
        m.fail(COPY_ENGINE, w, i, l, "what lies there is no descriptor (or some of its fields were never set)");
    if ((int)map.rank_minus_1 + 1 != rank) refuse("rank", map.rank_minus_1 + 1, -1);
    if (map.element > 12) refuse("element type", map.element, -1);
    if (map.element == 8 || map.element >= 11)
        m.fail(UNSUPPORTED, w, i, l, "element type %d of a descriptor", map.element);
    if (map.interleave) m.fail(UNSUPPORTED, w, i, l, "interleave layout %d of a descriptor", map.interleave);
    if (map.swizzle > 3) refuse("swizzle mode", map.swizzle, -1);
    if (map.fill > 1) refuse("fill mode", map.fill, -1);
    const u32 bytes = ELEMENT_BYTES[map.element];
    if (map.address % 16)
        m.fail(COPY_ENGINE, w, i, l, "a descriptor of a tensor whose address is not a multiple of 16 bytes");
    for (int a = 0; a < rank; a++) {
        if (map.box[a] < 1 || map.box[a] > 256) refuse("a box of size", map.box[a], a);
        if (map.size[a] == 0) refuse("a tensor of size", 0, a);
        if (map.element_stride[a] != 1) {
            if (map.element_stride[a] == 0 || map.element_stride[a] > 8)
                refuse("an element stride of", map.element_stride[a], a);
            m.fail(UNSUPPORTED, w, i, l, "element stride %u of a descriptor", map.element_stride[a]);
        }
        if (a && (stride_of(map, a) % 16 || stride_of(map, a) >= 1ull << 40))
            refuse("a stride in bytes of", stride_of(map, a), a);
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
            f(swizzled(start + r * row + e * bytes, map.swizzle), inside, address + (u64)(x * (s64)bytes), bytes,
                per_chunk);
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
        case 6:
        case 10: return 0x7fff;
        case 7:  return 0x7fffffff;
        case 9:  return 0x7fffffffffffffffull;
        default: return 0;
    }
}
template <class A> inline void reduce_element(u8* to, const u8* from, s32 operation) {
    A old, value;
    std::memcpy(&old, to, sizeof old);
    std::memcpy(&value, from, sizeof value);
    A result;
    if constexpr (std::is_integral<A>::value) {
        result = operation == A_AND   ? (A)(old & value)
                 : operation == A_OR  ? (A)(old | value)
                 : operation == A_XOR ? (A)(old ^ value)
                                      : atomic_result<A>(old, value, operation);
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
        case 2:  return reduce_element<u32>(to, from, operation);
        case 3:  return reduce_element<s32>(to, from, operation);
        case 4:  return reduce_element<u64>(to, from, operation);
        case 5:  return reduce_element<s64>(to, from, operation);
        case 6:  return reduce_element<Half>(to, from, operation);
        case 7:  return reduce_element<float>(to, from, operation);
        case 9:  return reduce_element<double>(to, from, operation);
        case 10: return reduce_element<BFloat>(to, from, operation);
    }
}
inline void perform(Machine& m, BulkCopy& c) {
    Warp& w = *c.warp;
    const Instruction& i = *c.by;
    if (!c.tensor) {
        if (c.store) {
            std::memcpy(
                m.global(w, i, c.lane, c.address, c.bytes, 16), &c.shared.block->shared[c.shared.offset], c.bytes);
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
                    m.fail(UNINITIALISED, w, i, c.lane,
                        "the copy engine stores shared memory at byte %u, which was never written", offset + k * bytes);
                u8* to = m.global(w, i, c.lane, address + k * bytes, bytes, bytes);
                if (c.reduce < 0)
                    std::memcpy(to, from + k * bytes, bytes);
                else
                    reduce_elements(to, from + k * bytes, c.map.element, c.reduce);
            }
        });
    } else {
        const u64 fill = fill_of(c.map);
        for (Place destination : c.to)
            each_chunk(c, destination.offset, [&](u32 offset, u32 inside, u64 address, u32 bytes, u32 per_chunk) {
                u8* to = &destination.block->shared[offset];
                if (inside == ones(per_chunk))
                    std::memcpy(to, m.global(w, i, c.lane, address, 16, bytes), 16);
                else
                    for (u32 k = 0; k < per_chunk; k++) {
                        if (inside >> k & 1)
                            std::memcpy(
                                to + k * bytes, m.global(w, i, c.lane, address + k * bytes, bytes, bytes), bytes);
                        else
                            std::memcpy(to + k * bytes, &fill, bytes);
                    }
                std::memset(&destination.block->written[offset], 255, 16);
            });
    }
    for (Place counted : c.counted) {
        auto found = counted.block->mbarriers.find(counted.offset);
        if (found == counted.block->mbarriers.end())
            m.fail(BARRIER, w, i, c.lane, "a copy is done, and its mbarrier at byte %u is no more", counted.offset);
        Mbarrier& b = found->second;
        b.transactions -= c.tensor ? tile_bytes(c.map) : c.bytes;
        if (b.transactions <= -(1 << 20))
            m.fail(BARRIER, w, i, c.lane, "an mbarrier counts %lld bytes too many", (long long)-b.transactions);
        settle(m, b);
    }
    m.events++;
}

// A descriptor in global memory (made on the device, or by the host) or in a parameter.
inline TensorMap map_at(Machine& m, Warp& w, const Instruction& i, int l, u64 address) {
    TensorMap map;
    if (address >= PARAMETER_WINDOW) {
        const u64 at = address - PARAMETER_WINDOW;
        if (at + sizeof map > (u64)m.launch.parameter_bytes)
            m.fail(BOUNDS, w, i, l, "a descriptor at parameter byte %llu: there are %d", (unsigned long long)at,
                m.launch.parameter_bytes);
        std::memcpy(&map, m.launch.parameters + at, sizeof map);
        return map;
    }
    std::memcpy(&map, m.global(w, i, l, address, sizeof map, 64), sizeof map);
    auto written = m.descriptors.find(address);
    if (m.checks && written != m.descriptors.end()) {
        bool known = false;
        for (const Warp& other : m.warps) {
            const auto acquired = other.acquired.find(address);
            known = known || (acquired != other.acquired.end() && acquired->second.first == written->second.first &&
                                 w.clock.knows(other.index, acquired->second.second));
        }
        if (!known)
            m.fail(COPY_ENGINE, w, i, l,
                "a descriptor that the kernel has made is used before fence.proxy.tensormap::generic.acquire");
    }
    return map;
}
// Operands: to, map, mbarrier, coordinates …, and the blocks of a multicast (or −1). modifier[0]: rank; [1]: multicast;
// [2], [3], [4]: offsets of the first three.
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
                if (blocks >> b & 1)
                    c.to.push_back({&m.blocks[b], to.offset}), c.counted.push_back({&m.blocks[b], counted.offset});
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
        if (m.at_once())
            perform(m, c);
        else
            m.loads.push_back(c);
    });
}
// Operands: map, from, coordinates …. modifier[0]: rank; [1]: −1, or the reduction; [2], [3]: offsets of the first two.
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
            each_chunk(c, c.shared.offset, [&](u32 offset, u32, u64, u32, u32) {
                m.shared_access(w, i, l, {c.shared.block, offset}, 16, false, access);
            });
        }
        w.last_store = w.store_group, w.last_store_by = &i;
        m.count(i).tma_bytes += tile_bytes(c.map);
        if (m.at_once())
            perform(m, c);
        else
            w.stores.push_back(c);
    });
}
// cp.async.bulk without a tensor. modifier[0]: 0 to shared memory (operands: to, from, bytes, mbarrier), 1 from it (to,
// from, bytes), 2 to the shared memory of another block; [1], [2], [3]: offsets of to, from and mbarrier.
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
            if (m.checks)
                m.shared_access(w, i, l, c.shared, c.bytes, false,
                    {i.index, m.components.bulk_store(w.index), w.store_group, true});
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
        if (m.at_once())
            perform(m, c);
        else if (c.store)
            w.stores.push_back(c);
        else
            m.loads.push_back(c);
    });
}
inline void finish_stores(Machine& m, Warp& w, u32 up_to) {
    while (!w.stores.empty() && w.stores.front().group <= up_to) {
        perform(m, w.stores.front());
        w.stores.pop_front();
    }
    w.clock.learn(m.components.bulk_store(w.index), up_to);
}
inline void bulk_commit(Machine&, Warp& w, const Instruction&, u32) { w.store_group++; }
inline void bulk_wait(Machine& m, Warp& w, const Instruction& i, u32) {
    const s64 up_to = (s64)w.store_group - 1 - i.modifier[0];
    if (up_to > 0) finish_stores(m, w, (u32)up_to);
}
