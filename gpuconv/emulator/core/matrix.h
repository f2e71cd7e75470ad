// Tensor cores: mma, ldmatrix and stmatrix, wgmma. Fragments lie as the PTX ISA draws them; products of float16, bfloat16
// and TF32 are exact in float32, and summed in it.
#pragma once
#include "asynchronous.h"

inline float element(u32 bits, s32 type) {
    switch (type) {
        case F16:  return half_to_float((u16)bits);
        case BF16: return bfloat_to_float((u16)bits);
        case S8:   return (s8)bits;
        case U8:   return (u8)bits;
        default:   return tf32_to_float(bits);
    }
}
// Sums of integers wrap, or stay at the ends of what 32 bits hold.
inline s32 integer_sum(s32 old, s32 products, bool saturate) {
    const s64 sum = (s64)old + products;
    return saturate ? (s32)std::min<s64>(std::max<s64>(sum, INT32_MIN), INT32_MAX) : (s32)(u32)sum;
}

// ---- mma -------------------------------------------------------------------------------------------------------------
// D[M, N] = A[M, K] · B[K, N] + C, N = 8. type, type2: of A and of B; modifier[0]: M, [1]: K, [2]: type of C and D,
// [3], [4], [5]: registers of A, of B, of D; immediate: .satfinite. With g = lane / 4, t = lane % 4 and e elements in a
// register:
//   A, register i: row g + 8 (i % 2), columns t·e + 4e (i / 2) …      B: rows t·e + 4e·i …, column g
//   C, D: row g + 8 (i / 2), column 2t + i % 2 (two of them in a register where they are float16: row g + 8 i)

template <class Sum, class Of>
inline void multiply(const Instruction& i, Warp& w, int elements, Of of, const s32* a, const s32* b, const s32* c) {
    const int M = i.modifier[0], K = i.modifier[1], e = elements;
    Sum A[16][32], B[32][8], D[16][8];
    const int per_row = M == 8 ? 1 : 2;
    for (int r = 0; r < i.modifier[3]; r++) {
        const u64* from = w.reg(a[r]);
        for (int l = 0; l < 32; l++)
            for (int k = 0; k < e; k++)
                A[l / 4 + 8 * (r % per_row)][l % 4 * e + 4 * e * (r / per_row) + k] = of(from[l], k, i.type);
    }
    for (int r = 0; r < i.modifier[4]; r++) {
        const u64* from = w.reg(b[r]);
        for (int l = 0; l < 32; l++)
            for (int k = 0; k < e; k++) B[l % 4 * e + 4 * e * r + k][l / 4] = of(from[l], k, i.type2);
    }
    const bool halves = i.modifier[2] == F16;
    for (int r = 0; r < i.modifier[5]; r++) {
        const u64* from = w.reg(c[r]);
        for (int l = 0; l < 32; l++) {
            if (halves) {
                D[l / 4 + 8 * r][l % 4 * 2] = (Sum)half_to_float((u16)from[l]),
                                         D[l / 4 + 8 * r][l % 4 * 2 + 1] = (Sum)half_to_float((u16)(from[l] >> 16));
            } else {
                D[l / 4 + 8 * (r / 2)][l % 4 * 2 + r % 2] = from_bits<Sum>(from[l]);
            }
        }
    }
    for (int row = 0; row < M; row++) {
        Sum sum[8] = {};
        if constexpr (std::is_same<Sum, double>::value) {
            for (int n = 0; n < 8; n++) sum[n] = D[row][n];
            for (int k = 0; k < K; k++)
                for (int n = 0; n < 8; n++) sum[n] = std::fma(A[row][k], B[k][n], sum[n]);
            for (int n = 0; n < 8; n++) D[row][n] = sum[n];
        } else {
            for (int k = 0; k < K; k++)
                for (int n = 0; n < 8; n++) sum[n] += A[row][k] * B[k][n];
            for (int n = 0; n < 8; n++) {
                if constexpr (std::is_same<Sum, s32>::value)
                    D[row][n] = integer_sum(D[row][n], sum[n], i.immediate);
                else
                    D[row][n] += sum[n];
            }
        }
    }
    for (int r = 0; r < i.modifier[5]; r++) {
        u64* to = w.reg(i[r]);
        for (int l = 0; l < 32; l++) {
            if (halves)
                to[l] = (u64)float_to_half((float)D[l / 4 + 8 * r][l % 4 * 2]) |
                        (u64)float_to_half((float)D[l / 4 + 8 * r][l % 4 * 2 + 1]) << 16;
            else
                to[l] = to_bits(D[l / 4 + 8 * (r / 2)][l % 4 * 2 + r % 2]);
        }
    }
}
// The lanes of accumulator register r whose row or column is undefined. (Row g + 8 · …, columns 2t, 2t + 1.)
inline u32 undefined_result(u32 rows, u32 columns, int r, int first_row, int first_column, bool halves) {
    u32 lanes = 0;
    for (int l = 0; l < 32; l++) {
        const int row = first_row + l / 4, column = first_column + l % 4 * 2 + (halves ? 0 : r % 2);
        lanes |= (u32)((rows >> row & 1) || (columns >> column & 1) || (halves && columns >> (column + 1) & 1)) << l;
    }
    return lanes;
}
inline void mma(Machine& m, Warp& w, const Instruction& i, u32) {
    const s32 *a = i.source(), *b = a + i.modifier[3], *c = b + i.modifier[4];
    u32 rows = 0, columns = 0, bad[8] = {};
    if (m.checks) {
        for (int k = 0; k < i.sources; k++)
            if (w.undefined[a[k]] && w.in_flight[a[k]]) m.defined(w, i, a[k], ~0u, "an operand");
        for (int r = 0; r < i.modifier[3]; r++)
            for (int l = 0; l < 32; l++)
                rows |= (w.undefined[a[r]] >> l & 1) << (l / 4 + (i.modifier[0] == 8 ? 0 : 8 * (r % 2)));
        for (int r = 0; r < i.modifier[4]; r++)
            for (int l = 0; l < 32; l++) columns |= (w.undefined[b[r]] >> l & 1) << (l / 4);
        const bool halves = i.modifier[2] == F16;
        for (int r = 0; r < i.modifier[5]; r++)
            bad[r] = w.undefined[c[r]] |
                     (rows | columns ? undefined_result(rows, columns, r, halves ? 8 * r : 8 * (r / 2), 0, halves) : 0);
    }
    switch (i.type) {
        case F64: multiply<double>(i, w, 1, [](u64 v, int, s32) { return from_bits<double>(v); }, a, b, c); break;
        case F16:
        case BF16:
            multiply<float>(
                i, w, 2, [](u64 v, int k, s32 type) { return element((u32)(v >> 16 * k) & 0xffff, type); }, a, b, c);
            break;
        case TF32: multiply<float>(i, w, 1, [](u64 v, int, s32) { return tf32_to_float((u32)v); }, a, b, c); break;
        default:
            multiply<s32>(
                i, w, 4,
                [](u64 v, int k, s32 type) { return type == S8 ? (s32)(s8)(v >> 8 * k) : (s32)(u8)(v >> 8 * k); }, a, b,
                c);
    }
    if (m.checks)
        for (int r = 0; r < i.modifier[5]; r++) w.undefined[i[r]] = bad[r];
    m.count(i).tensor_operations += 2 * i.modifier[0] * 8 * i.modifier[1];
}

// ---- ldmatrix, stmatrix ----------------------------------------------------------------------------------------------
// modifier[0]: how many matrices of 8 × 8 16-bit elements; [1]: .trans. Lane 8 i + r has the address of row r of matrix i.

template <bool Store> void matrices(Machine& m, Warp& w, const Instruction& i, u32) {
    const int n = i.modifier[0];
    const s32 base = i[n];
    m.defined(w, i, base, n == 4 ? ~0u : (1u << 8 * n) - 1, "the address");
    for (int k = 0; k < n; k++) {
        u16 matrix[8][8];
        Place rows[8];
        u32 offset[32] = {}, bad = 0;
        for (int r = 0; r < 8; r++) {
            rows[r] = m.place(w, i, 8 * k + r, w.reg(base)[8 * k + r] + i.immediate, 16, 16);
            offset[r] = rows[r].offset;
        }
        u64* value = w.reg(i[k]);
        if (Store)
            for (int l = 0; l < 32; l++)
                for (int h = 0; h < 2; h++)
                    (i.modifier[1] ? matrix[l % 4 * 2 + h][l / 4] : matrix[l / 4][l % 4 * 2 + h]) =
                        (u16)(value[l] >> 16 * h);
        for (int r = 0; r < 8; r++) {
            u8 *memory = &rows[r].block->shared[offset[r]], *written = &rows[r].block->written[offset[r]];
            m.generic_access(
                w, i, 8 * k + r, rows[r], 16, Store ? reinterpret_cast<u8*>(matrix[r]) : nullptr, false, true);
            if (Store) {
                std::memcpy(memory, matrix[r], 16);
                std::memset(written, 255, 16);
            } else {
                std::memcpy(matrix[r], memory, 16);
                if (m.checks && !Machine::all_written(written, 16))
                    for (int c = 0; c < 8; c++)
                        if (!Machine::all_written(written + 2 * c, 2))
                            bad |= 1u << (i.modifier[1] ? c * 4 + r / 2 : r * 4 + c / 2);
            }
        }
        if (Store && m.checks && w.undefined[i[k]])
            for (int l = 0; l < 32; l++)
                for (int h = 0; h < 2; h++)
                    if (w.undefined[i[k]] >> l & 1) {
                        const int r = i.modifier[1] ? l % 4 * 2 + h : l / 4, c = i.modifier[1] ? l / 4 : l % 4 * 2 + h;
                        std::memset(&rows[r].block->written[offset[r] + 2 * c], 0, 2);
                    }
        if (!Store) {
            for (int l = 0; l < 32; l++) {
                const u16 low = i.modifier[1] ? matrix[l % 4 * 2][l / 4] : matrix[l / 4][l % 4 * 2];
                const u16 high = i.modifier[1] ? matrix[l % 4 * 2 + 1][l / 4] : matrix[l / 4][l % 4 * 2 + 1];
                value[l] = (u64)low | (u64)high << 16;
            }
            w.undefined[i[k]] = bad;
        }
        count_passes(m, i, offset, 0xff, 16);
    }
    if (Store) m.events++;
}

// ---- wgmma -----------------------------------------------------------------------------------------------------------
// D[64, N] = A[64, K] · B[K, N] + D by four warps, 16 rows each. type, type2: of A, of B.
// modifier[0]: N; [1]: K; [2]: the sum of 1 (A is in registers), 2 (A is M-major), 4 (B is N-major), 8 (D is float16)
// and 16 (.satfinite); [3], [4]: signs of A and B.
// Operands: D; A (4 registers or a descriptor), the descriptor of B, a predicate: whether D is added.

// A matrix in shared memory by its descriptor: for every 16 bytes of it f(offset, row, k), the place of its first element;
// elements follow along k, or along the rows where it is not K-major. `first` … `rows`: which rows.
template <class F> inline void each_core_row(u64 descriptor, int first, int rows, int K, int bytes, bool k_major, F f) {
    const u32 start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
              stride = (descriptor >> 32 & 0x3fff) << 4;
    static const int bits_of[] = {0, 3, 2, 1};
    const int bits = bits_of[descriptor >> 62], T = 16 / bytes;
    if (k_major) {
        for (int r = first; r < first + rows; r++)
            for (int k = 0; k < K; k += T)
                f(swizzled(bits ? start + r % 8 * (16 << bits) + r / 8 * stride + k * bytes
                                : start + r % 8 * 16 + r / 8 * stride + k / T * leading,
                      bits),
                    r, k);
    } else {
        const int wide = T << bits;
        for (int k = 0; k < K; k++)
            for (int r = first; r < first + rows; r += T)
                f(swizzled(bits ? start + r % wide * bytes + r / wide * leading + k % 8 * (16 << bits) + k / 8 * stride
                                : start + r / T * stride + k % 8 * 16 + k / 8 * leading,
                      bits),
                    r, k);
    }
}

struct Wgmma {
    const Instruction& i;
    const int N = i.modifier[0], K = i.modifier[1], bytes = BYTES[i.type];
    const bool a_in_registers = i.modifier[2] & 1, a_k_major = !(i.modifier[2] & 2), b_k_major = !(i.modifier[2] & 4),
               halves = i.modifier[2] & 8;
    const s32* a = i.source();
    const s32* b = a + (a_in_registers ? 4 : 1);
    int accumulators() const { return halves ? N / 4 : N / 2; }
};

inline void perform(Machine& m, Warp& w, Product& p) {
    const Wgmma g{*p.by};
    const Instruction& i = g.i;
    const int N = g.N, K = g.K, bytes = g.bytes, first = w.in_block % 4 * 16, T = 16 / bytes;
    static thread_local std::vector<float> A, B, sum;
    A.resize(16 * K), B.resize((size_t)K * N), sum.resize(N);
    u64 bad_columns[4] = {};
    u32 bad_rows = 0;
    std::vector<u8>&shared = w.block->shared, &written = w.block->written;
    auto each = [&](u32 offset, s32 type, auto f) {
        for (int k = 0; k < T; k++) {
            u32 v = 0;
            std::memcpy(&v, &shared[offset + k * bytes], bytes);
            f(k, element(v, type), !m.checks || Machine::all_written(&written[offset + k * bytes], bytes));
        }
    };
    if (g.a_in_registers) {
        for (int r = 0; r < 4; r++) {
            const u64* from = w.reg(g.a[r]);
            for (int l = 0; l < 32; l++) {
                const int row = l / 4 + 8 * (r % 2);
                const int e = 4 / bytes;
                for (int h = 0; h < e; h++)
                    A[row * K + (l % 4 + r / 2 * 4) * e + h] =
                        element((u32)(from[l] >> 8 * bytes * h) & (u32)ones(8 * bytes), i.type);
                if (m.checks) bad_rows |= (w.held[g.a[r]] >> l & 1) << row;
            }
        }
    } else {
        each_core_row(p.a, first, 16, K, bytes, g.a_k_major, [&](u32 offset, int row, int k) {
            each(offset, i.type, [&](int e, float value, bool good) {
                const int r = row - first + (g.a_k_major ? 0 : e);
                A[r * K + k + (g.a_k_major ? e : 0)] = value;
                bad_rows |= (u32)!good << r;
            });
        });
    }
    each_core_row(p.b, 0, N, K, bytes, g.b_k_major, [&](u32 offset, int row, int k) {
        each(offset, i.type2, [&](int e, float value, bool good) {
            const int n = row + (g.b_k_major ? 0 : e);
            B[(size_t)(k + (g.b_k_major ? e : 0)) * N + n] = value;
            bad_columns[n / 64] |= (u64)!good << n % 64;
        });
    });
    const float sign = i.modifier[3] * i.modifier[4];
    for (int r = 0; r < 16; r++) {
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (int k = 0; k < K; k++) {
            const float x = A[r * K + k] * sign, *y = &B[(size_t)k * N];
            for (int n = 0; n < N; n++) sum[n] += x * y[n];
        }
        for (int n = 0; n < N; n++) {
            const int lane = r % 8 * 4 + n % 8 / 2;
            if (g.halves) {
                u64& d = w.reg(i[n / 8 * 2 + r / 8])[lane];
                const int shift = n % 2 * 16;
                const float old = p.accumulate ? half_to_float((u16)(d >> shift)) : 0;
                d = (d & ~(0xffffull << shift)) | (u64)float_to_half(old + sum[n]) << shift;
            } else {
                u64& d = w.reg(i[n / 8 * 4 + r / 8 * 2 + n % 2])[lane];
                if (bytes == 1)
                    d = to_bits(integer_sum(p.accumulate ? from_bits<s32>(d) : 0, (s32)sum[n], i.modifier[2] & 16));
                else
                    d = to_bits((p.accumulate ? from_bits<float>(d) : 0) + sum[n]);
            }
        }
    }
    if (m.checks)
        for (int r = 0; r < g.accumulators(); r++) {
            const int per = g.halves ? 2 : 4, first_column = r / per * 8,
                      first_row = (g.halves ? r % 2 : r / 2 % 2) * 8;
            const u32 columns = (u32)(bad_columns[first_column / 64] >> first_column % 64 & 255);
            const u32 before = p.accumulate ? w.held[i[r]] : 0;
            w.held[i[r]] =
                before | (bad_rows | columns ? undefined_result(bad_rows, columns, r, first_row, 0, g.halves) : 0);
        }
    p.done = true;
}
inline void hold(Machine& m, Warp& w, s32 slot) {
    if (!m.checks) return;
    if (!w.in_flight[slot]++) w.held[slot] = w.undefined[slot];
    w.undefined[slot] = ~0u;
}
inline void release(Machine& m, Warp& w, s32 slot) {
    if (m.checks && !--w.in_flight[slot]) w.undefined[slot] = w.held[slot];
}
inline void wgmma(Machine& m, Warp& w, const Instruction& i, u32) {
    const Wgmma g{i};
    if (w.block->warps % 4)
        m.fail(WGMMA, w, i, -1, "wgmma in a block of %d warps: it takes four together", w.block->warps);
    const s32* rest = g.b;
    if (!g.a_in_registers) m.defined(w, i, g.a[0], ~0u, "the descriptor of A");
    m.defined(w, i, rest[0], ~0u, "the descriptor of B");
    m.defined(w, i, rest[1], ~0u, "whether D is added");
    Product p{&i, g.a_in_registers ? 0 : w.reg(g.a[0])[0], w.reg(rest[0])[0], (w.reg(rest[1])[0] & 1) != 0,
        w.product_group, false};
    auto look = [&](u64 descriptor, const char* which, int first, int rows, bool k_major) {
        if (descriptor >> 49 & 7) m.fail(UNSUPPORTED, w, i, -1, "a base offset in the descriptor of %s", which);
        if (!k_major && g.bytes != 2)
            m.fail(WGMMA, w, i, -1, "%s that is not K-major, of elements that have not 16 bits", which);
        const Shadow::Access access{i.index, m.components.wgmma(w.index), w.product_group, true};
        each_core_row(descriptor, first, rows, g.K, g.bytes, k_major, [&](u32 offset, int, int) {
            if (offset + 16 > w.block->shared.size())
                m.fail(BOUNDS, w, i, -1, "the descriptor of %s reaches shared memory at %u: the block has %zu", which,
                    offset, w.block->shared.size());
            if (m.checks) m.shared_access(w, i, -1, {w.block, offset}, 16, false, access);
        });
    };
    if (!g.a_in_registers) look(p.a, "A", w.in_block % 4 * 16, 16, g.a_k_major);
    look(p.b, "B", 0, g.N, g.b_k_major);
    if (m.checks) {
        for (int r = 0; r < g.accumulators() + (g.a_in_registers ? 4 : 0); r++) {
            const s32 slot = r < g.accumulators() ? i[r] : g.a[r - g.accumulators()];
            if (w.unfenced[slot])
                m.fail(WGMMA, w, i, -1, "a register of it was written, and no wgmma.fence follows that");
            hold(m, w, slot);
        }
    }
    w.products.push_back(p);
    if (m.at_once())
        for (Product& earlier : w.products)
            if (!earlier.done) perform(m, w, earlier);
    m.count(i).tensor_operations += 2 * 16 * g.N * g.K;
}
inline void wgmma_fence(Machine& m, Warp& w, const Instruction&, u32) {
    if (m.checks && w.any_unfenced) std::fill(w.unfenced.begin(), w.unfenced.end(), 0), w.any_unfenced = false;
}
inline void wgmma_commit(Machine&, Warp& w, const Instruction&, u32) { w.product_group++; }
inline void wgmma_wait(Machine& m, Warp& w, const Instruction& i, u32) {  // modifier[0]: groups that may be under way
    const s64 up_to = (s64)w.product_group - 1 - i.modifier[0];
    if (up_to <= 0) return;
    while (!w.products.empty() && w.products.front().group <= up_to) {
        Product& p = w.products.front();
        if (!p.done) perform(m, w, p);
        const Wgmma g{*p.by};
        for (int r = 0; r < g.accumulators(); r++) release(m, w, (*p.by)[r]);
        for (int r = 0; g.a_in_registers && r < 4; r++) release(m, w, g.a[r]);
        w.products.pop_front();
    }
    w.clock.learn(m.components.wgmma(w.index), (u32)up_to);
}
