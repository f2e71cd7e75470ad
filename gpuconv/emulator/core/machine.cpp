// Runs a decoded program: one cluster of blocks after the other, its warps in turn, 32 lanes in step.
#include "machine.h"

#include <numeric>

#include "matrix.h"

// ---- which handler ---------------------------------------------------------------------------------------------------

namespace {

struct Operation {
    const char* name;
    Handler (*select)(const Instruction&);
    Flow flow = NEXT;
    Undefined undefined = SPREADS;
};
#define IS(FUNCTION) [](const Instruction&) -> Handler { return FUNCTION; }
#define BY(FUNCTION) [](const Instruction& i) -> Handler { return FUNCTION(i.type); }

const Operation OPERATIONS[] = {
    {"add", BY(binary_by<Add>)},
    {"sub", BY(binary_by<Subtract>)},
    {"mul", BY(binary_by<Multiply>)},
    {"fma", BY(float_ternary_by<FusedMultiplyAdd>)},
    {"mad", BY(integer_ternary_by<MultiplyAdd>)},
    {"mul.hi", BY(integer_binary_by<MultiplyHigh>)},
    {"mad.hi", BY(integer_ternary_by<MultiplyAddHigh>)},
    {"mul.wide", BY(multiply_wide_by)},
    {"mad.wide", BY(multiply_add_wide_by)},
    {"carry", BY(add_with_carry_by)},
    {"div", BY(quotient_by<Divide>)},
    {"rem", BY(integer_binary_by<Remainder>)},
    {"min", BY(binary_by<Extreme<false>>)},
    {"max", BY(binary_by<Extreme<true>>)},
    {"abs", BY(unary_by<Absolute>)},
    {"neg", BY(unary_by<Negate>)},
    {"copysign", [](const Instruction& i) -> Handler { return i.type == F32 ? (Handler)binary<CopySign, float> : (Handler)binary<CopySign, double>; }},
    {"shl", BY(shift_left_by)},
    {"shr", BY(shift_right_by)},
    {"and", IS(raw_binary<And>)},
    {"or", IS(raw_binary<Or>)},
    {"xor", IS(raw_binary<Xor>)},
    {"and.pred", IS(both_or_either<true>), NEXT, OWN},
    {"or.pred", IS(both_or_either<false>), NEXT, OWN},
    {"not", IS(raw_unary<Not>)},
    {"cnot", IS(raw_unary<LogicalNot>)},
    {"popc", IS(raw_unary<PopulationCount>)},
    {"clz", IS(raw_unary<LeadingZeros>)},
    {"brev", IS(raw_unary<BitReverse>)},
    {"bfind", IS(raw_unary<FindBit>)},
    {"bfe", IS(raw_ternary<BitFieldExtract>)},
    {"bfi", IS(bit_field_insert)},
    {"prmt", IS(raw_ternary<Permute>)},
    {"shf", IS(raw_ternary<FunnelShift>)},
    {"lop3", IS(raw_ternary<Logic3>)},
    {"sad", BY(integer_ternary_by<SumOfAbsoluteDifference>)},
    {"dp4a", IS(raw_ternary<DotProduct4>)},
    {"rcp", BY(function_by<Reciprocal>)},
    {"sqrt", BY(function_by<SquareRoot>)},
    {"rsqrt", BY(function_by<ReciprocalSquareRoot>)},
    {"ex2", BY(function_by<PowerOfTwo>)},
    {"lg2", BY(function_by<LogarithmOfTwo>)},
    {"tanh", BY(function_by<HyperbolicTangent>)},
    {"sin", BY(function_by<Sine>)},
    {"cos", BY(function_by<Cosine>)},
    {"testp", BY(test_property_by)},
    {"setp", BY(set_predicate_by)},
    {"set", [](const Instruction& i) { return set_value_by(i.type2); }},
    {"selp", IS(select), NEXT, OWN},
    {"slct", IS(select_by_sign)},
    {"cvt", convert_by},
    {"mov", IS(move)},
    {"pack", IS(pack)},
    {"unpack", IS(unpack)},
    {"address", IS(convert_address)},
    {"isspacep", IS(is_space)},
    {"ld", IS(access<false>), NEXT, OWN},
    {"st", IS(access<true>), NEXT, OWN},
    {"atom", IS(atomic), NEXT, OWN},
    {"shfl", IS(shuffle), MEMBERS, OWN},
    {"vote", IS(vote), MEMBERS},
    {"match", IS(match), MEMBERS},
    {"redux", IS(reduce), MEMBERS},
    {"elect", IS(elect), MEMBERS},
    {"warp barrier", IS(warp_barrier), MEMBERS, REFUSED},
    {"activemask", IS(active_mask)},
    {"clock", IS(clock)},
    {"nothing", IS(nothing)},
    {"together", IS(nothing), TOGETHER},
    {"yield", [](const Instruction&) -> Handler { return [](Machine&, Warp& w, const Instruction&, u32) { w.yielded = true; }; }},
    {"trap", IS(trap), NEXT, OWN},
    {"bra", IS(nothing), BRANCH, OWN},
    {"brx", IS(nothing), INDEXED, REFUSED},
    {"exit", IS(nothing), EXIT, OWN},
    {"cp.async", IS(copy_async), NEXT, REFUSED},
    {"cp.async.commit", IS(copy_commit)},
    {"cp.async.wait", IS(copy_wait)},
    {"cp.async.arrive", IS(copies_arrive), NEXT, REFUSED},
    {"mbarrier.init", IS(mbarrier_init), NEXT, REFUSED},
    {"mbarrier.inval", IS(mbarrier_invalidate), NEXT, REFUSED},
    {"mbarrier.arrive", IS(mbarrier_arrive), NEXT, REFUSED},
    {"mbarrier.wait", IS(mbarrier_wait), WAIT, REFUSED},
    {"tensor load", IS(tensor_load), NEXT, REFUSED},
    {"tensor store", IS(tensor_store), NEXT, REFUSED},
    {"bulk copy", IS(bulk_copy), NEXT, REFUSED},
    {"bulk commit", IS(bulk_commit)},
    {"bulk wait", IS(bulk_wait)},
    {"tensormap.replace", IS(tensormap_replace), NEXT, REFUSED},
    {"tensormap.publish", IS(tensormap_publish), TOGETHER, REFUSED},
    {"tensormap.acquire", IS(tensormap_acquire), NEXT, REFUSED},
    {"fence.proxy.async", IS(fence_async)},
    {"bar", IS(barrier), WAIT_TOGETHER, REFUSED},
    {"barrier", IS(barrier), WAIT, REFUSED},
    {"cluster barrier", IS(cluster_barrier), WAIT_TOGETHER, REFUSED},
    {"mma", IS(mma), TOGETHER, OWN},
    {"ldmatrix", IS(matrices<false>), TOGETHER, OWN},
    {"stmatrix", IS(matrices<true>), TOGETHER, OWN},
    {"wgmma", IS(wgmma), TOGETHER, OWN},
    {"wgmma.fence", IS(wgmma_fence), TOGETHER},
    {"wgmma.commit", IS(wgmma_commit), TOGETHER},
    {"wgmma.wait", IS(wgmma_wait), TOGETHER},
};
constexpr int OPERATION_COUNT = sizeof OPERATIONS / sizeof *OPERATIONS;
constexpr u64 MOST_STEPS = 2000000000ull;  // warp instructions of a cluster
constexpr u64 MOST_IDLE = 100000;          // rounds in which warps only ask again
constexpr u32 TURN = 100000;               // instructions after which a warp lets others go on: it may wait for them
constexpr u64 PATIENCE = 16;               // rounds of such turns, with nothing to wait for done, before late work is

}  // namespace

// ---- one warp --------------------------------------------------------------------------------------------------------

// Undefined values: what an operand that was never written means for the instruction; registers of a wgmma under way.
void Machine::look_at_operands(Warp& w, const Instruction& i, u32 mask, u32& undefined) {
    undefined = 0;
    u32 any = 0;
    for (int k = 0; k < i.results; k++)
        if (i[k] >= 0) any |= w.undefined[i[k]];
    const s32* source = i.source();
    for (int k = 0; k < i.sources; k++)
        if (source[k] >= 0) undefined |= w.undefined[source[k]];
    if (!(any | undefined)) return;
    if (!w.products.empty() && i.run != wgmma)
        for (int k = 0; k < i.results + i.sources; k++)
            if (i[k] >= 0 && w.in_flight[i[k]]) fail(WGMMA, w, i, -1, "%s a register of a wgmma that no wgmma.wait_group has waited for", k < i.results ? "writes" : "reads");
    undefined &= mask;
    if (undefined && i.undefined == REFUSED) fail(UNINITIALISED, w, i, __builtin_ctz(undefined), "an operand was never written");
}

Machine::Stop Machine::run_fragment(Warp& w, size_t at, u32& budget) {
    Fragment f = w.fragments[at];
    const Instruction* code = program.code.data();
    u32 meets = ~0u;  // the next place where other lanes are
    for (size_t k = 0; k < w.fragments.size(); k++)
        if (k != at && w.fragments[k].pc > f.pc) meets = std::min(meets, w.fragments[k].pc);
    auto leave = [&](Stop why) {
        w.fragments[at] = f;
        return why;
    };
    for (;;) {
        if (f.pc == meets) return leave(Stop::JUMPED);
        const Instruction& i = code[f.pc];
        u32 mask = f.lanes;
        if (i.guard >= 0) {
            const u64* p = w.reg(i.guard >> 1);
            u32 yes = 0;
            for (int l = 0; l < 32; l++) yes |= (u32)(p[l] & 1) << l;
            mask &= i.guard & 1 ? ~yes : yes;
            if (checks && w.undefined[i.guard >> 1] & f.lanes && (i.undefined != SPREADS || i.flow != NEXT))
                fail(UNINITIALISED, w, i, __builtin_ctz(w.undefined[i.guard >> 1] & f.lanes), "the predicate was never written");
        }
        if ((i.flow == TOGETHER || i.flow == WAIT_TOGETHER || i.flow == MEMBERS) && f.lanes != w.live) {
            u32 needed = w.live;
            if (i.flow == MEMBERS && i[i.results + i.sources - 1] >= 0) needed &= (u32)w.reg(i[i.results + i.sources - 1])[__builtin_ctz(f.lanes)];
            if (needed & ~f.lanes) {
                f.parked = true;
                return leave(Stop::WAITS);
            }
        }
        if (++steps_ % (1 << 24) == 0) {
            if (launch.interrupted && launch.interrupted()) fail(INTERRUPTED, w, i, -1, "interrupted");
            if (steps_ > MOST_STEPS) fail(DEADLOCK, w, i, -1, "the block does not end: %llu instructions of its warps", (unsigned long long)steps_);
        }
        if (mask) {
            Count& c = counts[i.index];
            u32 undefined = 0;
            if (checks) look_at_operands(w, i, mask, undefined);
            if (i.flow >= WAIT) {
                w.blocked = false;
                w.ticket = &f.ticket;
                const bool again = f.blocked;
                i.run(*this, w, i, mask);
                if (w.blocked) {
                    f.blocked = events;
                    c.waits -= again;  // it waits still
                    c.waits += again && f.ticket >= 0 ? 1 : 0;
                    return leave(Stop::WAITS);
                }
                f.blocked = 0;
            } else {
                i.run(*this, w, i, mask);
            }
            c.runs++;
            c.lanes += __builtin_popcount(mask);
            if (checks) {
                if (i.undefined == SPREADS) {
                    if (undefined && i.run == pack) remember_parts(w, i, mask);
                    const std::vector<u32>* parts = undefined && i.run == unpack ? parts_of(w, i) : nullptr;
                    const u32 unknown = i.guard >= 0 ? w.undefined[i.guard >> 1] & f.lanes : 0;
                    for (int k = 0; k < i.results; k++)
                        if (i[k] >= 0) w.undefined[i[k]] = (w.undefined[i[k]] & ~mask) | (parts ? undefined & (*parts)[k] : undefined) | unknown;
                } else if (i.undefined == REFUSED) {
                    for (int k = 0; k < i.results; k++)
                        if (i[k] >= 0) w.undefined[i[k]] &= ~mask;
                }
                if (i.feeds_wgmma) {
                    w.any_unfenced = true;
                    for (int k = 0; k < i.results; k++)
                        if (i[k] >= 0) w.unfenced[i[k]] = 1;
                }
            }
            switch (i.flow) {
                case BRANCH: {
                    const u32 rest = f.lanes & ~mask;
                    if (!rest && w.fragments.size() == 1) {
                        f.pc = i.target;
                        break;
                    }
                    if (rest) w.fragments.push_back({f.pc + 1, rest});
                    f.lanes = mask;
                    f.pc = i.target;
                    return leave(Stop::JUMPED);
                }
                case INDEXED: {
                    const s32* table = &program.tables[i.target];
                    u32 rest = mask;
                    const u32 stay = f.lanes & ~mask;
                    std::vector<Fragment> found;
                    while (rest) {
                        const int l = __builtin_ctz(rest);
                        const u64 index = (u32)w.reg(i[0])[l];
                        if (index >= (u64)table[0]) fail(BOUNDS, w, i, l, "a branch to number %llu of %d targets", (unsigned long long)index, table[0]);
                        u32 lanes = 0;
                        for (u32 k = rest; k; k &= k - 1)
                            if ((u32)w.reg(i[0])[__builtin_ctz(k)] == index) lanes |= k & -k;
                        found.push_back({(u32)table[1 + index], lanes});
                        rest &= ~lanes;
                    }
                    if (stay) found.push_back({f.pc + 1, stay});
                    f = found[0];
                    w.fragments.insert(w.fragments.end(), found.begin() + 1, found.end());
                    return leave(Stop::JUMPED);
                }
                case EXIT:
                    w.live &= ~mask;
                    f.lanes &= ~mask;
                    f.pc++;
                    events++;
                    if (!f.lanes) {
                        w.fragments.erase(w.fragments.begin() + at);
                        return w.live ? Stop::JUMPED : Stop::ENDED;
                    }
                    break;
                default: f.pc++;
            }
        } else {
            if (checks && i.guard >= 0 && i.undefined == SPREADS)
                for (int k = 0; k < i.results; k++)
                    if (i[k] >= 0) w.undefined[i[k]] |= w.undefined[i.guard >> 1] & f.lanes;
            f.pc++;
        }
        if (w.yielded) {
            w.yielded = false;
            return leave(Stop::TIRED);
        }
        if (!--budget) return leave(Stop::TIRED);
    }
}

// Runs a warp until it waits, ends, or has had its turn; whether it did something.
bool Machine::run_warp(Warp& w) {
    const u64 before = steps_;
    u64 tried = 0;
    u32 budget = launch.schedule == RANDOM ? 1 + random() % 100 : TURN;
    const u32 tired = w.tired;
    for (bool first = true; w.live; first = false) {
        // Lanes that are at one place go on together, those that are behind first.
        std::sort(w.fragments.begin(), w.fragments.end(), [](const Fragment& a, const Fragment& b) { return a.pc < b.pc; });
        for (size_t k = 1; k < w.fragments.size();) {
            Fragment &a = w.fragments[k - 1], &b = w.fragments[k];
            if (a.pc == b.pc && a.ticket == b.ticket) {
                a.lanes |= b.lanes;
                a.parked = false;
                a.blocked = 0;
                w.fragments.erase(w.fragments.begin() + k);
            } else {
                k++;
            }
        }
        const size_t n = w.fragments.size();
        // Lanes that go round and round may wait for others of their warp: then those have their turn.
        size_t at = n, start = first && tired >= (launch.schedule == RANDOM ? 64 : 1) ? tired % n : 0;
        for (size_t k = 0; k < n && at == n; k++) {
            const Fragment& f = w.fragments[(start + k) % n];
            if (!f.parked && f.blocked != events) at = (start + k) % n;
        }
        if (at == n) {
            const bool all_parked = std::all_of(w.fragments.begin(), w.fragments.end(), [](const Fragment& f) { return f.parked; });
            if (!all_parked) break;
            const Fragment &f = w.fragments[0], &other = w.fragments.back();
            const Instruction& i = program.code[f.pc];
            if (w.fragments.size() == 1) fail(BARRIER, w, i, __builtin_ctz(f.lanes), "waits for lanes that have ended");
            Fault fault;
            fault.kind = BARRIER;
            fault.instruction = (s32)i.index, fault.other = (s32)program.code[other.pc].index;
            std::memcpy(fault.block, w.block->id, sizeof fault.block);
            fault.thread = w.in_block * 32 + __builtin_ctz(f.lanes);
            std::snprintf(fault.text, sizeof fault.text, "lanes 0x%x of a warp are here and lanes 0x%x elsewhere, where all are to be together", f.lanes, other.lanes);
            throw fault;
        }
        const u64 now = steps_;
        const Stop why = run_fragment(w, at, budget);
        if (why == Stop::WAITS && steps_ == now + 1) tried++;
        if (why == Stop::TIRED) {
            w.tired = w.fragments.size() > 1 ? w.tired + 1 : 0;
            if (!budget) turns_++;
            return steps_ - before > tried;
        }
        if (why == Stop::ENDED) break;
    }
    return steps_ - before > tried;
}

// ---- a cluster -------------------------------------------------------------------------------------------------------

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
            w.clock.reset(components.count());
        }
    }
    // What the clusters before did has happened before all that follows.
    Clock all;
    all.reset(components.count());
    for (Warp& w : warps) {
        all.known[components.generic(w.index)] = w.clock.known[components.generic(w.index)];
        all.known[components.wgmma(w.index)] = w.product_group++;
        all.known[components.bulk_store(w.index)] = w.store_group++;
        all.known[components.cp_async(w.index)] = w.copy_group++;
    }
    for (Block& b : blocks) {
        for (auto& [offset, barrier] : b.mbarriers) b.components[offset].second = barrier.before + barrier.phase + 1;
        for (auto& [offset, component] : b.components) all.known[component.first] = component.second;
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
            fill(special[LANEMASK_GT], [](int l) { return (u32)~((2ull << l) - 1); });
            fill(special[LANEMASK_GE], [](int l) { return (u32)~((1u << l) - 1); });
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
        if (!p.done && coin(2)) perform(*this, w, p);
        else if (!p.done) break;
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
        const u32 known = w.clock.known[components.bulk_store(w.index)];
        if (checks && w.last_store > known) fail(COPY_ENGINE, w, *w.last_store_by, -1, "the block ends, and nobody has waited until the copy engine has read its shared memory");
        finish_stores(*this, w, w.store_group);
    }
    for (auto& [component, issued] : last_loads) {
        bool known = !checks;
        for (const Warp& w : warps) known = known || w.clock.known[component] >= issued.time;
        if (!known) fail(COPY_ENGINE, *issued.warp, *issued.by, -1, "the block ends, and nobody has waited for this copy into its shared memory");
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

// ---- what Python calls -----------------------------------------------------------------------------------------------

extern "C" {

s32 emulator_operation(const char* name) {
    for (int k = 0; k < OPERATION_COUNT; k++)
        if (!std::strcmp(OPERATIONS[k].name, name)) return k;
    return -1;
}

// The program; null, and in `unknown` the index of an instruction whose type nothing is there for.
Program* emulator_load(const Packed* packed, s32 count, const s32* pool, s32 pool_size, const s32* tables, s32 table_size, const Constant* constants, s32 constant_count, const s32* special, s32 slots, s32 local, s32 granule, s32* unknown) {
    auto* p = new Program;
    p->pool.assign(pool, pool + pool_size);
    p->tables.assign(tables, tables + table_size);
    p->constants.assign(constants, constants + constant_count);
    std::copy(special, special + SPECIALS, p->special);
    p->slots = slots, p->local = local, p->granule = granule;
    p->code.resize(count);
    std::vector<bool> of_wgmma(slots);
    for (s32 k = 0; k < count; k++) {
        Instruction& i = p->code[k];
        static_cast<Packed&>(i) = packed[k];
        const Operation& operation = OPERATIONS[i.code];
        i.pool = p->pool.data() + i.operands;
        i.index = (u32)k;
        i.run = operation.select(i);
        i.flow = operation.flow;
        i.undefined = operation.undefined;
        i.feeds_wgmma = false;
        if (!i.run) {
            *unknown = k;
            delete p;
            return nullptr;
        }
        if (i.run == wgmma || i.run == tensor_store || (i.run == bulk_copy && i.modifier[0] == 1)) p->asynchronous_reads = true;
        if (i.run == wgmma)
            for (int r = 0; r < i.results + (i.modifier[2] & 1 ? 4 : 0); r++) of_wgmma[i[r]] = true;
    }
    for (Instruction& i : p->code)
        for (int r = 0; r < i.results && i.run != wgmma; r++)
            if (i[r] >= 0 && of_wgmma[i[r]]) i.feeds_wgmma = true;
    return p;
}
void emulator_free(Program* p) { delete p; }

// 0, or 1 and a fault. counts: one for each instruction, added to.
s32 emulator_run(const Program* p, const Launch* launch, Count* counts, Fault* fault) {
    try {
        Machine machine(*p, *launch, counts);
        machine.run();
        return 0;
    } catch (const Fault& found) {
        *fault = found;
        return 1;
    }
}
}
