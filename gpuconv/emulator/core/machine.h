// The machine: a cluster of blocks at a time, their warps, registers, memory and barriers.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <deque>
#include <map>
#include <random>
#include <unordered_map>

#include "clocks.h"
#include "program.h"

// ---- faults ----------------------------------------------------------------------------------------------------------

// In the order of `_KINDS` in gpuconv/emulator/program.py.
enum Kind : s32 {
    BOUNDS,
    ALIGNMENT,
    UNINITIALISED,
    RACE,
    BARRIER,
    DEADLOCK,
    COPY_ENGINE,
    WGMMA,
    UNSUPPORTED,
    TRAP,
    INTERRUPTED
};

struct Fault {
    s32 kind = -1, instruction = -1, other = -1;  // other: the instruction that it races with
    s32 block[3] = {0, 0, 0}, thread = -1;        // thread: in the block, or −1 where it is no single one's
    char text[512] = "";
};

// ---- memory ----------------------------------------------------------------------------------------------------------

// Generic addresses: global memory lies below; bits 40 and up of a global address are the number of its range.
constexpr u64 SHARED_WINDOW = 1ull << 60, LOCAL_WINDOW = 1ull << 61, PARAMETER_WINDOW = 1ull << 62;
constexpr int RANGE_SHIFT = 40, BLOCK_SHIFT = 24;  // shared::cluster addresses: the block's rank + 1, then the offset
enum Space : s32 { GENERIC, GLOBAL, SHARED, LOCAL, PARAMETER };

struct Range {               // of global memory; numbered from 1
    u64 first, host, bytes;  // its first virtual address; where it lies here
};

struct Launch {
    s32 grid[3], block[3], cluster[3];
    s32 shared, schedule, checks, parameter_bytes;
    u32 seed;
    s32 range_count;
    const u8* parameters;
    const Range* ranges;
    s32 (*interrupted)();  // called from time to time
};
enum Schedule : s32 { EARLY, LATE, RANDOM };

struct Place {  // in the shared memory of some block of the cluster
    struct Block* block;
    u32 offset;
};

// ---- barriers --------------------------------------------------------------------------------------------------------

struct Mbarrier {
    u32 expected = 0, arrived = 0, phase = 0;  // phase: how many are complete
    s64 transactions = 0;
    int component = 0;
    u32 before = 0;           // phases of the barriers that were at this place before: its component goes on from there
    Clock pending, complete;  // what those that arrived know
    u32 time() const { return before + phase + 1; }  // of copies that count for the current phase
};

struct NamedBarrier {
    u32 threads = 0, arrived = 0, waiting = 0, generation = 0;  // threads: how many it is for
    s32 instruction = -1;
    u32 any = 0, all = 1, count = 0;  // of bar.red
    Clock clock, complete;
    u32 red_any = 0, red_all = 1, red_count = 0;
};

// ---- asynchronous operations -----------------------------------------------------------------------------------------

struct Copy {  // cp.async, of one lane
    const Instruction* by;
    u64 from;
    Place to;
    s32 bytes, from_bytes, lane;
    u32 group;
};

constexpr int MOST_AXES = 5;
struct TensorMap {  // the 128 bytes of a descriptor, as gpuconv/emulator/tensor_map.py and tensormap.replace fill them
    u64 address;
    u32 rank_minus_1, box[MOST_AXES], size[MOST_AXES], element_stride[MOST_AXES];
    u8 element, interleave, swizzle, fill;
    u8 stride[MOST_AXES][8];  // bytes, of axes 1, 2, …
    u8 magic[8], zeros[4];
};
static_assert(sizeof(TensorMap) == 128, "a descriptor has 128 bytes");

struct BulkCopy {  // by the copy engine: a tile of a tensor, or bytes
    const Instruction* by;
    struct Warp* warp;
    bool store = false, tensor = true;
    s32 reduce = -1;
    TensorMap map;
    s32 at[MOST_AXES] = {};
    u64 address = 0;
    u32 bytes = 0;
    Place shared{};
    std::vector<Place> to;       // of a load: one place for each block that it goes to
    std::vector<Place> counted;  // the mbarrier of each
    s32 lane = 0;
    u32 group = 0;
};

struct Product {  // wgmma
    const Instruction* by;
    u64 a, b;  // descriptors
    bool accumulate;
    u32 group;
    bool done = false;
};

// ---- warps and blocks ------------------------------------------------------------------------------------------------

struct Fragment {  // lanes that are at the same instruction
    u32 pc, lanes;
    bool parked = false;  // until other lanes come
    u64 blocked = 0;      // not 0: until `Machine::events` is another number
    s64 ticket = -1;      // of the barrier that it has arrived at: its generation
};

struct Warp {
    struct Block* block = nullptr;
    int index = 0, in_block = 0;  // in the cluster, in the block
    u32 live = 0;
    std::vector<u64> registers;
    std::vector<u32> undefined;  // by register, the lanes whose value was never written
    std::unordered_map<s32, std::vector<u32>>
        parts;                  // undefined lanes of each part of a register that was composed of several
    std::vector<u8> in_flight;  // registers that a wgmma reads or writes: how many do
    std::vector<u32> held;      // their undefined lanes meanwhile
    std::vector<u8> unfenced;   // registers of wgmma that were written since the last wgmma.fence
    bool any_unfenced = true;
    std::vector<Fragment> fragments;        // ascending
    bool blocked = false, yielded = false;  // what the handler that has just run says
    s64* ticket = nullptr;
    Clock clock;
    u32 step = 1;                                            // how often its lanes have waited for each other
    u32 copy_group = 1, product_group = 1, store_group = 1;  // numbers of the open groups
    std::vector<Copy> copies;
    std::deque<Product> products;
    std::deque<BulkCopy> stores;
    std::unordered_map<u64, std::pair<u32, u32>> acquired;  // descriptors: which write of them was acquired, and when
    bool in_cluster_barrier = false;
    u32 cluster_generation = 0;  // of the barrier that it has arrived at
    u32 tired = 0;               // turns that ended while its lanes were apart
    u32 last_store = 0;          // the group of its last bulk store
    const Instruction* last_store_by = nullptr;

    u64* reg(s32 slot) { return &registers[(size_t)slot * 32]; }
    u32 time() const { return clock.time(index); }
    void tick() { clock.known[index]++; }  // a clock learnt from before does not cover what follows
};

struct Block {
    s32 id[3];
    int rank = 0;
    std::vector<u8> shared, written;  // written: 255 where a byte of shared memory was
    std::vector<u8> local, local_written;
    Shadow shadow;
    std::map<u32, Mbarrier> mbarriers;
    std::map<u32, std::pair<int, u32>> components;  // of the mbarriers that were: component, phases
    std::map<u32, Clock> atomics;                   // the knowledge released by atomics at each address
    NamedBarrier barriers[16];
    int first_warp = 0, warps = 0;
};

class Machine {
  public:
    const Program& program;
    const Launch& launch;
    Count* counts;
    std::mt19937 random;
    std::vector<Block> blocks;
    std::vector<Warp> warps;
    std::deque<BulkCopy> loads;
    struct Issued {
        u32 time;
        const Instruction* by;
        const Warp* warp;
    };
    std::map<int, Issued> last_loads;  // by the component of the mbarrier that counts them
    Components components;
    bool checks;
    u64 events = 1;   // counts what others may wait for
    int threads = 0;  // of a block
    u32 cluster_arrived = 0, cluster_generation = 0;
    Clock cluster_clock, cluster_complete;
    std::unordered_map<u64, std::pair<u32, Clock>>
        descriptors;  // written by the device: how often, and what its writer knew

    Machine(const Program& p, const Launch& l, Count* c)
        : program(p), launch(l), counts(c), random(l.seed), checks(l.checks) {}
    void run();
    void run_cluster(const s32* first);

    [[noreturn, gnu::format(printf, 6, 7)]] void fail(
        Kind kind, const Warp& w, const Instruction& i, int lane, const char* format, ...) const {
        va_list rest;
        va_start(rest, format);
        raise(kind, w, i, lane, -1, format, rest);
    }
    // A fault of two instructions.
    [[noreturn, gnu::format(printf, 7, 8)]] void fail(
        Kind kind, const Warp& w, const Instruction& i, int lane, u32 other, const char* format, ...) const {
        va_list rest;
        va_start(rest, format);
        raise(kind, w, i, lane, (s32)other, format, rest);
    }
    bool coin(u32 of) { return launch.schedule == RANDOM && random() % of == 0; }
    // Whether an asynchronous operation that is issued now is done at once.
    bool at_once() { return launch.schedule == EARLY || coin(3); }

    Count& count(const Instruction& i) { return counts[i.index]; }

    // ---- memory --------------------------------------------------------------------------------------------------
    Place place(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes, u32 alignment) {
        const u64 a = (u32)address;  // 32 bits: a register and an offset wrap around, and the generic window is above
        const u64 rank = a >> BLOCK_SHIFT, offset = a & ((1u << BLOCK_SHIFT) - 1);
        Block* block = rank == 0 ? w.block : rank <= blocks.size() ? &blocks[rank - 1] : nullptr;
        if (!block || offset + bytes > block->shared.size())
            fail(BOUNDS, w, i, lane, "shared memory at %llu, %u bytes: the block has %zu", (unsigned long long)a, bytes,
                w.block->shared.size());
        if (offset % alignment)
            fail(ALIGNMENT, w, i, lane, "shared memory at %llu: not a multiple of %u", (unsigned long long)offset,
                alignment);
        return {block, (u32)offset};
    }
    u8* global(const Warp& w, const Instruction& i, int lane, u64 address, u32 bytes, u32 alignment) const {
        const u64 number = address >> RANGE_SHIFT;
        if (number == 0 || number > (u64)launch.range_count) outside(w, i, lane, address, bytes);
        const Range& range = launch.ranges[number - 1];
        if (address < range.first || address + bytes > range.first + range.bytes) outside(w, i, lane, address, bytes);
        if (address % alignment)
            fail(ALIGNMENT, w, i, lane, "global memory: byte %llu of argument %llu is not a multiple of %u",
                (unsigned long long)(address - range.first), (unsigned long long)number, alignment);
        return reinterpret_cast<u8*>(range.host + (address - range.first));
    }
    [[noreturn]] void outside(const Warp& w, const Instruction& i, int lane, u64 address, u32 bytes) const {
        // The range that it was meant for is the nearest: an offset below 0 falls into the number before.
        const u64 number = (address + (1ull << (RANGE_SHIFT - 1))) >> RANGE_SHIFT;
        if (number == 0 || number > (u64)launch.range_count)
            fail(BOUNDS, w, i, lane, "global memory at 0x%llx, which is in no tensor", (unsigned long long)address);
        const Range& range = launch.ranges[number - 1];
        fail(BOUNDS, w, i, lane, "global memory: %u bytes at byte %lld of buffer #%llu, which has %llu", bytes,
            (long long)(address - range.first), (unsigned long long)number, (unsigned long long)range.bytes);
    }

    // ---- races ---------------------------------------------------------------------------------------------------
    void shared_access(
        Warp& w, const Instruction& i, int lane, Place at, u32 bytes, bool write, const Shadow::Access& access) {
        Shadow::Conflict conflict{};
        const bool good = write ? at.block->shadow.write(at.offset, bytes, access, w.clock, conflict)
                                : at.block->shadow.read(at.offset, bytes, access, w.clock, conflict);
        if (!good)
            fail(RACE, w, i, lane, conflict.instruction,
                "%s shared memory at byte %u while another %s, and nothing orders the two", write ? "writes" : "reads",
                at.offset, conflict.how);
    }
    // An access of one lane of the warp.
    Shadow::Access by_lane(const Warp& w, const Instruction& i, u32 lane, bool atomic = false) const {
        return {i.index, components.generic(w.index), w.time(), false, atomic, lane, w.index, w.step};
    }
    // By a lane of the warp, or by all together. Writing what is there already is no race.
    void generic_access(Warp& w, const Instruction& i, int lane, Place at, u32 bytes, const u8* value,
        bool atomic = false, bool together = false) {
        if (!checks) return;
        beside_mbarriers(w, i, lane, at, bytes);
        const Shadow::Access access = by_lane(w, i, together ? Shadow::ALL : (u32)lane, atomic);
        if (value && !atomic && !std::memcmp(&at.block->shared[at.offset], value, bytes) &&
            all_written(&at.block->written[at.offset], bytes)) {
            if (!together) at.block->shadow.same_value(at.offset, bytes, access);
            return;
        }
        shared_access(w, i, lane, at, bytes, value != nullptr, access);
    }
    // Only instructions of its own may access an mbarrier, from mbarrier.init to mbarrier.inval.
    void beside_mbarriers(const Warp& w, const Instruction& i, int lane, Place at, u32 bytes) const {
        const auto& there = at.block->mbarriers;
        if (there.empty()) return;
        const auto next = there.lower_bound(at.offset > 7 ? at.offset - 7 : 0);
        if (next != there.end() && next->first < at.offset + bytes)
            fail(BARRIER, w, i, lane, "shared memory at byte %u is an mbarrier, which no mbarrier.inval has ended",
                next->first);
    }
    static bool all_written(const u8* written, u32 bytes) {
        for (u32 k = 0; k < bytes; k++)
            if (!written[k]) return false;
        return true;
    }

    // ---- undefined values ----------------------------------------------------------------------------------------
    void defined(Warp& w, const Instruction& i, s32 slot, u32 mask, const char* what) {
        if (!checks || slot < 0 || !(w.undefined[slot] & mask)) return;
        if (w.in_flight[slot])
            fail(WGMMA, w, i, -1, "%s is a register of a wgmma that no wgmma.wait_group has waited for", what);
        fail(UNINITIALISED, w, i, __builtin_ctz(w.undefined[slot] & mask), "%s was never written", what);
    }

  private:
    [[noreturn]] static void raise(
        Kind kind, const Warp& w, const Instruction& i, int lane, s32 other, const char* format, va_list rest) {
        Fault fault;
        fault.kind = kind;
        fault.instruction = (s32)i.index, fault.other = other;
        std::memcpy(fault.block, w.block->id, sizeof fault.block);
        fault.thread = lane < 0 ? -1 : w.in_block * 32 + lane;
        std::vsnprintf(fault.text, sizeof fault.text, format, rest);
        va_end(rest);
        throw fault;
    }
    enum class Stop { ENDED, WAITS, JUMPED, TIRED };
    void start(const s32* first, u32 cluster_warps);
    bool run_warp(Warp& w);
    Stop run_fragment(Warp& w, size_t at, u32& budget);
    void look_at_operands(Warp& w, const Instruction& i, u32 mask, u32& undefined);
    bool late_work();
    void random_work();
    void end();
    [[noreturn]] void deadlock();
    u64 steps_ = 0, idle_ = 0, stale_ = 0, turns_ = 0;
    bool started_ = false;
};
