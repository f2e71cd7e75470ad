// The run of a cluster of blocks: its start, its warps in turn, asynchronous work by the schedule, and checks at its end.
#pragma once
#include <numeric>

#include "warps.h"

constexpr u64 MOST_IDLE = 100000;  // rounds in which warps only ask again
constexpr u64 PATIENCE = 16;       // rounds of such turns, with nothing to wait for done, before late work is

void Machine::start(const s32* first, u32 block_count) {
    const int per_block = (threads + 31) / 32;
    if (!started_) {
        blocks.resize(block_count);
        warps.resize(block_count * per_block);
        components.warps = (int)warps.size();
        components.readers = program.asynchronous_reads ? 3 * components.warps : components.warps;
        for (Block& b : blocks) {
            b.shared.resize(launch.shared);
            b.written.resize(launch.shared);
            b.local.resize((size_t)per_block * 32 * program.local);
            b.local_written.resize(b.local.size());
            if (checks) b.shadow.reset(launch.shared, program.granule, components.readers);
        }
        for (Warp& w : warps) {
            w.registers.resize((size_t)program.slots * 32);
            w.undefined.resize(program.slots);
            w.held.resize(program.slots);
            w.in_flight.resize(program.slots);
            w.unfenced.resize(program.slots);
        }
    }
    // What the clusters before did has happened before all that follows.
    Clock all;
    for (Warp& w : warps) {
        all.learn(components.generic(w.index), w.clock.time(components.generic(w.index)));
        all.learn(components.wgmma(w.index), w.product_group++);
        all.learn(components.bulk_store(w.index), w.store_group++);
        all.learn(components.cp_async(w.index), w.copy_group++);
    }
    for (Block& b : blocks) {
        for (auto& [offset, barrier] : b.mbarriers) b.components[offset].second = barrier.before + barrier.phase + 1;
        for (auto& [offset, component] : b.components) all.learn(component.first, component.second);
        b.mbarriers.clear();
        b.atomics.clear();
        for (NamedBarrier& barrier : b.barriers) barrier = NamedBarrier();
    }
    all.fence();
    loads.clear();
    last_loads.clear();
    descriptors.clear();
    cluster_clock = cluster_complete = Clock();
    cluster_arrived = cluster_generation = 0;
    steps_ = idle_ = stale_ = 0;
    const s32* size = launch.cluster;
    for (u32 rank = 0; rank < block_count; rank++) {
        Block& b = blocks[rank];
        b.rank = (int)rank;
        const s32 inside[3] = {(s32)rank % size[0], (s32)rank / size[0] % size[1], (s32)rank / (size[0] * size[1])};
        for (int a = 0; a < 3; a++) b.id[a] = first[a] + inside[a];
        b.first_warp = (int)rank * per_block;
        b.warps = per_block;
        std::fill(b.shared.begin(), b.shared.end(), 0xa5);
        std::fill(b.written.begin(), b.written.end(), 0);
        std::fill(b.local_written.begin(), b.local_written.end(), 0);
        for (int k = 0; k < per_block; k++) {
            Warp& w = warps[b.first_warp + k];
            w.block = &b;
            w.index = b.first_warp + k, w.in_block = k;
            w.live = (u32)ones(std::min(32, threads - 32 * k));
            w.fragments.assign(1, {0, w.live});
            w.blocked = w.yielded = w.in_cluster_barrier = false;
            w.last_store = w.tired = 0;
            w.copies.clear(), w.products.clear(), w.stores.clear(), w.acquired.clear();
            std::fill(w.undefined.begin(), w.undefined.end(), ~0u);
            w.parts.clear();
            std::fill(w.in_flight.begin(), w.in_flight.end(), 0);
            std::fill(w.unfenced.begin(), w.unfenced.end(), 1);
            w.any_unfenced = true;
            w.clock = all;
            w.tick();
            w.step++;
            auto fill = [&](s32 slot, auto value) {
                if (slot < 0) return;
                u64* r = w.reg(slot);
                for (int l = 0; l < 32; l++) r[l] = (u64)value(l);
                w.undefined[slot] = 0;
            };
            for (const Constant& c : program.constants) fill(c.slot, [&](int) { return c.value; });
            const s32* n = launch.block;
            const auto thread = [&](int l) { return 32 * k + l; };
            const s32* special = program.special;
            fill(special[TID_X], [&](int l) { return thread(l) % n[0]; });
            fill(special[TID_Y], [&](int l) { return thread(l) / n[0] % n[1]; });
            fill(special[TID_Z], [&](int l) { return thread(l) / (n[0] * n[1]); });
            for (int a = 0; a < 3; a++) {
                fill(special[NTID_X + a], [&](int) { return n[a]; });
                fill(special[CTAID_X + a], [&](int) { return b.id[a]; });
                fill(special[NCTAID_X + a], [&](int) { return launch.grid[a]; });
                fill(special[CLUSTER_CTAID_X + a], [&](int) { return inside[a]; });
                fill(special[CLUSTER_NCTAID_X + a], [&](int) { return size[a]; });
                fill(special[CLUSTERID_X + a], [&](int) { return b.id[a] / size[a]; });
                fill(special[NCLUSTERID_X + a], [&](int) { return launch.grid[a] / size[a]; });
            }
            fill(special[LANEID], [](int l) { return l; });
            fill(special[WARPID], [&](int) { return k; });
            fill(special[NWARPID], [&](int) { return per_block; });
            fill(special[CLUSTER_CTARANK], [&](int) { return rank; });
            fill(special[CLUSTER_NCTARANK], [&](int) { return block_count; });
            fill(special[LANEMASK_LT], [](int l) { return (1u << l) - 1; });
            fill(special[LANEMASK_LE], [](int l) { return (2ull << l) - 1; });
            fill(special[LANEMASK_GT], [](int l) { return (u32) ~((2ull << l) - 1); });
            fill(special[LANEMASK_GE], [](int l) { return (u32) ~((1u << l) - 1); });
            fill(special[LANEMASK_EQ], [](int l) { return 1u << l; });
        }
    }
    started_ = true;
}

void Machine::run_cluster(const s32* first) {
    start(first, launch.cluster[0] * launch.cluster[1] * launch.cluster[2]);
    std::vector<int> order(warps.size());
    std::iota(order.begin(), order.end(), 0);
    if (launch.schedule == LATE) std::reverse(order.begin(), order.end());
    for (;;) {
        if (launch.schedule == RANDOM) std::shuffle(order.begin(), order.end(), random);
        bool live = false, ran = false;
        const u64 before = events, turns = turns_;
        for (int k : order) {
            if (!warps[k].live) continue;
            live = true;
            if (run_warp(warps[k])) ran = true;
            complete_barriers(*this, *warps[k].block);
        }
        if (!live) break;
        if (launch.schedule == RANDOM) random_work();
        if (events != before) {
            idle_ = stale_ = 0;
        } else if (turns_ != turns && ++stale_ % PATIENCE) {
            idle_ = 0;
        } else if (!late_work()) {
            if (!ran || ++idle_ > MOST_IDLE) deadlock();
        }
    }
    end();
}

// As late as can be: when nothing else can go on, the oldest load.
bool Machine::late_work() {
    if (loads.empty()) return false;
    BulkCopy c = std::move(loads.front());
    loads.pop_front();
    perform(*this, c);
    return true;
}
void Machine::random_work() {
    if (!loads.empty() && coin(2)) {
        const size_t k = random() % loads.size();
        BulkCopy c = std::move(loads[k]);
        loads.erase(loads.begin() + k);
        perform(*this, c);
    }
    Warp& w = warps[random() % warps.size()];
    if (!w.copies.empty() && coin(2)) {
        const size_t k = random() % w.copies.size();
        perform(*this, w, w.copies[k]);
        w.copies.erase(w.copies.begin() + k);
    }
    if (!w.stores.empty() && coin(2)) {
        perform(*this, w.stores.front());
        w.stores.pop_front();
    }
    for (Product& p : w.products)
        if (!p.done && coin(2))
            perform(*this, w, p);
        else if (!p.done)
            break;
}

void Machine::deadlock() {
    char text[512];
    int n = 0;
    const Warp* first = nullptr;
    const Instruction* where = nullptr;
    for (const Warp& w : warps) {
        if (!w.live || w.fragments.empty()) continue;
        const Instruction& i = program.code[w.fragments[0].pc];
        if (!first) first = &w, where = &i;
        if (n < 400) n += std::snprintf(text + n, sizeof text - n, "%s%d", n ? ", " : "", w.in_block);
    }
    fail(DEADLOCK, *first, *where, -1, "no warp can go on: warps %s wait", text);
}

void Machine::end() {
    for (Warp& w : warps) {
        finish_copies(*this, w, w.copy_group);
        if (checks && !w.clock.knows(components.bulk_store(w.index), w.last_store))
            fail(COPY_ENGINE, w, *w.last_store_by, -1,
                "the block ends without a wait for the copy engine to have read its shared memory");
        finish_stores(*this, w, w.store_group);
    }
    for (auto& [component, issued] : last_loads) {
        bool known = !checks;
        for (const Warp& w : warps) known = known || w.clock.knows(component, issued.time);
        if (!known)
            fail(COPY_ENGINE, *issued.warp, *issued.by, -1,
                "the block ends without a wait for this copy into its shared memory");
    }
}

void Machine::run() {
    const s32 *grid = launch.grid, *cluster = launch.cluster;
    threads = launch.block[0] * launch.block[1] * launch.block[2];
    const s64 count = (s64)(grid[0] / cluster[0]) * (grid[1] / cluster[1]) * (grid[2] / cluster[2]);
    std::vector<s32> order(count);
    std::iota(order.begin(), order.end(), 0);
    if (launch.schedule == RANDOM) std::shuffle(order.begin(), order.end(), random);
    for (s32 k : order) {
        const s32 x = grid[0] / cluster[0], y = grid[1] / cluster[1];
        const s32 first[3] = {k % x * cluster[0], k / x % y * cluster[1], k / (x * y) * cluster[2]};
        run_cluster(first);
    }
}
