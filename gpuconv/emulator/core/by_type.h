// Which handler an operation has for a type.
#pragma once
#include "comparison.h"

// f of a value of the type, which gives the handler for it; null for a type of another kind.
template <class F> Handler by_integer(s32 type, F f) {
    switch (type) {
        case B8:
        case U8:  return f(u8());
        case S8:  return f(s8());
        case B16:
        case U16: return f(u16());
        case S16: return f(s16());
        case B32:
        case U32: return f(u32());
        case S32: return f(s32());
        case B64:
        case U64: return f(u64());
        case S64: return f(s64());
        default:  return nullptr;
    }
}
template <class F> Handler by_float(s32 type, F f) {
    switch (type) {
        case F32:  return f(float());
        case F64:  return f(double());
        case F16:  return f(Half());
        case BF16: return f(BFloat());
        default:   return nullptr;
    }
}
template <class F> Handler by_number(s32 type, F f) { return is_float(type) ? by_float(type, f) : by_integer(type, f); }
template <class Op, int N> Handler by_pair(s32 type) {  // of two floats in one register
    return type == F16X2    ? (Handler)pairs<Op, N, Half>
           : type == BF16X2 ? (Handler)pairs<Op, N, BFloat>
           : type == F32X2  ? (Handler)pairs<Op, N, float>
                            : nullptr;
}
template <class Op> Handler unary_by(s32 type) {
    Handler pair = by_pair<Op, 1>(type);
    return pair ? pair : by_number(type, [](auto a) -> Handler { return unary<Op, decltype(a)>; });
}
template <class Op> Handler function_by(s32 type) {  // of floats alone
    Handler pair = by_pair<Op, 1>(type);
    return pair ? pair : by_float(type, [](auto a) -> Handler { return unary<Op, decltype(a)>; });
}
template <class Op> Handler binary_by(s32 type) {
    if (type == U16X2 || type == S16X2) return type == U16X2 ? (Handler)pairs<Op, 2, u16> : pairs<Op, 2, s16>;
    Handler pair = by_pair<Op, 2>(type);
    return pair ? pair : by_number(type, [](auto a) -> Handler { return binary<Op, decltype(a)>; });
}
template <class Op> Handler quotient_by(s32 type) {
    return by_number(type, [](auto a) -> Handler { return binary<Op, decltype(a)>; });
}
template <class Op> Handler integer_binary_by(s32 type) {
    return by_integer(type, [](auto a) -> Handler { return binary<Op, decltype(a)>; });
}
template <class Op> Handler integer_ternary_by(s32 type) {
    return by_integer(type, [](auto a) -> Handler { return ternary<Op, decltype(a)>; });
}
template <class Op> Handler float_ternary_by(s32 type) {
    Handler pair = by_pair<Op, 3>(type);
    return pair ? pair : by_float(type, [](auto a) -> Handler { return ternary<Op, decltype(a)>; });
}
inline Handler multiply_wide_by(s32 type) {
    return by_integer(type, [](auto a) -> Handler { return multiply_wide<decltype(a)>; });
}
inline Handler multiply_add_wide_by(s32 type) {
    return by_integer(type, [](auto a) -> Handler { return multiply_add_wide<decltype(a)>; });
}
inline Handler shift_left_by(s32 type) {
    return by_integer(type, [](auto a) -> Handler { return shift_left<decltype(a)>; });
}
inline Handler shift_right_by(s32 type) {
    return by_integer(type, [](auto a) -> Handler { return shift_right<decltype(a)>; });
}
inline Handler set_predicate_by(s32 type) {
    if (type == F16X2) return set_predicates<Half>;
    if (type == BF16X2) return set_predicates<BFloat>;
    return by_number(type, [](auto a) -> Handler { return set_predicate<decltype(a)>; });
}
inline Handler set_value_by(s32 type) {
    return by_number(type, [](auto a) -> Handler { return set_value<decltype(a)>; });
}
inline Handler add_with_carry_by(s32 type) {
    return BYTES[type] == 8 ? (Handler)add_with_carry<u64> : (Handler)add_with_carry<u32>;
}
inline Handler test_property_by(s32 type) {
    return type == F32   ? (Handler)unary<TestProperty, float>
           : type == F64 ? (Handler)unary<TestProperty, double>
                         : nullptr;
}
