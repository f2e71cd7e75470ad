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
// The same on registers as they are.
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
// Two 16-bit (or 32-bit) numbers in one register.
template <class Op, class A> void pairs(Machine&, Warp& w, const Instruction& i, u32 mask) {
    constexpr int bits = 8 * sizeof(A);
    const int n = i.sources;
    u64* d = w.reg(i[0]);
    u64 *a = w.reg(i[1]), *b = n > 1 ? w.reg(i[2]) : a, *c = n > 2 ? w.reg(i[3]) : a;
    each_lane(mask, [&](int l) {
        u64 result = 0;
        for (int half = 0; half < 2; half++) {
            const A x = from_bits<A>(a[l] >> bits * half), y = from_bits<A>(b[l] >> bits * half),
                    z = from_bits<A>(c[l] >> bits * half);
            result |= to_bits(Op::template on<A>(x, y, z, i)) << bits * half;
        }
        d[l] = result;
    });
}

// ---- operations ------------------------------------------------------------------------------------------------------
// i.modifier[0]: rounding; [1]: .sat; [2]: .NaN or .relu; [3]: .ftz

template <class A> constexpr bool floating =
    std::is_floating_point<A>::value || std::is_same<A, Half>::value || std::is_same<A, BFloat>::value;
template <class A> struct Wider {
    using type = A;
};
template <> struct Wider<s8> {
    using type = s16;
};
template <> struct Wider<u8> {
    using type = u16;
};
template <> struct Wider<s16> {
    using type = s32;
};
template <> struct Wider<u16> {
    using type = u32;
};
template <> struct Wider<s32> {
    using type = s64;
};
template <> struct Wider<u32> {
    using type = u64;
};
template <> struct Wider<s64> {
    using type = s128;
};
template <> struct Wider<u64> {
    using type = u128;
};
template <class A> using wider = typename Wider<A>::type;

inline float flushed(float f) { return std::fpclassify(f) == FP_SUBNORMAL ? std::copysign(0.0f, f) : f; }
// .ftz: a subnormal number is the zero of its sign.
template <class A> inline A flushed_if(A a, bool flush) {
    if constexpr (std::is_same<A, float>::value)
        return flush ? flushed(a) : a;
    else if constexpr (std::is_same<A, Half>::value)
        return flush && !(a.bits & 0x7c00) ? from_bits<A>(a.bits & 0x8000) : a;
    else if constexpr (std::is_same<A, BFloat>::value)
        return flush && !(a.bits & 0x7f80) ? from_bits<A>(a.bits & 0x8000) : a;
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
    if constexpr (std::is_same<A, Half>::value || std::is_same<A, BFloat>::value)
        return small_operation<A>(a, b, c, i, f);
    else
        return float_operation<A>(a, b, c, i, f);
}

struct Add {
    template <class A> static A of(A a, A b, const Instruction& i) {
        if constexpr (floating<A>)
            return any_operation<A>(a, b, b, i, [](auto x, auto y, auto) { return x + y; });
        else {
            if (i.modifier[1]) {  // .sat
                const wider<A> sum = (wider<A>)a + (wider<A>)b;
                return sum > std::numeric_limits<A>::max()   ? std::numeric_limits<A>::max()
                       : sum < std::numeric_limits<A>::min() ? std::numeric_limits<A>::min()
                                                             : (A)sum;
            }
            return (A)((u64)a + (u64)b);
        }
    }
    template <class A> static A on(A a, A b, A, const Instruction& i) { return of<A>(a, b, i); }
};
struct Subtract {
    template <class A> static A of(A a, A b, const Instruction& i) {
        if constexpr (floating<A>)
            return any_operation<A>(a, b, b, i, [](auto x, auto y, auto) { return x - y; });
        else {
            if (i.modifier[1]) {
                const s128 d = (s128)a - (s128)b;
                return d > (s128)std::numeric_limits<A>::max()   ? std::numeric_limits<A>::max()
                       : d < (s128)std::numeric_limits<A>::min() ? std::numeric_limits<A>::min()
                                                                 : (A)d;
            }
            return (A)((u64)a - (u64)b);
        }
    }
    template <class A> static A on(A a, A b, A, const Instruction& i) { return of<A>(a, b, i); }
};
struct Multiply {  // .lo of integers
    template <class A> static A of(A a, A b, const Instruction& i) {
        if constexpr (floating<A>)
            return any_operation<A>(a, b, b, i, [](auto x, auto y, auto) { return x * y; });
        else
            return (A)((u64)a * (u64)b);
    }
    template <class A> static A on(A a, A b, A, const Instruction& i) { return of<A>(a, b, i); }
};
struct MultiplyAdd {
    template <class A> static A of(A a, A b, A c, const Instruction&) { return (A)((u64)a * (u64)b + (u64)c); }
};
struct FusedMultiplyAdd {
    template <class A> static A of(A a, A b, A c, const Instruction& i) {
        if constexpr (std::is_same<A, Half>::value || std::is_same<A, BFloat>::value)
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
    template <class A> static A on(A a, A b, A c, const Instruction& i) { return of<A>(a, b, c, i); }
};
struct MultiplyHigh {
    template <class A> static A of(A a, A b, const Instruction&) {
        return (A)(((wider<A>)a * (wider<A>)b) >> (8 * sizeof(A)));
    }
};
struct MultiplyAddHigh {
    template <class A> static A of(A a, A b, A c, const Instruction& i) {
        const A high = MultiplyHigh::of<A>(a, b, i);
        if (i.modifier[1]) {  // .sat, of s32
            const s64 sum = (s64)high + (s64)c;
            return (A)(sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum);
        }
        return (A)((u64)high + (u64)c);
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
    template <class A> static A on(A a, A b, A, const Instruction& i) { return of<A>(a, b, i); }
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
    template <class A> static A on(A a, A, A, const Instruction& i) { return of<A>(a, i); }
};
struct Negate {
    template <class A> static A of(A a, const Instruction& i) {
        if constexpr (floating<A>) {
            return flushed_if(from_bits<A>(to_bits(a) ^ 1ull << (8 * sizeof(A) - 1)), i.modifier[3]);
        } else
            return (A)(0 - (u64)a);
    }
    template <class A> static A on(A a, A, A, const Instruction& i) { return of<A>(a, i); }
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

#define FUNCTION(NAME, EXPRESSION)                                                              \
    struct NAME {                                                                               \
        template <class A> static A of(A a, const Instruction& i) {                             \
            const double x = flushed_if(a, i.modifier[3]);                                      \
            if constexpr (std::is_same<A, Half>::value || std::is_same<A, BFloat>::value)       \
                return flushed_if(A::nearest(EXPRESSION), i.modifier[3]);                       \
            else                                                                                \
                return flushed_if((A)(EXPRESSION), i.modifier[3]);                              \
        }                                                                                       \
        template <class A> static A on(A a, A, A, const Instruction& i) { return of<A>(a, i); } \
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
    template <class A> static A on(A a, A, A, const Instruction& i) { return of<A>(a, i); }
};
struct SquareRoot {
    template <class A> static A of(A a, const Instruction& i) {
        return any_operation<A>(a, a, a, i, [](auto x, auto, auto) { return std::sqrt(x); });
    }
    template <class A> static A on(A a, A, A, const Instruction& i) { return of<A>(a, i); }
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
