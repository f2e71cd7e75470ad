// Races in shared memory, found by the order that synchronisation imposes, whatever the schedule.
//
// Everything that acts by itself has a component of the vector clocks: each warp; and of each warp its wgmma, its bulk
// stores and its cp.async, whose groups complete in order; and each mbarrier, which the copies that it counts complete
// with, phase by phase. A clock says for each component how far it is known to have come. (C. J. Fidge, 1988; the last
// write and the reads since as epochs: Flanagan and Freund, FastTrack, 2009.)
//
// The lanes of a warp are ordered only where they wait for each other (bar.warp.sync and all other barriers); what happens
// between two such places is one step of the warp. Two accesses by different lanes in one step to one place, of which one
// writes, are a race. (shfl, vote and the like wait, but order no memory.)
//
// What the threads write goes through the generic proxy, and so does cp.async; wgmma and the copy engine read and write
// through the async proxy, which sees such writes only after a proxy fence. A second clock says for each component how
// far its writes are fenced.
#pragma once
#include <algorithm>
#include <vector>

#include "numbers.h"

struct Clock {
    std::vector<u32> known, fenced;  // by component; nothing is known of those beyond the end

    u32 time(int component) const { return (size_t)component < known.size() ? known[component] : 0; }
    bool knows(int component, u32 time) const { return this->time(component) >= time; }
    bool sees(int component, u32 time) const {  // through the async proxy
        return (size_t)component < fenced.size() && fenced[component] >= time;
    }
    void learn(int component, u32 time) {
        if ((size_t)component >= known.size()) known.resize(component + 1, 0);
        known[component] = std::max(known[component], time);
    }
    void join(const Clock& other) {
        join(known, other.known);
        join(fenced, other.fenced);
    }
    // Everything that is known to have been written is visible to the async proxy.
    void fence() { fenced = known; }

  private:
    static void join(std::vector<u32>& mine, const std::vector<u32>& other) {
        if (mine.size() < other.size()) mine.resize(other.size(), 0);
        for (size_t i = 0; i < other.size(); i++) mine[i] = std::max(mine[i], other[i]);
    }
};

// The components of the clocks of a cluster: those that read come first.
struct Components {
    int warps = 0, readers = 0, mbarriers = 0;  // readers: how many components can read

    int generic(int warp) const { return warp; }
    int wgmma(int warp) const { return warps + warp; }
    int bulk_store(int warp) const { return 2 * warps + warp; }
    int cp_async(int warp) const { return 3 * warps + warp; }
    int mbarrier(int i) const { return 4 * warps + i; }
};

// Shared memory, granule by granule: who wrote it last, and how far each component had come when it read it last.
class Shadow {
  public:
    static constexpr u32 ALL = 32, NOBODY = 33;
    struct Access {
        u32 instruction;
        int component;  // who accesses it
        u32 time;       // how far its component will have come when this is done
        bool async_proxy = false;
        bool atomic = false;  // atomics do not race with each other
        u32 lane = NOBODY;    // of its warp; or all of them, together; or not looked at
        int warp = 0;
        u32 step = 0;  // of the warp
    };
    struct Conflict {
        const char* how;
        u32 instruction;
    };

    void reset(u32 bytes, int granule, int readers) {
        granule_ = granule;
        readers_ = readers;
        writes_.assign(bytes / granule + 1, Write{});
        reads_.assign(writes_.size() * readers, 0);
        read_by_.assign(writes_.size(), 0);
        lanes_.assign(writes_.size(), Lanes{});
    }

    // An access of `bytes` bytes from `first` on; the warp that makes or issues it knows `clock`. False: a race.
    bool read(u32 first, u32 bytes, const Access& access, const Clock& clock, Conflict& conflict) {
        for (u32 g = first / granule_; g <= (first + bytes - 1) / granule_; g++) {
            if (!after_write(writes_[g], access, clock, conflict) || !between_lanes(g, access, false, conflict))
                return false;
            u32& read = reads_[(size_t)g * readers_ + access.component];
            if (read != 2 * access.time || !access.atomic) read = 2 * access.time + access.atomic;
            read_by_[g] = access.instruction;
        }
        return true;
    }
    bool write(u32 first, u32 bytes, const Access& access, const Clock& clock, Conflict& conflict) {
        for (u32 g = first / granule_; g <= (first + bytes - 1) / granule_; g++) {
            Write& last = writes_[g];
            if (!after_write(last, access, clock, conflict)) return false;
            const u32* reads = &reads_[(size_t)g * readers_];
            if (unordered(reads, clock) && !(access.atomic && only_atomics(reads, clock))) {
                conflict = {"reads it", read_by_[g]};
                return false;
            }
            if (!between_lanes(g, access, true, conflict)) return false;
            last = {access.time, access.instruction, (s16)access.component, access.async_proxy, access.atomic};
        }
        return true;
    }

    // A lane writes what another has written: no race, and both may read it.
    void same_value(u32 first, u32 bytes, const Access& access) {
        for (u32 g = first / granule_; g <= (first + bytes - 1) / granule_; g++) {
            Lanes& last = lanes_[g];
            if (last.warp == access.warp && last.step == access.step && last.writers) last.writers |= 1u << access.lane;
        }
    }

  private:
    struct Write {
        u32 time = 0, instruction = 0;
        s16 component = -1;
        bool async_proxy = false, atomic = false;
    };

    bool unordered(const u32* reads, const Clock& clock) const {
        const u32* known = clock.known.data();
        u32 found = 0;  // of all, without a branch: this is where most of the checks' time goes
        for (int i = 0; i < readers_; i++) found |= reads[i] >> 1 > known[i];
        return found;
    }
    bool only_atomics(const u32* reads, const Clock& clock) const {
        for (int i = 0; i < readers_; i++)
            if (reads[i] >> 1 > clock.known[i] && !(reads[i] & 1)) return false;
        return true;
    }
    static bool after_write(const Write& last, const Access& access, const Clock& clock, Conflict& conflict) {
        if (last.component < 0 || (access.atomic && last.atomic)) return true;
        if (!clock.knows(last.component, last.time)) {
            conflict = {"writes it", last.instruction};
            return false;
        }
        if (access.async_proxy && !last.async_proxy && !clock.sees(last.component, last.time)) {
            conflict = {"wrote it, with no fence.proxy.async after that", last.instruction};
            return false;
        }
        return true;
    }

    bool between_lanes(u32 g, const Access& access, bool write, Conflict& conflict) {
        if (access.lane == NOBODY) return true;
        Lanes& last = lanes_[g];
        if (last.warp != access.warp || last.step != access.step) last = {access.step, 0, 0, 0, (s16)access.warp};
        const u32 mine = access.lane == ALL ? ~0u : 1u << access.lane;
        // What all do together, by one instruction, is in order with itself.
        const u32 others = access.lane != ALL ? ~mine : last.together == access.instruction + 1 ? 0 : ~0u;
        const bool own = !write && access.lane != ALL && last.writers & mine;  // it has written the same there itself
        if (last.writers & others && !own) {
            conflict = {"lane of its warp writes it", writes_[g].instruction};
            return false;
        }
        if (write && last.readers & others) {
            conflict = {"lane of its warp reads it", read_by_[g]};
            return false;
        }
        if (access.atomic) return true;  // of several lanes: no race
        (write ? last.writers : last.readers) |= mine;
        last.together = access.lane == ALL ? access.instruction + 1 : 0;
        return true;
    }

    struct Lanes {  // that have accessed it in a step of a warp, the latest that did
        u32 step = 0, writers = 0, readers = 0;
        u32 together = 0;  // the instruction, from 1, if they did last by one
        s16 warp = -1;
    };

    int granule_ = 4, readers_ = 0;
    std::vector<Write> writes_;
    std::vector<Lanes> lanes_;
    std::vector<u32> reads_, read_by_;  // reads: 2 · time + (1: by an atomic)
};
