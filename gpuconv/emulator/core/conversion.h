// cvt: between all numbers, and to pairs of small ones.
#pragma once
#include "bits.h"

// modifier[0]: rounding; [1]: .sat; [2]: .relu; [3]: .ftz; [4]: round a float to an integral value
inline double as_double(u64 bits, s32 type) {
    switch (type) {
        case F16:  return half_to_float((u16)bits);
        case BF16: return bfloat_to_float((u16)bits);
        case F32:
        case TF32: return from_bits<float>(bits);
        default:   return from_bits<double>(bits);
    }
}
inline s128 as_integer(u64 bits, s32 type) {
    switch (type) {
        case S8:  return (s8)bits;
        case S16: return (s16)bits;
        case S32: return (s32)bits;
        case S64: return (s64)bits;
        default:  return (s128)(bits & ones(8 * BYTES[type]));
    }
}
inline double rounded(double x, s32 how) {
    return how == NEAREST ? std::nearbyint(x)
           : how == ZERO  ? std::trunc(x)
           : how == DOWN  ? std::floor(x)
           : how == UP    ? std::ceil(x)
                          : std::round(x);
}
inline u64 clamped(s128 x, s32 type) {
    const int bits = 8 * BYTES[type];
    const s128 most = is_signed(type) ? ((s128)1 << (bits - 1)) - 1 : ((s128)1 << bits) - 1,
               least = is_signed(type) ? -((s128)1 << (bits - 1)) : 0;
    return (u64)(x > most ? most : x < least ? least : x) & ones(bits);
}
// A small signed integer in a wider register.
inline u64 extended(u64 bits, s32 type) {
    return type == S8 ? (u64)(s64)(s8)bits : type == S16 ? (u64)(s64)(s16)bits : bits;
}
// A double in a float format.
inline u64 to_float(double x, s32 type, s32 how) {
    switch (type) {
        case F16:  return round_to(x, 5, 10, (Rounding)how);
        case BF16: return round_to(x, 8, 7, (Rounding)how);
        case TF32: {
            const u64 bits = (u64)round_to(x, 8, 10, (Rounding)how) << 13;
            return x != x ? 0x7fffffff : bits;
        }
        case F32: {
            RoundingMode mode(how);
            volatile double y = x;
            volatile float f = (float)y;
            return to_bits((float)f);
        }
        default: return to_bits(x);
    }
}
inline u64 converted(u64 bits, const Instruction& i) {
    const s32 to = i.type, from = i.type2, how = i.modifier[0];
    if (!is_float(from) && from != TF32) {
        const s128 x = as_integer(bits, from);
        if (!is_float(to)) return extended(i.modifier[1] ? clamped(x, to) : (u64)x & ones(8 * BYTES[to]), to);
        if (to == F32 || to == F64) {  // once: by way of double it would be twice
            RoundingMode mode(how);
            volatile s64 s = (s64)x;
            volatile u64 u = (u64)x;
            const bool minus = x < 0;
            if (to == F32) {
                volatile float f = minus ? (float)s : (float)u;
                return to_bits((float)f);
            }
            volatile double d = minus ? (double)s : (double)u;
            return to_bits((double)d);
        }
        const u64 size = (u64)(x < 0 ? -x : x);  // more than 53 bits: the last one kept stands for those that follow
        const int extra = size ? std::max(0, 64 - __builtin_clzll(size) - 50) : 0;
        const u64 kept = size >> extra | ((size & ones(extra)) != 0);
        const double d = std::ldexp((double)kept, extra);
        return to_float(x < 0 ? -d : d, to, how);
    }
    double x = as_double(bits, from);
    if (i.modifier[3] && from == F32) x = flushed((float)x);
    if (!is_float(to) && to != TF32) {
        if (x != x)
            return extended(from == F64 || BYTES[to] == 8 ? 1ull << (8 * BYTES[to] - 1) : 0, to);  // PTX ISA 9.0, cvt
        x = rounded(x, how);
        const s128 far = (s128)1 << 100;
        return extended(clamped(x >= 0x1p100 ? far : x <= -0x1p100 ? -far : (s128)x, to), to);
    }
    if (x != x && to == F32) return i.modifier[1] ? 0 : 0x7fffffff;
    if (x != x && to == F64) return 0x7fffffffffffffffull;
    if (i.modifier[4]) x = rounded(x, how);
    if (i.modifier[1]) x = x != x || x < 0 ? 0 : x > 1 ? 1 : x;
    if (i.modifier[2] && x < 0) x = 0;
    u64 result = to_float(x, to, i.modifier[4] ? (s32)NEAREST : how);
    if (i.modifier[3] && to == F32) result = to_bits(flushed(from_bits<float>(result)));
    return result;
}
inline void convert(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]);
    each_lane(mask, [&](int l) { d[l] = converted(a[l], i); });
}
// The frequent ones.
template <class A, class B> void widen(Machine&, Warp& w, const Instruction& i, u32 mask) {  // integers A → B
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]);
    each_lane(mask, [&](int l) { d[l] = to_bits((B)from_bits<A>(a[l])); });
}
template <class A> void small_to_float(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]);
    each_lane(mask, [&](int l) {
        const float f = from_bits<A>(a[l]);
        d[l] = f != f ? 0x7fffffff : to_bits(f);
    });
}
template <class A> void float_to_small(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]);
    each_lane(mask, [&](int l) { d[l] = to_bits(A(from_bits<float>(a[l]))); });
}
// Two floats into one register, the first into the upper half; or one pair into another kind of pair.
inline void convert_pair(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = i.sources > 1 ? w.reg(i[2]) : nullptr;
    const bool eights = i.type == E4M3X2 || i.type == E5M2X2;
    const int bits = eights ? 8 : 16;
    auto small = [&](double x) -> u64 {
        if (i.modifier[2] && x < 0) x = 0;
        const Rounding how = (Rounding)i.modifier[0];
        switch (i.type) {
            case F16X2:  return round_to(x, 5, 10, how, i.modifier[1]);
            case BF16X2: return round_to(x, 8, 7, how, i.modifier[1]);
            case E4M3X2: return round_to(x, 4, 3, how, i.modifier[1]);
            default:     return round_to(x, 5, 2, how, i.modifier[1]);
        }
    };
    auto eight = [](u32 v, s32 type) -> double {  // e4m3 or e5m2
        const int exponent = type == E4M3X2 ? 4 : 5, mantissa = 7 - exponent, bias = (1 << (exponent - 1)) - 1;
        const u32 e = v >> mantissa & ((1 << exponent) - 1), f = v & ((1 << mantissa) - 1);
        double size;
        if (type == E5M2X2 && e == 31)
            size = f ? NAN : INFINITY;
        else if (type == E4M3X2 && (v & 127) == 127)
            size = NAN;
        else
            size = e ? std::ldexp((1 << mantissa) + (int)f, (int)e - bias - mantissa)
                     : std::ldexp((int)f, 1 - bias - mantissa);
        return v & 128 ? -size : size;
    };
    each_lane(mask, [&](int l) {
        double high, low;
        if (b) {
            high = from_bits<float>(a[l]), low = from_bits<float>(b[l]);
        } else if (i.type2 == F16X2) {
            high = half_to_float((u16)(a[l] >> 16)), low = half_to_float((u16)a[l]);
        } else if (i.type2 == BF16X2) {
            high = bfloat_to_float((u16)(a[l] >> 16)), low = bfloat_to_float((u16)a[l]);
        } else {
            high = eight((u32)(a[l] >> 8) & 255, i.type2), low = eight((u32)a[l] & 255, i.type2);
        }
        d[l] = small(high) << bits | small(low);
    });
}
template <class A> void float_pair(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]);
    each_lane(mask, [&](int l) {
        float high = from_bits<float>(a[l]), low = from_bits<float>(b[l]);
        if (i.modifier[2]) high = high < 0 ? 0 : high, low = low < 0 ? 0 : low;
        d[l] = to_bits(A(high)) << 16 | to_bits(A(low));
    });
}
inline Handler convert_by(const Instruction& i) {
    const bool plain = !i.modifier[1] && !i.modifier[2] && !i.modifier[3] && !i.modifier[4];
    const bool nearest = plain && i.modifier[0] == NEAREST;
    if (i.type == F16X2 && i.type2 == F32 && i.modifier[0] == NEAREST && !i.modifier[1]) return float_pair<Half>;
    if (i.type == BF16X2 && i.type2 == F32 && i.modifier[0] == NEAREST && !i.modifier[1]) return float_pair<BFloat>;
    if (i.type == F16X2 || i.type == BF16X2 || i.type == E4M3X2 || i.type == E5M2X2) return convert_pair;
    if (plain && i.type == F32 && i.type2 == F16) return small_to_float<Half>;
    if (plain && i.type == F32 && i.type2 == BF16) return small_to_float<BFloat>;
    if (nearest && i.type == F16 && i.type2 == F32) return float_to_small<Half>;
    if (nearest && i.type == BF16 && i.type2 == F32) return float_to_small<BFloat>;
    if (plain && i.type == S64 && i.type2 == S32) return widen<s32, s64>;
    if (plain && BYTES[i.type] == 8 && i.type2 == U32 && !is_float(i.type)) return widen<u32, u64>;
    if (plain && BYTES[i.type] == 4 && BYTES[i.type2] == 8 && !is_float(i.type) && !is_float(i.type2))
        return widen<u64, u32>;
    return convert;
}
