// The functions that Python calls. A decoded program is run one cluster of blocks after the other, its warps in turn, 32
// lanes in step.
#include "clusters.h"

extern "C" {

s32 emulator_operation(const char* name) {
    for (int k = 0; k < OPERATION_COUNT; k++)
        if (!std::strcmp(OPERATIONS[k].name, name)) return k;
    return -1;
}

// The program; null, and in `unknown` the index of an instruction that has no handler for its type.
Program* emulator_load(const Packed* packed, s32 count, const s32* pool, s32 pool_size, const s32* tables,
    s32 table_size, const Constant* constants, s32 constant_count, const s32* special, s32 slots, s32 local,
    s32 granule, s32* unknown) {
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
        if (i.run == wgmma || i.run == tensor_store || (i.run == bulk_copy && i.modifier[0] == 1))
            p->asynchronous_reads = true;
        if (i.run == wgmma)
            for (int r = 0; r < i.results + (i.modifier[2] & 1 ? 4 : 0); r++) of_wgmma[i[r]] = true;
    }
    for (Instruction& i : p->code)
        for (int r = 0; r < i.results && i.run != wgmma; r++)
            if (i[r] >= 0 && of_wgmma[i[r]]) i.feeds_wgmma = true;
    return p;
}
void emulator_free(Program* p) { delete p; }

// 0; 1 and a fault; or 2, out of memory. Adds to `counts`, which has one entry for each instruction.
s32 emulator_run(const Program* p, const Launch* launch, Count* counts, Fault* fault) {
    try {
        Machine machine(*p, *launch, counts);
        machine.run();
        return 0;
    } catch (const Fault& found) {
        *fault = found;
        return 1;
    } catch (const std::bad_alloc&) {
        return 2;
    }
}
}
