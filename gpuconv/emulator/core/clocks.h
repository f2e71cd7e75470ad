// Races in shared memory, found by what is ordered before what, whatever the schedule.
//
// Everything that acts by itself has a component of the vector clocks: each warp; and of each warp its wgmma, its bulk
// stores and its cp.async, whose groups complete in order; and each mbarrier, which the copies that it counts complete
// with, phase by phase. A clock says for each component how far it is known to have come. (C. J. Fidge, 1988; the last
// write and the reads since as epochs: Flanagan and Freund, FastTrack, 2009. The order inside a warp is not looked at.)
//
// What the threads write goes through the generic proxy, and so does cp.async; wgmma and the copy engine read and write
// through the async proxy, which sees such writes only after a proxy fence. A second clock says for each component how
// far its writes are fenced.
#pragma once
#include <algorithm>
#include <vector>

#include "numbers.h"

struct Clock {
    std::vector<u32> known, fenced;

    void reset(int components) {
        known.assign(components, 0);
        fenced.assign(components, 0);
    }
    void join(const Clock& other) {
        for (size_t i = 0; i < known.size(); i++) {
            known[i] = std::max(known[i], other.known[i]);
            fenced[i] = std::max(fenced[i], other.fenced[i]);
        }
    }
    // Everything that is known to have been written is visible to the async proxy.
    void fence() { fenced = known; }
};

// The components of the clocks of a cluster: those that read come first.
struct Components {
    int warps = 0, readers = 0, mbarriers = 0;  // readers: how many components can read

    int generic(int warp) const { return warp; }
    int wgmma(int warp) const { return warps + warp; }
    int bulk_store(int warp) const { return 2 * warps + warp; }
    int cp_async(int warp) const { return 3 * warps + warp; }
    int mbarrier(int i) const { return 4 * warps + i; }
    int count() const { return 4 * warps + mbarriers; }
};

// Shared memory, granule by granule: who wrote it last, and how far each component had come when it read it last.
class Shadow {
  public:
    struct Access {
        u32 instruction;
        int component;  // who accesses it
        u32 time;       // how far its component will have come when this is done
        bool async_proxy = false;
        bool atomic = false;  // atomics do not race with each other
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
    }

    // An access of `bytes` bytes from `first` on; the warp that makes or issues it knows `clock`. False: a race.
    bool read(u32 first, u32 bytes, const Access& access, const Clock& clock, Conflict& conflict) {
        for (u32 g = first / granule_; g <= (first + bytes - 1) / granule_; g++) {
            if (!after_write(writes_[g], access, clock, conflict)) return false;
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
            u32 unordered = 0;
            for (int i = 0; i < readers_; i++) unordered |= reads[i] / 2 > clock.known[i] && !(access.atomic && reads[i] & 1);
            if (unordered) {
                conflict = {"reads it", read_by_[g]};
                return false;
            }
            last = {access.time, access.instruction, (s16)access.component, access.async_proxy, access.atomic};
        }
        return true;
    }

  private:
    struct Write {
        u32 time = 0, instruction = 0;
        s16 component = -1;
        bool async_proxy = false, atomic = false;
    };

    static bool after_write(const Write& last, const Access& access, const Clock& clock, Conflict& conflict) {
        if (last.component < 0 || (access.atomic && last.atomic)) return true;
        if (clock.known[last.component] < last.time) {
            conflict = {"writes it", last.instruction};
            return false;
        }
        if (access.async_proxy && !last.async_proxy && clock.fenced[last.component] < last.time) {
            conflict = {"wrote it, with no fence.proxy.async after that", last.instruction};
            return false;
        }
        return true;
    }

    int granule_ = 4, readers_ = 0;
    std::vector<Write> writes_;
    std::vector<u32> reads_, read_by_;  // reads: 2 · time + (1: by an atomic)
};
