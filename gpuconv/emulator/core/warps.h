// The turn of a warp: its lanes run in step where they are at one place, those that are behind first.
#pragma once
#include "operations.h"

constexpr u64 MOST_STEPS = 2000000000ull;  // warp instructions of a cluster
constexpr u32 TURN = 100000;               // instructions after which others take turns

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
            if (i[k] >= 0 && w.in_flight[i[k]])
                fail(WGMMA, w, i, -1, "%s a register of a wgmma that no wgmma.wait_group has waited for",
                    k < i.results ? "writes" : "reads");
    undefined &= mask;
    if (undefined && i.undefined == REFUSED)
        fail(UNINITIALISED, w, i, __builtin_ctz(undefined), "an operand was never written");
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
                fail(UNINITIALISED, w, i, __builtin_ctz(w.undefined[i.guard >> 1] & f.lanes),
                    "the predicate was never written");
        }
        if ((i.flow == TOGETHER || i.flow == WAIT_TOGETHER || i.flow == MEMBERS) && f.lanes != w.live) {
            u32 needed = w.live;
            if (i.flow == MEMBERS && i[i.results + i.sources - 1] >= 0)
                needed &= (u32)w.reg(i[i.results + i.sources - 1])[__builtin_ctz(f.lanes)];
            if (needed & ~f.lanes) {
                f.parked = true;
                return leave(Stop::WAITS);
            }
        }
        if (++steps_ % (1 << 24) == 0) {
            if (launch.interrupted && launch.interrupted()) fail(INTERRUPTED, w, i, -1, "interrupted");
            if (steps_ > MOST_STEPS)
                fail(DEADLOCK, w, i, -1, "the block does not end: %llu instructions of its warps",
                    (unsigned long long)steps_);
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
                        if (i[k] >= 0)
                            w.undefined[i[k]] =
                                (w.undefined[i[k]] & ~mask) | (parts ? undefined & (*parts)[k] : undefined) | unknown;
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
                        if (index >= (u64)table[0])
                            fail(BOUNDS, w, i, l, "a branch to number %llu of %d targets", (unsigned long long)index,
                                table[0]);
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
        std::sort(
            w.fragments.begin(), w.fragments.end(), [](const Fragment& a, const Fragment& b) { return a.pc < b.pc; });
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
            const bool all_parked =
                std::all_of(w.fragments.begin(), w.fragments.end(), [](const Fragment& f) { return f.parked; });
            if (!all_parked) break;
            const Fragment &f = w.fragments[0], &other = w.fragments.back();
            const Instruction& i = program.code[f.pc];
            if (w.fragments.size() == 1) fail(BARRIER, w, i, __builtin_ctz(f.lanes), "waits for lanes that have ended");
            fail(BARRIER, w, i, __builtin_ctz(f.lanes), program.code[other.pc].index,
                "lanes 0x%x of a warp are here and lanes 0x%x elsewhere, where all are to be together", f.lanes,
                other.lanes);
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
