// Arithmetic: an operation is a struct with a template `of`, which a handler calls for every lane.
#pragma once
#include "machine.h"

// ---- handlers --------------------------------------------------------------------------------------------------------

template <class F> inline void each_lane(u32 mask, F f) {
    if (mask == ~0u)
        for (int l = 0; l < 32; l++) f(l);
    else
        for (u32 rest = mask; rest; rest &= rest - 1) f(__builtin_ctz(rest));
}

template <class Op, class A> void unary(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]);
    each_lane(mask, [&](int l) { d[l] = to_bits(Op::template of<A>(from_bits<A>(a[l]), i)); });
}
template <class Op, class A> void binary(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]);
    each_lane(mask, [&](int l) { d[l] = to_bits(Op::template of<A>(from_bits<A>(a[l]), from_bits<A>(b[l]), i)); });
}
template <class Op, class A> void ternary(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]), *c = w.reg(i[3]);
    each_lane(mask, [&](int l) {
        d[l] = to_bits(Op::template of<A>(from_bits<A>(a[l]), from_bits<A>(b[l]), from_bits<A>(c[l]), i));
    });
}
// A handler for operations on whole registers.
template <class Op> void raw_unary(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]);
    each_lane(mask, [&](int l) { d[l] = Op::of(a[l], i); });
}
template <class Op> void raw_binary(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]);
    each_lane(mask, [&](int l) { d[l] = Op::of(a[l], b[l], i); });
}
template <class Op> void raw_ternary(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]), *c = w.reg(i[3]);
    each_lane(mask, [&](int l) { d[l] = Op::of(a[l], b[l], c[l], i); });
}
// Two 16-bit (or 32-bit) numbers in one register, of each of N operands.
template <class Op, int N, class A> void pairs(Machine&, Warp& w, const Instruction& i, u32 mask) {
    constexpr int bits = 8 * sizeof(A);
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[N > 1 ? 2 : 1]), *c = w.reg(i[N > 2 ? 3 : 1]);
    each_lane(mask, [&](int l) {
        u64 result = 0;
        for (int shift = 0; shift < 2 * bits; shift += bits) {
            const A x = from_bits<A>(a[l] >> shift), y = from_bits<A>(b[l] >> shift), z = from_bits<A>(c[l] >> shift);
            A one;
            if constexpr (N == 1)
                one = Op::template of<A>(x, i);
            else if constexpr (N == 2)
                one = Op::template of<A>(x, y, i);
            else
                one = Op::template of<A>(x, y, z, i);
            result |= to_bits(one) << shift;
        }
        d[l] = result;
    });
}

// ---- operations ------------------------------------------------------------------------------------------------------
// i.modifier[0]: rounding; [1]: .sat; [2]: .NaN or .relu; [3]: .ftz

template <class A> constexpr bool floating = std::is_floating_point<A>::value || small<A>;
// An integer of twice the bits.
template <class A, class Of8, class Of16, class Of32, class Of64> using by_size = std::conditional_t<sizeof(A) == 1,
    Of8, std::conditional_t<sizeof(A) == 2, Of16, std::conditional_t<sizeof(A) == 4, Of32, Of64>>>;
template <class A> using wider =
    std::conditional_t<std::is_signed<A>::value, by_size<A, s16, s32, s64, s128>, by_size<A, u16, u32, u64, u128>>;
// The nearest that A has to a number.
template <class A> inline A saturated(s128 x) {
    constexpr A least = std::numeric_limits<A>::min(), most = std::numeric_limits<A>::max();
    return x<(s128)least ? least : x>(s128) most ? most : (A)x;
}

inline float flushed(float f) { return std::fpclassify(f) == FP_SUBNORMAL ? std::copysign(0.0f, f) : f; }
// .ftz: a subnormal number is the zero of its sign.
template <class A> inline A flushed_if(A a, bool flush) {
    if constexpr (std::is_same<A, float>::value)
        return flush ? flushed(a) : a;
    else if constexpr (small<A>)
        return flush && a.subnormal() ? from_bits<A>(a.bits & 0x8000) : a;
    else
        return a;
}

// A float operation with its modifiers: flush subnormals, round otherwise, saturate to [0, 1].
template <class A, class F> inline A float_operation(A a, A b, A c, const Instruction& i, F f) {
    a = flushed_if(a, i.modifier[3]), b = flushed_if(b, i.modifier[3]), c = flushed_if(c, i.modifier[3]);
    A result;
    if (i.modifier[0] == NEAREST) {
        result = f(a, b, c);
    } else {
        RoundingMode mode(i.modifier[0]);
        volatile A x = a, y = b, z = c;
        volatile A r = f((A)x, (A)y, (A)z);
        result = r;
    }
    result = flushed_if(result, i.modifier[3]);
    if (i.modifier[1]) result = result != result ? A(0) : result < A(0) ? A(0) : result > A(1) ? A(1) : result;
    if (i.modifier[2]) result = result != result ? result : result < A(0) ? A(0) : result;  // .relu
    return result;
}
template <class A, class F> inline A small_operation(A a, A b, A c, const Instruction& i, F f) {
    const auto number = [&](A x) { return (double)(float)flushed_if(x, i.modifier[3]); };
    const A result = flushed_if(A::nearest(f(number(a), number(b), number(c))), i.modifier[3]);
    const float value = result;
    if (i.modifier[1]) return value != value || value < 0 ? A(0.0f) : value > 1 ? A(1.0f) : result;
    if (i.modifier[2] && value < 0) return A(0.0f);
    return result;
}
template <class A, class F> inline A any_operation(A a, A b, A c, const Instruction& i, F f) {
    if constexpr (small<A>)
        return small_operation<A>(a, b, c, i, f);
    else
        return float_operation<A>(a, b, c, i, f);
}

struct Add {
    template <class A> static A of(A a, A b, const Instruction& i) {
        if constexpr (floating<A>)
            return any_operation<A>(a, b, b, i, [](auto x, auto y, auto) { return x + y; });
        else
            return i.modifier[1] ? saturated<A>((s128)a + (s128)b) : (A)((u64)a + (u64)b);
    }
};
struct Subtract {
    template <class A> static A of(A a, A b, const Instruction& i) {
        if constexpr (floating<A>)
            return any_operation<A>(a, b, b, i, [](auto x, auto y, auto) { return x - y; });
        else
            return i.modifier[1] ? saturated<A>((s128)a - (s128)b) : (A)((u64)a - (u64)b);
    }
};
struct Multiply {  // .lo of integers
    template <class A> static A of(A a, A b, const Instruction& i) {
        if constexpr (floating<A>)
            return any_operation<A>(a, b, b, i, [](auto x, auto y, auto) { return x * y; });
        else
            return (A)((u64)a * (u64)b);
    }
};
struct MultiplyAdd {
    template <class A> static A of(A a, A b, A c, const Instruction&) { return (A)((u64)a * (u64)b + (u64)c); }
};
struct FusedMultiplyAdd {
    template <class A> static A of(A a, A b, A c, const Instruction& i) {
        if constexpr (small<A>)
            return small_operation<A>(a, b, c, i, to_odd);
        else
            return float_operation<A>(a, b, c, i, [](auto x, auto y, auto z) { return std::fma(x, y, z); });
    }
    // x · y + z of small numbers, whose product is exact, with an odd last bit where digits are lost: rounding it again
    // to few bits is rounding once.
    static double to_odd(double x, double y, double z) {
        const double product = x * y, sum = product + z;
        if (!std::isfinite(sum)) return sum;
        const double part = sum - product, lost = (product - (sum - part)) + (z - part);
        return lost == 0 || (to_bits(sum) & 1) ? sum : std::nextafter(sum, lost > 0 ? INFINITY : -INFINITY);
    }
};
struct MultiplyHigh {
    template <class A> static A of(A a, A b, const Instruction&) {
        return (A)(((wider<A>)a * (wider<A>)b) >> (8 * sizeof(A)));
    }
};
struct MultiplyAddHigh {
    template <class A> static A of(A a, A b, A c, const Instruction& i) {
        const A high = MultiplyHigh::of<A>(a, b, i);
        return i.modifier[1] ? saturated<A>((s128)high + (s128)c) : (A)((u64)high + (u64)c);
    }
};
template <class A> void multiply_wide(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]);
    each_lane(
        mask, [&](int l) { d[l] = to_bits((wider<A>)((wider<A>)from_bits<A>(a[l]) * (wider<A>)from_bits<A>(b[l]))); });
}
template <class A> void multiply_add_wide(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]), *c = w.reg(i[3]);
    each_lane(mask, [&](int l) {
        const u64 product = to_bits((wider<A>)((wider<A>)from_bits<A>(a[l]) * (wider<A>)from_bits<A>(b[l])));
        d[l] = to_bits((wider<A>)(product + c[l]));
    });
}
struct Divide {
    template <class A> static A of(A a, A b, const Instruction& i) {
        if constexpr (floating<A>)
            return any_operation<A>(a, b, b, i, [](auto x, auto y, auto) { return x / y; });
        else {
            if (b == 0) return (A) ~(A)0;
            if (std::is_signed<A>::value && b == (A)-1) return (A)(0 - (u64)a);
            return (A)(a / b);
        }
    }
};
struct Remainder {
    template <class A> static A of(A a, A b, const Instruction&) {
        if (b == 0) return a;
        if (std::is_signed<A>::value && b == (A)-1) return 0;
        return (A)(a % b);
    }
};
template <bool Max> struct Extreme {
    template <class A> static A of(A a, A b, const Instruction& i) {
        if constexpr (floating<A>) {
            a = flushed_if(a, i.modifier[3]), b = flushed_if(b, i.modifier[3]);
            const bool nan_a = a != a, nan_b = b != b;
            if (nan_a || nan_b) {
                if (i.modifier[2] || (nan_a && nan_b)) return nan();
                return nan_a ? b : a;
            }
            if ((double)a == 0 && (double)b == 0) return std::signbit((double)a) == Max ? b : a;  // −0 is less than +0
            return (Max ? (double)a > (double)b : (double)a < (double)b) ? a : b;
        } else {
            return (Max ? a > b : a < b) ? a : b;
        }
    }
    struct Nan {
        operator float() const { return from_bits<float>(0x7fffffff); }
        operator double() const { return from_bits<double>(0x7fffffffffffffffull); }
        operator Half() const { return from_bits<Half>(0x7fff); }
        operator BFloat() const { return from_bits<BFloat>(0x7fff); }
    };
    static Nan nan() { return {}; }
};
struct Absolute {
    template <class A> static A of(A a, const Instruction& i) {
        if constexpr (floating<A>) {
            return flushed_if(from_bits<A>(to_bits(a) & ~(1ull << (8 * sizeof(A) - 1))), i.modifier[3]);
        } else
            return a < 0 ? (A)(0 - (u64)a) : a;
    }
};
struct Negate {
    template <class A> static A of(A a, const Instruction& i) {
        if constexpr (floating<A>) {
            return flushed_if(from_bits<A>(to_bits(a) ^ 1ull << (8 * sizeof(A) - 1)), i.modifier[3]);
        } else
            return (A)(0 - (u64)a);
    }
};
struct CopySign {  // of a to b
    template <class A> static A of(A a, A b, const Instruction&) {
        const u64 sign = 1ull << (8 * sizeof(A) - 1);
        return from_bits<A>((to_bits(b) & ~sign) | (to_bits(a) & sign));
    }
};
template <class A> void shift_left(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]);
    each_lane(
        mask, [&](int l) { d[l] = (u32)b[l] >= 8 * sizeof(A) ? 0 : to_bits((A)(from_bits<A>(a[l]) << (u32)b[l])); });
}
template <class A> void shift_right(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]);
    each_lane(mask, [&](int l) {
        const u32 by = std::min<u32>((u32)b[l], 8 * sizeof(A) - 1);
        const A shifted = (A)(from_bits<A>(a[l]) >> by);
        d[l] = to_bits((u32)b[l] >= 8 * sizeof(A) && std::is_unsigned<A>::value ? (A)0 : shifted);
    });
}

// ---- functions -------------------------------------------------------------------------------------------------------
// Approximations (.approx) are computed in double and rounded: at least as near as the hardware's.

#define FUNCTION(NAME, EXPRESSION)                                        \
    struct NAME {                                                         \
        template <class A> static A of(A a, const Instruction& i) {       \
            const double x = flushed_if(a, i.modifier[3]);                \
            if constexpr (small<A>)                                       \
                return flushed_if(A::nearest(EXPRESSION), i.modifier[3]); \
            else                                                          \
                return flushed_if((A)(EXPRESSION), i.modifier[3]);        \
        }                                                                 \
    };
FUNCTION(ReciprocalSquareRoot, 1.0 / std::sqrt(x))
FUNCTION(PowerOfTwo, std::exp2(x))
FUNCTION(LogarithmOfTwo, std::log2(x))
FUNCTION(HyperbolicTangent, std::tanh(x))
FUNCTION(Sine, std::sin(x))
FUNCTION(Cosine, std::cos(x))
#undef FUNCTION

struct Reciprocal {  // these two are rounded once, in any direction
    template <class A> static A of(A a, const Instruction& i) {
        return any_operation<A>(a, a, a, i, [](auto x, auto, auto) { return 1 / x; });
    }
};
struct SquareRoot {
    template <class A> static A of(A a, const Instruction& i) {
        return any_operation<A>(a, a, a, i, [](auto x, auto, auto) { return std::sqrt(x); });
    }
};

struct TestProperty {  // modifier[4]: finite, infinite, number, notanumber, normal, subnormal
    template <class A> static u64 of(A a, const Instruction& i) {
        switch (i.modifier[4]) {
            case 0:  return std::isfinite((double)a);
            case 1:  return std::isinf((double)a);
            case 2:  return a == a;
            case 3:  return a != a;
            case 4:  return std::isnormal(a);
            default: return std::fpclassify(a) == FP_SUBNORMAL;
        }
    }
};
