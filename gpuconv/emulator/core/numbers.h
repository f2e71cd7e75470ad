// Numbers as PTX knows them: its types, their bits in 64-bit registers, and rounding to the small formats.
#pragma once
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__F16C__)
#include <immintrin.h>
#endif

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using s128 = __int128;
using u128 = unsigned __int128;

// In the order of gpuconv/emulator/decode/base.py.
enum Type : s32 {
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    B32,
    U32,
    S32,
    B64,
    U64,
    S64,
    F16,
    BF16,
    F32,
    F64,
    F16X2,
    BF16X2,
    F32X2,
    U16X2,
    S16X2,
    TF32,
    E4M3X2,
    E5M2X2,
    PRED,
    NONE
};
constexpr int BYTES[] = {1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 2, 2, 4, 8, 4, 4, 8, 4, 4, 4, 2, 2, 1, 0};

// .rn .rz .rm .rp .rna: to the nearest (ties to even), to zero, down, up, to the nearest (ties away from zero).
enum Rounding : s32 { NEAREST, ZERO, DOWN, UP, AWAY };

constexpr bool is_float(s32 type) { return type >= F16 && type <= F64; }
constexpr bool is_signed(s32 type) { return type == S8 || type == S16 || type == S32 || type == S64; }

// The value of type A that the low bits of a register hold, and the register that holds a value: upper bits are 0.
template <class A> inline A from_bits(u64 bits) {
    A value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <class A> inline u64 to_bits(A value) {
    u64 bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

// ---- small floats ---------------------------------------------------------------------------------------------------

// The bits of a float with `exponent` and `mantissa` bits of its own that is nearest to `value` in the sense of `how`;
// finite: saturate to the largest finite number. e4m3 (4 and 3 bits) has no infinities: all bits but the sign are NaN.
inline u32 round_to(double value, int exponent, int mantissa, Rounding how, bool finite = false) {
    const u32 sign = std::signbit(value) ? 1u << (exponent + mantissa) : 0;
    const u32 infinity = exponent == 4 ? 0x7f : ((1u << exponent) - 1) << mantissa;
    if (std::isnan(value)) return (1u << (exponent + mantissa)) - 1;  // as NVIDIA's GPUs give it: all bits but the sign
    const double size = std::fabs(value);
    const int bias = (1 << (exponent - 1)) - 1, least = 1 - bias;
    u64 steps = 0;  // the number of floats from 0 up to the result: its bits without the sign
    if (std::isinf(size)) {
        steps = infinity;
    } else if (size != 0) {
        int power = std::ilogb(size);
        if (power < least) power = least;
        const double scaled = std::ldexp(size, mantissa - power);  // exact; in units of the last place
        double whole = std::floor(scaled);
        const double rest = scaled - whole;
        const bool up = how == NEAREST ? rest > 0.5 || (rest == 0.5 && std::fmod(whole, 2) == 1)
                        : how == AWAY  ? rest >= 0.5
                        : how == DOWN  ? sign && rest > 0
                        : how == UP    ? !sign && rest > 0
                                       : false;
        if (up) whole += 1;
        const s64 shifted = (s64)(power + bias - 1) << mantissa;  // a carry into the exponent is right as it is
        const double total = (double)shifted + whole;
        steps = total >= infinity ? infinity : (u64)total;
        const bool towards_zero = how == ZERO || (how == DOWN && !sign) || (how == UP && sign);
        if (steps == infinity && towards_zero) steps = infinity - 1;
    }
    if (finite && steps >= infinity) steps = infinity - 1;
    return sign | (u32)steps;
}

inline float half_to_float(u16 h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#else
    const u32 sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return from_bits<float>(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return from_bits<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    const float small = std::ldexp((float)mantissa, -24);
    return sign ? -small : small;
#endif
}
inline u16 float_to_half(float f) {
#if defined(__F16C__)
    return f != f ? 0x7fff : (u16)_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT);
#else
    return (u16)round_to(f, 5, 10, NEAREST);
#endif
}
inline float bfloat_to_float(u16 b) { return from_bits<float>((u64)b << 16); }
inline u16 float_to_bfloat(float f) {
    if (f != f) return 0x7fff;
    const u32 bits = (u32)to_bits(f);
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
// What a tensor core sees of a float32 that it multiplies as TF32: the upper 19 bits.
inline float tf32_to_float(u32 bits) { return from_bits<float>(bits & 0xffffe000u); }

// float16 and bfloat16 as types with arithmetic: computed in float, rounded once. (24 bits are 2 · 11 + 2: rounding the
// sum, product or quotient of two float16 twice gives what rounding it once does.)
template <int Exponent, int Mantissa> struct Small {
    u16 bits;
    Small() = default;
    explicit Small(float f) : bits(Exponent == 5 ? float_to_half(f) : float_to_bfloat(f)) {}
    static Small nearest(double d) { return from_bits<Small>(round_to(d, Exponent, Mantissa, NEAREST)); }
    operator float() const { return Exponent == 5 ? half_to_float(bits) : bfloat_to_float(bits); }
    bool subnormal() const { return !(bits & ((1u << Exponent) - 1) << Mantissa); }  // or zero
};
using Half = Small<5, 10>;
using BFloat = Small<8, 7>;
template <class A> constexpr bool small = std::is_same<A, Half>::value || std::is_same<A, BFloat>::value;

// Rounds in another direction while it lives.
struct RoundingMode {
    int before = std::fegetround();
    explicit RoundingMode(s32 how) {
        static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD, FE_TONEAREST};
        std::fesetround(modes[how]);
    }
    ~RoundingMode() { std::fesetround(before); }
};
