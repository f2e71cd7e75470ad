// All operations by name: which handler, what comes next, and what it does about values that were never written.
#pragma once
#include "barriers.h"
#include "by_type.h"
#include "conversion.h"
#include "descriptors.h"
#include "lanes.h"
#include "matrix.h"

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
    {"copysign",
        [](const Instruction& i) -> Handler {
            return i.type == F32 ? (Handler)binary<CopySign, float> : (Handler)binary<CopySign, double>;
        }},
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
    {"dp2a", IS(raw_ternary<DotProduct2>)},
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
    {"yield",
        [](const Instruction&) -> Handler {
            return [](Machine&, Warp& w, const Instruction&, u32) { w.yielded = true; };
        }},
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

}  // namespace
