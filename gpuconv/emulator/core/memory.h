// Loads, stores and atomics; moves.
#pragma once
#include "conversion.h"

// ---- counting --------------------------------------------------------------------------------------------------------

// Global memory: 32-byte sectors that the lanes' accesses of `bytes` bytes touch, beside the least for so many bytes.
inline void count_sectors(Machine& m, const Instruction& i, const u64* address, u32 mask, u32 bytes) {
    Count& c = m.count(i);
    u64 sorted[32];
    int n = 0;
    bool ascending = true;
    for (u32 rest = mask; rest; rest &= rest - 1) {
        sorted[n] = address[__builtin_ctz(rest)];
        if (n && sorted[n] < sorted[n - 1]) ascending = false;
        n++;
    }
    if (!ascending) std::sort(sorted, sorted + n);
    u64 last = ~0ull, before = ~0ull, sectors = 0, different = 0;
    for (int k = 0; k < n; k++) {
        if (sorted[k] != before) different++;
        before = sorted[k];
        for (u64 s = sorted[k] / 32; s <= (sorted[k] + bytes - 1) / 32; s++)
            if (last == ~0ull || s > last) sectors++, last = s;
    }
    c.bytes += (u64)n * bytes;
    c.sectors += sectors;
    c.sectors_least += (different * bytes + 31) / 32;
}
// Shared memory: 32 banks of 4 bytes; a pass reads a word of each. 8 bytes a lane are taken by half a warp at a time, 16
// by a quarter.
inline void count_passes(Machine& m, const Instruction& i, const u32* offset, u32 mask, u32 bytes) {
    const int together = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
    for (int first = 0; first < 32; first += together) {
        u32 words[32][32], most = 0;
        u8 n[32] = {};
        bool any = false;
        for (int l = first; l < first + together; l++) {
            if (!(mask >> l & 1)) continue;
            any = true;
            for (u32 k = 0; k < bytes; k += 4) {
                const u32 word = (offset[l] + k) / 4, bank = word % 32;
                u32 at = 0;
                while (at < n[bank] && words[bank][at] != word) at++;
                if (at == n[bank]) words[bank][n[bank]++] = word;
                most = std::max<u32>(most, n[bank]);
            }
        }
        m.count(i).passes += most;
        m.count(i).passes_least += any;
    }
}

// ---- loads and stores ------------------------------------------------------------------------------------------------
// Operands of ld: the values, the address; of st: the values, the address. modifier[0]: space; [1]: how many values;
// [2]: 1 relaxed or volatile, 2 acquire or release; immediate: offset of the address.

inline Space space_of(u64 address, s32 space) {
    if (space != GENERIC) return (Space)space;
    return address < SHARED_WINDOW      ? GLOBAL
           : address < LOCAL_WINDOW     ? SHARED
           : address < PARAMETER_WINDOW ? LOCAL
                                        : PARAMETER;
}

inline u64 loaded(const u8* from, s32 type) {
    switch (type) {
        case S8:  return (u64)(s64) * reinterpret_cast<const s8*>(from);
        case S16: return (u64)(s64)from_bits<s16>(*reinterpret_cast<const u16*>(from));
        case S32: return (u64)(s64)from_bits<s32>(*reinterpret_cast<const u32*>(from));
    }
    u64 value = 0;
    switch (BYTES[type]) {
        case 1:  return *from;
        case 2:  std::memcpy(&value, from, 2); return value;
        case 4:  std::memcpy(&value, from, 4); return value;
        default: std::memcpy(&value, from, 8); return value;
    }
}

template <bool Store> void access(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    const int values = i.modifier[1], each = BYTES[i.type];
    const u32 bytes = values * each;
    const s32 base = i[values];
    m.defined(w, i, base, mask, "the address");
    u64 address[32];
    const u64* from = w.reg(base);
    for (int l = 0; l < 32; l++) address[l] = from[l] + i.immediate;
    const Space space = space_of(address[__builtin_ctz(mask)], i.modifier[0]);
    for (u32 rest = mask; i.modifier[0] == GENERIC && rest; rest &= rest - 1)
        if (space_of(address[__builtin_ctz(rest)], GENERIC) != space) {  // lane by lane, then
            const u32 one = rest & -rest;
            access<Store>(m, w, i, one);
            if (mask != one) access<Store>(m, w, i, mask & ~one);
            return;
        }
    u64* registers[16];
    for (int k = 0; k < values; k++) registers[k] = i[k] < 0 ? nullptr : w.reg(i[k]);
    const bool checks = m.checks;
    u32 bad = 0, result_bad[16] = {};  // by register: a vector may be read whole and used in part
    if (checks && Store)
        for (int k = 0; k < values; k++) bad |= w.undefined[i[k]] & mask;
    if (space == GLOBAL) {
        if (bad)
            for (int k = 0; k < values; k++) m.defined(w, i, i[k], mask, "what is stored");
        count_sectors(m, i, address, mask, bytes);
        each_lane(mask, [&](int l) {
            u8* at = m.global(w, i, l, address[l], bytes, bytes);
            for (int k = 0; k < values; k++) {
                if (Store)
                    std::memcpy(at + k * each, &registers[k][l], each);
                else if (registers[k])
                    registers[k][l] = loaded(at + k * each, i.type);
            }
        });
        if (Store) m.events++;
    } else if (space == SHARED) {
        u32 offset[32];
        each_lane(mask, [&](int l) {
            const Place at = m.place(w, i, l, address[l], bytes, bytes);
            offset[l] = at.offset;
            u8 *memory = &at.block->shared[at.offset], *written = &at.block->written[at.offset];
            u8 value[64];
            if (Store)
                for (int k = 0; k < values; k++) std::memcpy(value + k * each, &registers[k][l], each);
            if (checks) {
                if (i.modifier[2] == 2 && !Store) {
                    auto known = at.block->atomics.find(at.offset);
                    if (known != at.block->atomics.end()) w.clock.join(known->second), w.step++;
                }
                m.generic_access(w, i, l, at, bytes, Store ? value : nullptr, i.modifier[2] != 0);
                if (Store) {
                    for (int k = 0; k < values; k++)
                        std::memset(written + k * each, w.undefined[i[k]] >> l & 1 ? 0 : 255, each);
                    if (i.modifier[2] == 2) at.block->atomics[at.offset].join(w.clock);
                } else if (!Machine::all_written(written, bytes)) {
                    for (int k = 0; k < values; k++)
                        result_bad[k] |= (u32)!Machine::all_written(written + k * each, each) << l;
                }
            }
            if (Store)
                std::memcpy(memory, value, bytes);
            else
                for (int k = 0; k < values; k++)
                    if (registers[k]) registers[k][l] = loaded(memory + k * each, i.type);
        });
        count_passes(m, i, offset, mask, bytes);
        if (Store) m.events++;
        if (Store && i.modifier[2] == 2) w.tick();
    } else if (space == LOCAL) {
        each_lane(mask, [&](int l) {
            const u64 a = (u32)address[l];  // as in Machine::place
            if (a + bytes > (u64)m.program.local)
                m.fail(BOUNDS, w, i, l, "local memory at %llu, %u bytes: a thread has %d", (unsigned long long)a, bytes,
                    m.program.local);
            if (a % bytes)
                m.fail(ALIGNMENT, w, i, l, "local memory at %llu: not a multiple of %u", (unsigned long long)a, bytes);
            const size_t at = ((size_t)w.in_block * 32 + l) * m.program.local + a;
            for (int k = 0; k < values; k++) {
                if (Store) {
                    std::memcpy(&w.block->local[at + k * each], &registers[k][l], each);
                    std::memset(
                        &w.block->local_written[at + k * each], checks && w.undefined[i[k]] >> l & 1 ? 0 : 255, each);
                } else if (registers[k]) {
                    registers[k][l] = loaded(&w.block->local[at + k * each], i.type);
                }
            }
            for (int k = 0; !Store && k < values; k++)
                result_bad[k] |= (u32)!Machine::all_written(&w.block->local_written[at + k * each], each) << l;
        });
    } else {
        if (Store) m.fail(UNSUPPORTED, w, i, -1, "a store to a parameter");
        each_lane(mask, [&](int l) {
            const u64 a = address[l] >= PARAMETER_WINDOW ? address[l] - PARAMETER_WINDOW : address[l];
            if (a + bytes > (u64)m.launch.parameter_bytes)
                m.fail(BOUNDS, w, i, l, "parameter at %llu, %u bytes: there are %d", (unsigned long long)a, bytes,
                    m.launch.parameter_bytes);
            for (int k = 0; k < values; k++)
                if (registers[k]) registers[k][l] = loaded(m.launch.parameters + a + k * each, i.type);
        });
    }
    if (checks && !Store)
        for (int k = 0; k < values; k++)
            if (i[k] >= 0) w.undefined[i[k]] = (w.undefined[i[k]] & ~mask) | result_bad[k];
}

// ---- atomics ---------------------------------------------------------------------------------------------------------
// modifier[0]: space; [1]: operation; [2]: 1 relaxed, 2 acquire, 4 release; [3]: whether it gives the old value;
// [4]: how many values (red.v2, .v4). Operands: old (or −1), address, b, and c of cas.

enum Atomic : s32 { A_ADD, A_MIN, A_MAX, A_AND, A_OR, A_XOR, A_EXCHANGE, A_CAS, A_INC, A_DEC };

template <class A> inline A atomic_result(A old, A b, s32 operation) {
    switch (operation) {
        case A_ADD:
            if constexpr (floating<A>)
                return A((A)(old + b));
            else
                return (A)((u64)old + (u64)b);
        case A_MIN: return b < old ? b : old;
        case A_MAX: return b > old ? b : old;
        case A_INC: return old >= b ? A(0) : A(old + A(1));
        case A_DEC: return old == A(0) || old > b ? b : A(old - A(1));
        default:    return b;
    }
}
inline u64 atomic_value(u64 old, u64 b, u64 c, const Instruction& i) {
    switch (i.modifier[1]) {
        case A_AND:      return old & b;
        case A_OR:       return old | b;
        case A_XOR:      return old ^ b;
        case A_EXCHANGE: return b;
        case A_CAS:      return old == (b & ones(8 * BYTES[i.type])) ? c : old;
    }
#define AS(TYPE) to_bits(atomic_result<TYPE>(from_bits<TYPE>(old), from_bits<TYPE>(b), i.modifier[1]))
    switch (i.type) {
        case F32:    return AS(float);
        case F64:    return AS(double);
        case F16:    return to_bits(Half((float)from_bits<Half>(old) + (float)from_bits<Half>(b)));
        case BF16:   return to_bits(BFloat((float)from_bits<BFloat>(old) + (float)from_bits<BFloat>(b)));
        case F16X2:
        case BF16X2: {
            u64 result = 0;
            for (int half = 0; half < 2; half++) {
                const u16 x = (u16)(old >> 16 * half), y = (u16)(b >> 16 * half);
                const u16 sum = i.type == F16X2 ? float_to_half(half_to_float(x) + half_to_float(y))
                                                : float_to_bfloat(bfloat_to_float(x) + bfloat_to_float(y));
                result |= (u64)sum << 16 * half;
            }
            return result;
        }
        case S32: return AS(s32);
        case S64: return AS(s64);
        case U64:
        case B64: return AS(u64);
        case U16:
        case B16: return AS(u16);
        default:  return AS(u32);
    }
#undef AS
}
inline void atomic(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    const int values = i.modifier[4], bytes = BYTES[i.type];
    const s32* source = i.source();
    m.defined(w, i, source[0], mask, "the address");
    for (int k = 1; k < i.sources; k++) m.defined(w, i, source[k], mask, "what is stored");
    u64 address[32];
    for (int l = 0; l < 32; l++) address[l] = w.reg(source[0])[l] + i.immediate;
    const bool global = space_of(address[__builtin_ctz(mask)], i.modifier[0]) == GLOBAL;
    if (global) count_sectors(m, i, address, mask, bytes * values);
    u32 offset[32];
    each_lane(mask, [&](int l) {
        u8* at;
        Place place{};
        if (global) {
            at = m.global(w, i, l, address[l], bytes * values, bytes * values);
        } else {
            place = m.place(w, i, l, address[l], bytes * values, bytes * values);
            offset[l] = place.offset;
            at = &place.block->shared[place.offset];
            if (m.checks) {
                if (!Machine::all_written(&place.block->written[place.offset], bytes * values))
                    m.fail(UNINITIALISED, w, i, l, "shared memory at byte %u was never written", place.offset);
                Clock& known = place.block->atomics[place.offset];
                if (i.modifier[2] & 2) w.clock.join(known), w.step++;
                u8 nothing[64] = {};
                m.generic_access(w, i, l, place, bytes * values, nothing, true);
                if (i.modifier[2] & 4) known.join(w.clock);
            }
        }
        for (int k = 0; k < values; k++) {
            u64 old = 0;
            std::memcpy(&old, at + k * bytes, bytes);
            const u64 b = w.reg(source[1 + k])[l], c = i.modifier[1] == A_CAS ? w.reg(source[2])[l] : 0;
            const u64 result = atomic_value(old, b, c, i);
            std::memcpy(at + k * bytes, &result, bytes);
            if (i.modifier[3] && i[k] >= 0) w.reg(i[k])[l] = old;
        }
    });
    if (!global) count_passes(m, i, offset, mask, bytes * values);
    if (i.modifier[3])
        for (int k = 0; k < values; k++)
            if (i[k] >= 0) w.undefined[i[k]] &= ~mask;
    if (i.modifier[2] & 4) w.tick();
    m.events++;
}

// ---- moves -----------------------------------------------------------------------------------------------------------

inline void move(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]);
    if (mask == ~0u)
        std::memcpy(d, a, 32 * sizeof *d);
    else
        each_lane(mask, [&](int l) { d[l] = a[l]; });
}
// cvta, its reverse, and mapa (of shared memory; modifier[0]: 3, operand 2: the block's rank in the cluster).
inline void convert_address(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]);
    each_lane(mask, [&](int l) {
        switch (i.modifier[0]) {
            case 0:  d[l] = a[l]; break;
            case 1:  d[l] = a[l] + i.immediate; break;                                    // to a window
            case 2:  d[l] = a[l] >= (u64)i.immediate ? a[l] - i.immediate : a[l]; break;  // from it
            default: {
                const u64 rank = (u32)w.reg(i[2])[l], generic = a[l] & SHARED_WINDOW;
                if (rank >= m.blocks.size())
                    m.fail(BOUNDS, w, i, l, "mapa to block %llu of a cluster of %zu", (unsigned long long)rank,
                        m.blocks.size());
                d[l] = generic | (rank + 1) << BLOCK_SHIFT | (a[l] & ((1u << BLOCK_SHIFT) - 1));
            }
        }
    });
}
inline void is_space(Machine&, Warp& w, const Instruction& i, u32 mask) {  // modifier[0]: the space
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]);
    each_lane(mask, [&](int l) { d[l] = space_of(a[l], GENERIC) == i.modifier[0]; });
}
inline void pack(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64* d = w.reg(i[0]);
    const int n = i.sources, bits = 8 * BYTES[i.type] / n;
    each_lane(mask, [&](int l) {
        u64 value = 0;
        for (int k = 0; k < n; k++) value |= (w.reg(i[1 + k])[l] & ones(bits)) << (bits * k);
        d[l] = value;
    });
}
// Compilers put registers together of which they want one half only, and then take that half.
inline void remember_parts(Warp& w, const Instruction& i, u32 mask) {
    std::vector<u32>& parts = w.parts[i[0]];
    parts.resize(i.sources, ~0u);
    for (int k = 0; k < i.sources; k++) parts[k] = (parts[k] & ~mask) | (w.undefined[i[1 + k]] & mask);
}
inline void unpack(Machine&, Warp& w, const Instruction& i, u32 mask) {
    const int n = i.results, bits = 8 * BYTES[i.type] / n;
    u64 from[32];
    std::memcpy(from, w.reg(i[n]), sizeof from);
    for (int k = 0; k < n; k++) {
        if (i[k] < 0) continue;
        u64* d = w.reg(i[k]);
        each_lane(mask, [&](int l) { d[l] = from[l] >> (bits * k) & ones(bits); });
    }
}
inline const std::vector<u32>* parts_of(
    const Warp& w, const Instruction& i) {  // of what unpack takes apart, where they are known
    auto found = w.parts.find(i[i.results]);
    return found != w.parts.end() && (int)found->second.size() == i.results ? &found->second : nullptr;
}
