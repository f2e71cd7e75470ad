// Arithmetic, logic and comparison: an operation is a struct with a template `of`, a handler calls it for every lane.
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
            const A x = from_bits<A>(a[l] >> bits * half), y = from_bits<A>(b[l] >> bits * half), z = from_bits<A>(c[l] >> bits * half);
            result |= to_bits(Op::template on<A>(x, y, z, i)) << bits * half;
        }
        d[l] = result;
    });
}

// ---- operations ------------------------------------------------------------------------------------------------------
// i.modifier[0]: rounding; [1]: .sat; [2]: .NaN or .relu; [3]: .ftz

template <class A> constexpr bool floating = std::is_floating_point<A>::value || std::is_same<A, Half>::value || std::is_same<A, BFloat>::value;
template <class A> struct Wider { using type = A; };
template <> struct Wider<s8> { using type = s16; };
template <> struct Wider<u8> { using type = u16; };
template <> struct Wider<s16> { using type = s32; };
template <> struct Wider<u16> { using type = u32; };
template <> struct Wider<s32> { using type = s64; };
template <> struct Wider<u32> { using type = u64; };
template <> struct Wider<s64> { using type = s128; };
template <> struct Wider<u64> { using type = u128; };
template <class A> using wider = typename Wider<A>::type;

inline float flushed(float f) { return std::fpclassify(f) == FP_SUBNORMAL ? std::copysign(0.0f, f) : f; }
// .ftz: a subnormal number is the zero of its sign.
template <class A> inline A flushed_if(A a, bool flush) {
    if constexpr (std::is_same<A, float>::value) return flush ? flushed(a) : a;
    else if constexpr (std::is_same<A, Half>::value) return flush && !(a.bits & 0x7c00) ? from_bits<A>(a.bits & 0x8000) : a;
    else if constexpr (std::is_same<A, BFloat>::value) return flush && !(a.bits & 0x7f80) ? from_bits<A>(a.bits & 0x8000) : a;
    else return a;
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
    if constexpr (std::is_same<A, Half>::value || std::is_same<A, BFloat>::value) return small_operation<A>(a, b, c, i, f);
    else return float_operation<A>(a, b, c, i, f);
}

struct Add {
    template <class A> static A of(A a, A b, const Instruction& i) {
        if constexpr (floating<A>) return any_operation<A>(a, b, b, i, [](auto x, auto y, auto) { return x + y; });
        else {
            if (i.modifier[1]) {  // .sat
                const wider<A> sum = (wider<A>)a + (wider<A>)b;
                return sum > std::numeric_limits<A>::max() ? std::numeric_limits<A>::max() : sum < std::numeric_limits<A>::min() ? std::numeric_limits<A>::min() : (A)sum;
            }
            return (A)((u64)a + (u64)b);
        }
    }
    template <class A> static A on(A a, A b, A, const Instruction& i) { return of<A>(a, b, i); }
};
struct Subtract {
    template <class A> static A of(A a, A b, const Instruction& i) {
        if constexpr (floating<A>) return any_operation<A>(a, b, b, i, [](auto x, auto y, auto) { return x - y; });
        else {
            if (i.modifier[1]) {
                const s128 d = (s128)a - (s128)b;
                return d > (s128)std::numeric_limits<A>::max() ? std::numeric_limits<A>::max() : d < (s128)std::numeric_limits<A>::min() ? std::numeric_limits<A>::min() : (A)d;
            }
            return (A)((u64)a - (u64)b);
        }
    }
    template <class A> static A on(A a, A b, A, const Instruction& i) { return of<A>(a, b, i); }
};
struct Multiply {  // .lo of integers
    template <class A> static A of(A a, A b, const Instruction& i) {
        if constexpr (floating<A>) return any_operation<A>(a, b, b, i, [](auto x, auto y, auto) { return x * y; });
        else return (A)((u64)a * (u64)b);
    }
    template <class A> static A on(A a, A b, A, const Instruction& i) { return of<A>(a, b, i); }
};
struct MultiplyAdd {
    template <class A> static A of(A a, A b, A c, const Instruction&) { return (A)((u64)a * (u64)b + (u64)c); }
};
struct FusedMultiplyAdd {
    template <class A> static A of(A a, A b, A c, const Instruction& i) {
        if constexpr (std::is_same<A, Half>::value || std::is_same<A, BFloat>::value) return small_operation<A>(a, b, c, i, to_odd);
        else return float_operation<A>(a, b, c, i, [](auto x, auto y, auto z) { return std::fma(x, y, z); });
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
    template <class A> static A of(A a, A b, const Instruction&) { return (A)(((wider<A>)a * (wider<A>)b) >> (8 * sizeof(A))); }
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
    each_lane(mask, [&](int l) { d[l] = to_bits((wider<A>)((wider<A>)from_bits<A>(a[l]) * (wider<A>)from_bits<A>(b[l]))); });
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
        if constexpr (floating<A>) return any_operation<A>(a, b, b, i, [](auto x, auto y, auto) { return x / y; });
        else {
            if (b == 0) return (A)~(A)0;
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
        } else return a < 0 ? (A)(0 - (u64)a) : a;
    }
    template <class A> static A on(A a, A, A, const Instruction& i) { return of<A>(a, i); }
};
struct Negate {
    template <class A> static A of(A a, const Instruction& i) {
        if constexpr (floating<A>) {
            return flushed_if(from_bits<A>(to_bits(a) ^ 1ull << (8 * sizeof(A) - 1)), i.modifier[3]);
        } else return (A)(0 - (u64)a);
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
    each_lane(mask, [&](int l) { d[l] = (u32)b[l] >= 8 * sizeof(A) ? 0 : to_bits((A)(from_bits<A>(a[l]) << (u32)b[l])); });
}
template <class A> void shift_right(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]);
    each_lane(mask, [&](int l) {
        const u32 by = std::min<u32>((u32)b[l], 8 * sizeof(A) - 1);
        const A shifted = (A)(from_bits<A>(a[l]) >> by);
        d[l] = to_bits((u32)b[l] >= 8 * sizeof(A) && std::is_unsigned<A>::value ? (A)0 : shifted);
    });
}
struct And { static u64 of(u64 a, u64 b, const Instruction&) { return a & b; } };
struct Or { static u64 of(u64 a, u64 b, const Instruction&) { return a | b; } };
struct Xor { static u64 of(u64 a, u64 b, const Instruction&) { return a ^ b; } };
inline u64 ones(int bits) { return bits >= 64 ? ~0ull : (1ull << bits) - 1; }
inline int width(const Instruction& i) { return i.type == PRED ? 1 : 8 * BYTES[i.type]; }
struct Not { static u64 of(u64 a, const Instruction& i) { return ~a & ones(width(i)); } };
struct LogicalNot { static u64 of(u64 a, const Instruction& i) { return (a & ones(width(i))) == 0; } };
struct PopulationCount { static u64 of(u64 a, const Instruction& i) { return __builtin_popcountll(a & ones(width(i))); } };
struct LeadingZeros {
    static u64 of(u64 a, const Instruction& i) {
        a &= ones(width(i));
        return a ? __builtin_clzll(a) - (64 - width(i)) : width(i);
    }
};
struct BitReverse {
    static u64 of(u64 a, const Instruction& i) {
        u64 r = 0;
        for (int k = 0; k < width(i); k++) r |= (a >> k & 1) << (width(i) - 1 - k);
        return r;
    }
};
struct FindBit {  // the most significant bit that is not the sign; modifier[0]: its distance from the top
    static u64 of(u64 a, const Instruction& i) {
        const int n = width(i);
        a &= ones(n);
        if (is_signed(i.type) && a >> (n - 1) & 1) a = ~a & ones(n);
        if (!a) return 0xffffffff;
        const int at = 63 - __builtin_clzll(a);
        return i.modifier[0] ? n - 1 - at : at;
    }
};
struct BitFieldExtract {
    static u64 of(u64 a, u64 b, u64 c, const Instruction& i) {
        const int n = width(i), at = b & 255, length = c & 255;
        a &= ones(n);
        if (length == 0) return 0;
        u64 field = at < n ? a >> at & ones(length) : 0;
        if (is_signed(i.type) && a >> std::min(at + length - 1, n - 1) & 1) {
            const int have = at < n ? std::min(length, n - at) : 0;
            field |= ~ones(have);
        }
        return field & ones(n);
    }
};
inline void bit_field_insert(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]), *c = w.reg(i[3]), *e = w.reg(i[4]);
    const int n = width(i);
    each_lane(mask, [&](int l) {
        const int at = c[l] & 255, length = e[l] & 255;
        const u64 field = at < n ? ones(length) << at & ones(n) : 0;
        d[l] = ((b[l] & ~field) | ((at < n ? a[l] << at : 0) & field)) & ones(n);
    });
}
struct Permute {  // modifier[0]: 0 by selectors, 1 f4e, 2 b4e, 3 rc8, 4 ecl, 5 ecr, 6 rc16
    static u64 of(u64 a, u64 b, u64 c, const Instruction& i) {
        const u64 bytes = (u32)a | (u64)(u32)b << 32;
        static const u8 table[6][4][4] = {
            {{0, 1, 2, 3}, {1, 2, 3, 4}, {2, 3, 4, 5}, {3, 4, 5, 6}},
            {{0, 7, 6, 5}, {1, 0, 7, 6}, {2, 1, 0, 7}, {3, 2, 1, 0}},
            {{0, 0, 0, 0}, {1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}},
            {{0, 1, 2, 3}, {1, 1, 2, 3}, {2, 2, 2, 3}, {3, 3, 3, 3}},
            {{0, 0, 0, 0}, {0, 1, 1, 1}, {0, 1, 2, 2}, {0, 1, 2, 3}},
            {{0, 1, 0, 1}, {2, 3, 2, 3}, {0, 1, 0, 1}, {2, 3, 2, 3}},
        };
        u32 result = 0;
        for (int k = 0; k < 4; k++) {
            const u32 s = i.modifier[0] ? table[i.modifier[0] - 1][c & 3][k] : c >> (4 * k) & 15;
            u32 byte = bytes >> (8 * (s & 7)) & 255;
            if (s & 8) byte = byte & 128 ? 255 : 0;
            result |= byte << (8 * k);
        }
        return result;
    }
};
struct FunnelShift {  // modifier[0]: right; [1]: clamp, else wrap
    static u64 of(u64 a, u64 b, u64 c, const Instruction& i) {
        const u64 both = (u64)(u32)b << 32 | (u32)a;
        const u32 by = i.modifier[1] ? std::min<u32>((u32)c, 32) : (u32)c & 31;
        return i.modifier[0] ? (u32)(both >> by) : (u32)(by == 32 ? a : (both << by) >> 32);
    }
};
struct Logic3 {  // modifier[0]: the truth table
    static u64 of(u64 a, u64 b, u64 c, const Instruction& i) {
        u32 result = 0;
        for (int k = 0; k < 8; k++)
            if (i.modifier[0] >> k & 1) result |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
        return result;
    }
};
struct SumOfAbsoluteDifference {
    template <class A> static A of(A a, A b, A c, const Instruction&) { return (A)((u64)c + (a < b ? (u64)b - (u64)a : (u64)a - (u64)b)); }
};
struct DotProduct4 {  // modifier[0], [1]: whether a, b are signed
    static u64 of(u64 a, u64 b, u64 c, const Instruction& i) {
        s64 sum = (s32)c;
        for (int k = 0; k < 4; k++) {
            const s32 x = i.modifier[0] ? (s8)(a >> 8 * k) : (u8)(a >> 8 * k), y = i.modifier[1] ? (s8)(b >> 8 * k) : (u8)(b >> 8 * k);
            sum += x * y;
        }
        return (u32)sum;
    }
};
template <class A> void add_with_carry(Machine&, Warp& w, const Instruction& i, u32 mask) {
    // d, carry out = a ± b ± carry in; modifier[0]: subtract; operands: d, carry, a, b, carry in (or −1)
    u64 *d = w.reg(i[0]), *a = w.reg(i[2]), *b = w.reg(i[3]), *in = i[4] < 0 ? nullptr : w.reg(i[4]), *out = i[1] < 0 ? nullptr : w.reg(i[1]);
    each_lane(mask, [&](int l) {
        const u128 carry = in ? in[l] & 1 : 0;
        const u128 x = (A)a[l], y = (A)b[l];
        const u128 sum = i.modifier[0] ? x - y - carry : x + y + carry;
        d[l] = (A)sum;
        if (out) out[l] = (u64)(sum >> 8 * sizeof(A)) & 1;
    });
}

// ---- functions -------------------------------------------------------------------------------------------------------
// Approximations (.approx) are computed in double and rounded: at least as near as the hardware's.

#define FUNCTION(NAME, EXPRESSION)                                                                      \
    struct NAME {                                                                                       \
        template <class A> static A of(A a, const Instruction& i) {                                     \
            const double x = flushed_if(a, i.modifier[3]);                                              \
            if constexpr (std::is_same<A, Half>::value || std::is_same<A, BFloat>::value)               \
                return flushed_if(A::nearest(EXPRESSION), i.modifier[3]);                               \
            else return flushed_if((A)(EXPRESSION), i.modifier[3]);                                     \
        }                                                                                               \
        template <class A> static A on(A a, A, A, const Instruction& i) { return of<A>(a, i); }         \
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
            case 0: return std::isfinite((double)a);
            case 1: return std::isinf((double)a);
            case 2: return a == a;
            case 3: return a != a;
            case 4: return std::isnormal(a);
            default: return std::fpclassify(a) == FP_SUBNORMAL;
        }
    }
};

// ---- comparison ------------------------------------------------------------------------------------------------------
// modifier[0]: eq ne lt le gt ge, num nan, + 8: true where unordered; [1]: combined with a predicate by and, or, xor;
// [2]: that predicate is negated. Operands of setp: p, q (or −1), a, b, c (or −1).

template <class A> inline bool compare(A a, A b, s32 how, bool flush) {
    if constexpr (floating<A>) {
        a = flushed_if(a, flush), b = flushed_if(b, flush);
        const bool nan = a != a || b != b;
        if (how == 6) return !nan;
        if (how == 7) return nan;
        if (nan) return how >= 8;
    }
    switch (how & 7) {
        case 0: return a == b;
        case 1: return a != b;
        case 2: return a < b;
        case 3: return a <= b;
        case 4: return a > b;
        default: return a >= b;
    }
}
inline bool combined(bool r, bool c, s32 how) { return how == 1 ? r && c : how == 2 ? r || c : how == 3 ? r != c : r; }

template <class A> void set_predicate(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *p = w.reg(i[0]), *q = i[1] < 0 ? nullptr : w.reg(i[1]), *a = w.reg(i[2]), *b = w.reg(i[3]), *c = i[4] < 0 ? nullptr : w.reg(i[4]);
    each_lane(mask, [&](int l) {
        const bool r = compare(from_bits<A>(a[l]), from_bits<A>(b[l]), i.modifier[0], i.modifier[3]);
        const bool k = c && (c[l] & 1) != (u64)i.modifier[2];
        p[l] = combined(r, k, i.modifier[1]);
        if (q) q[l] = combined(!r, k, i.modifier[1]);
    });
}
// Of the two halves of registers, each into its own predicate.
template <class A> void set_predicates(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *p = w.reg(i[0]), *q = w.reg(i[1]), *a = w.reg(i[2]), *b = w.reg(i[3]), *c = i[4] < 0 ? nullptr : w.reg(i[4]);
    each_lane(mask, [&](int l) {
        const bool k = c && (c[l] & 1) != (u64)i.modifier[2];
        const bool low = compare(from_bits<A>(a[l]), from_bits<A>(b[l]), i.modifier[0], i.modifier[3]);
        const bool high = compare(from_bits<A>(a[l] >> 16), from_bits<A>(b[l] >> 16), i.modifier[0], i.modifier[3]);
        p[l] = combined(low, k, i.modifier[1]);
        q[l] = combined(high, k, i.modifier[1]);
    });
}
// set: all ones, or 1.0, where it holds. type2: of the operands.
template <class A> void set_value(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]), *c = i.sources > 2 ? w.reg(i[3]) : nullptr;
    const u64 yes = i.type == F32 ? to_bits(1.0f) : 0xffffffff;
    each_lane(mask, [&](int l) {
        const bool r = compare(from_bits<A>(a[l]), from_bits<A>(b[l]), i.modifier[0], i.modifier[3]);
        const bool k = c && (c[l] & 1) != (u64)i.modifier[2];
        d[l] = combined(r, k, i.modifier[1]) ? yes : 0;
    });
}
inline void select(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]), *c = w.reg(i[3]);
    each_lane(mask, [&](int l) { d[l] = c[l] & 1 ? a[l] : b[l]; });
    if (m.checks) {  // of what is not taken nothing needs to be known
        u32 first = 0;
        for (int l = 0; l < 32; l++) first |= (u32)(c[l] & 1) << l;
        const u32 undefined = (w.undefined[i[1]] & first) | (w.undefined[i[2]] & ~first) | w.undefined[i[3]];
        w.undefined[i[0]] = (w.undefined[i[0]] & ~mask) | (undefined & mask);
    }
}
// slct: a where c ≥ 0, else b. type2: of c.
inline void select_by_sign(Machine&, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]), *c = w.reg(i[3]);
    each_lane(mask, [&](int l) {
        const bool first = i.type2 == F32 ? from_bits<float>(c[l]) >= 0 : (s32)c[l] >= 0;
        d[l] = first ? a[l] : b[l];
    });
}
// and, or of predicates: false and … is false, whatever the other is.
template <bool Conjunction> void both_or_either(Machine& m, Warp& w, const Instruction& i, u32 mask) {
    u64 *d = w.reg(i[0]), *a = w.reg(i[1]), *b = w.reg(i[2]);
    u32 first = 0, second = 0;
    for (int l = 0; l < 32; l++) first |= (u32)(a[l] & 1) << l, second |= (u32)(b[l] & 1) << l;
    if (m.checks) {
        const u32 u = w.undefined[i[1]], v = w.undefined[i[2]];
        const u32 decided_by_first = ~u & (Conjunction ? ~first : first), decided_by_second = ~v & (Conjunction ? ~second : second);
        const u32 undefined = (u | v) & ~decided_by_first & ~decided_by_second;
        w.undefined[i[0]] = (w.undefined[i[0]] & ~mask) | (undefined & mask);
    }
    each_lane(mask, [&](int l) { d[l] = (Conjunction ? first & second : first | second) >> l & 1; });
}

// ---- by type ---------------------------------------------------------------------------------------------------------

// f of a value of the type, which gives the handler for it; null for a type of another kind.
template <class F> Handler by_integer(s32 type, F f) {
    switch (type) {
        case B8: case U8: return f(u8());
        case S8: return f(s8());
        case B16: case U16: return f(u16());
        case S16: return f(s16());
        case B32: case U32: return f(u32());
        case S32: return f(s32());
        case B64: case U64: return f(u64());
        case S64: return f(s64());
        default: return nullptr;
    }
}
template <class F> Handler by_float(s32 type, F f) {
    switch (type) {
        case F32: return f(float());
        case F64: return f(double());
        case F16: return f(Half());
        case BF16: return f(BFloat());
        default: return nullptr;
    }
}
template <class F> Handler by_number(s32 type, F f) { return is_float(type) ? by_float(type, f) : by_integer(type, f); }
template <class Op> Handler by_pair(s32 type) {  // of two numbers in one register
    return type == F16X2 ? (Handler)pairs<Op, Half> : type == BF16X2 ? (Handler)pairs<Op, BFloat> : type == F32X2 ? (Handler)pairs<Op, float> : nullptr;
}
template <class Op> Handler unary_by(s32 type) {
    Handler pair = by_pair<Op>(type);
    return pair ? pair : by_number(type, [](auto a) -> Handler { return unary<Op, decltype(a)>; });
}
template <class Op> Handler function_by(s32 type) {  // of floats alone
    Handler pair = by_pair<Op>(type);
    return pair ? pair : by_float(type, [](auto a) -> Handler { return unary<Op, decltype(a)>; });
}
template <class Op> Handler binary_by(s32 type) {
    if (type == U16X2 || type == S16X2) return type == U16X2 ? (Handler)pairs<Op, u16> : pairs<Op, s16>;
    Handler pair = by_pair<Op>(type);
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
    Handler pair = by_pair<Op>(type);
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
    return type == F32 ? (Handler)unary<TestProperty, float> : type == F64 ? (Handler)unary<TestProperty, double> : nullptr;
}
