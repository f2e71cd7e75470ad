// Descriptors of the copy engine that a kernel makes itself.
#pragma once
#include "copy_engine.h"

// modifier[0]: the field, as decode/matrix.py lists them; [1]: axis; [2]: in global memory. Operands: address, value.
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
                if (!Machine::all_written(&place.block->written[place.offset], 128))
                    m.fail(UNINITIALISED, w, i, l, "the descriptor at byte %u of shared memory was never written",
                        place.offset);
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
            case 0:
                map.address = value;
                std::memcpy(map.magic, MAGIC, 8);
                break;
            case 1:  map.rank_minus_1 = (u32)value; break;
            case 2:  map.box[axis] = (u32)value; break;
            case 3:  map.size[axis] = (u32)value; break;
            case 4:  std::memcpy(map.stride[axis], &value, 8); break;
            case 5:  map.element_stride[axis] = (u32)value; break;
            case 6:  map.element = (u8)value; break;
            case 7:  map.interleave = (u8)value; break;
            case 8:  map.swizzle = (u8)value; break;
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
        if (!Machine::all_written(&from.block->written[from.offset], 128))
            m.fail(UNINITIALISED, w, i, l, "the descriptor at byte %u of shared memory was never written", from.offset);
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
            if (!w.clock.knows(k, written->second.second.time(k))) return;
        w.acquired[address] = {written->second.first, w.time()};
    });
    w.tick();
}
inline void fence_async(Machine&, Warp& w, const Instruction&, u32) {
    w.clock.fence();
    w.tick();
}
