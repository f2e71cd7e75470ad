// A decoded program, as gpuconv/emulator/decode/base.py lays it out for us.
#pragma once
#include <vector>

#include "numbers.h"

struct Machine;
struct Warp;
struct Instruction;

// Executes an instruction for the lanes of `mask`.
using Handler = void (*)(Machine&, Warp&, const Instruction&, u32 mask);

// How an instruction decides what comes next.
enum Flow : s32 {
    NEXT,      // the following instruction, whatever the lanes
    TOGETHER,  // the following, once all lanes that have not ended are there
    BRANCH,    // to `target` where the guard holds
    INDEXED,   // to one of a list
    EXIT,
    MEMBERS,  // the following, once the lanes that the last operand names are there
    WAIT,     // may have to be tried again later: its handler says so by `Warp::blocked`
    WAIT_TOGETHER,
};

// How a handler treats values that were never written.
enum Undefined : s32 {
    SPREADS,  // results are undefined where an operand is: done for it
    OWN,      // the handler looks after it
    REFUSED,  // no operand may be undefined: checked for it
};

constexpr int MODIFIERS = 6;

// One instruction as Python packs it (`INSTRUCTION` there), then what is looked up here.
struct Packed {
    s32 code, type, type2, guard;    // guard: 2 · register + (1: where it is false), or −1
    s32 operands, results, sources;  // in the pool: first, how many results, then how many sources
    s32 modifier[MODIFIERS];         // their meaning is said beside the handler
    s32 target;                      // of a branch
    s64 immediate;                   // offset of an address
};
struct Instruction : Packed {
    const s32* pool;  // its operands: registers, −1 for none
    Handler run;
    Flow flow;
    Undefined undefined;
    u32 index;
    bool feeds_wgmma;  // writes a register that a wgmma reads or adds to

    s32 operator[](int i) const { return pool[i]; }
    const s32* source() const { return pool + results; }
};

// The counters of one instruction, `COUNTS` of gpuconv/emulator/counters.py.
struct Count {
    u64 runs, lanes, bytes, sectors, sectors_least, passes, passes_least, tma_bytes, tensor_operations, waits;
};

struct Constant {  // a register that holds the same for all threads: an immediate, an address
    s32 slot, pad;
    u64 value;
};

// Registers that are filled when a thread starts; −1 where the program does not read them.
enum Special : s32 {
    TID_X,
    TID_Y,
    TID_Z,
    NTID_X,
    NTID_Y,
    NTID_Z,
    CTAID_X,
    CTAID_Y,
    CTAID_Z,
    NCTAID_X,
    NCTAID_Y,
    NCTAID_Z,
    LANEID,
    WARPID,
    NWARPID,
    CLUSTER_CTARANK,
    CLUSTER_NCTARANK,
    CLUSTER_CTAID_X,
    CLUSTER_CTAID_Y,
    CLUSTER_CTAID_Z,
    CLUSTER_NCTAID_X,
    CLUSTER_NCTAID_Y,
    CLUSTER_NCTAID_Z,
    CLUSTERID_X,
    CLUSTERID_Y,
    CLUSTERID_Z,
    NCLUSTERID_X,
    NCLUSTERID_Y,
    NCLUSTERID_Z,
    LANEMASK_LT,
    LANEMASK_LE,
    LANEMASK_GT,
    LANEMASK_GE,
    LANEMASK_EQ,
    SPECIALS
};

struct Program {
    std::vector<Instruction> code;
    std::vector<s32> pool, tables;  // of indexed branches: number of targets, then the targets
    std::vector<Constant> constants;
    s32 special[SPECIALS];
    s32 slots = 0, local = 0,
        granule = 4;                  // registers; bytes of local memory; least bytes of an access to shared memory
    bool asynchronous_reads = false;  // wgmma, or stores by the copy engine
};
