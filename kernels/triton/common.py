"""What the kernels share: bundles of arguments, which tile a program owns, where its pixels are, and the loop over
filter taps of the gather kernels.

In Triton a kernel is written for one *program*, which computes one block of the result; many run at once. A block
tensor such as `tl.arange(0, 64)` is one value for the program, spread by the compiler over the registers of its
threads. Loading through a block of pointers is the *gather*: every element has an address of its own, and a mask says
which of them to read at all.

A convolution is a sum over filter taps, and for a fixed tap it is a matrix product:

    y[m, k] = Σ_tap Σ_c  x[pixel(m, tap), c] · w[tap, c, k]        m counts output pixels

The matrix x[pixel(m, tap), c] (im2col) is never stored: each step of the loop gathers a tile of it, BM pixels by BC
channels, and multiplies it with a tile of w on the tensor cores. `gather_product` is that loop; forward and grad_input
differ only in which pixel a tap means.

    p_ pointer   b_ block of values   o_ offset, counted in elements   m_ mask
    CAPITALS     compile-time constants, and the sizes N C K G, D H W (input), T R S (filter), Z P Q (output)

Bundles. A kernel is launched with flat lists of numbers; its first lines gather them in NamedTuples, `Axes` and
`Operand`, which its helpers take. They cost nothing: they are gone before there is code. A bundle holds run-time values
only, since one that is assigned to a variable makes run-time values of its constants.

Masks. A pixel or a column beyond the last is computed and not stored; to have something to read it stands for one of
the first. So loads are masked only where a zero is meant: a tap outside the image, channels beyond the last.

Vectors. A thread can load 16 bytes at once if the compiler can prove that they lie together and start at a multiple of
16. Strides and sizes are run-time values and prove nothing, so where VECTOR is more than 1 the launcher hands them over
divided by it and the kernel multiplies: now the compiler sees it. VECTOR is the number of elements in 16 bytes where
channels lie one after the other in all tensors that are read, and all other strides and the numbers of channels are
multiples of it, as in channels-last tensors; else it is 1. `vectors` is that multiplication.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import triton
import triton.language as tl

# Neighbouring threads get the neighbours along the last axis of a block of addresses of which the compiler can prove
# nothing; in Triton 3.6 those along the first.
FIRST_AXIS_FAST = tl.constexpr(triton.__version__.startswith("3.6."))


def kernel(function: Callable[..., Any]) -> Any:
    """`triton.jit` for a kernel that is launched: compiled once for all values of its run-time integers.

    Triton would otherwise compile it anew for every size and stride that is 1 or a multiple of 16.
    """
    parameters = inspect.signature(function).parameters.values()
    integers = [p.name for p in parameters if p.annotation is p.empty and not p.name.startswith("p_")]
    return triton.jit(function, do_not_specialize=integers)


class Axes(NamedTuple):
    """A value for each axis: sizes, strides, steps from tap to tap, or coordinates (of a block of pixels, too)."""

    d: Any
    h: Any
    w: Any


class HW(NamedTuple):
    """`Axes` in a kernel for two axes."""

    h: Any
    w: Any


class Operand(NamedTuple):
    """A tensor: a pointer, and strides in elements."""

    p: Any
    row: Any  # from image to image; in w from filter to filter
    channel: Any  # from channel to channel; in gy and y these are the filters
    axis: Any  # Axes or HW: from pixel to pixel; in w from tap to tap


@triton.jit
def vectors(x, VECTOR: tl.constexpr):
    """x with its strides multiplied by VECTOR, where they were divided by it: see above."""
    if VECTOR > 1:
        if len(x.axis) == 3:
            x = Operand(x.p, x.row * VECTOR, 1, Axes(x.axis.d * VECTOR, x.axis.h * VECTOR, x.axis.w * VECTOR))
        else:
            x = Operand(x.p, x.row * VECTOR, 1, HW(x.axis.h * VECTOR, x.axis.w * VECTOR))
    return x


@triton.jit
def moved(x, offset):
    """x from its element at this offset on."""
    return Operand(x.p + offset, x.row, x.channel, x.axis)


@triton.jit
def wide(i, WIDE: tl.constexpr):
    """i, as a 64-bit integer if WIDE."""
    if WIDE:
        i = i.to(tl.int64)
    return i


@triton.jit
def tile_of_program(program, row_blocks, column_blocks, BAND: tl.constexpr):
    """(row block, column block) of a program; BAND rows of blocks are walked column by column ("grouped ordering").

    Programs that run at the same time then share rows of x as well as columns of w, which so stay in the L2 cache.
    """
    in_band = BAND * column_blocks
    first = program // in_band * BAND
    height = tl.minimum(row_blocks - first, BAND)
    within = program % in_band
    return first + within % height, within // height


@triton.jit
def block_indices(block, SIZE: tl.constexpr, count, WIDE: tl.constexpr):
    """The SIZE indices of a block, and the same with those beyond the last starting again at 0; 64-bit if WIDE."""
    index = wide(block, WIDE) * SIZE + tl.arange(0, SIZE)  # [SIZE]
    return index, index % count


@triton.jit
def split_pixel(pixel, height, width):
    """The coordinates of flat pixel numbers, w fastest."""
    row = pixel // width
    return Axes(row // height, row % height, pixel % width)


@triton.jit
def offset_of(n, at, x):
    """Offsets in x of the pixels at these coordinates of images n."""
    return n * x.row + at.d * x.axis.d + at.h * x.axis.h + at.w * x.axis.w


@triton.jit
def inside(at, size):
    """Whether coordinates are inside an image of this size."""
    return (at.d >= 0) & (at.d < size.d) & (at.h >= 0) & (at.h < size.h) & (at.w >= 0) & (at.w < size.w)


@triton.jit
def carry(b_digit, b_next, base):
    """(digit, next digit): a digit that may have reached its base is reduced by it, and carries 1 to the next."""
    m_over = b_digit >= base
    return tl.where(m_over, b_digit - base, b_digit), tl.where(m_over, b_next + 1, b_next)


@triton.jit
def advance(b_n, b_at, add_n, add, size):
    """(images, coordinates) of the pixels that are further by a number, whose digits are add_n and add."""
    b_w, b_h = carry(b_at.w + add.w, b_at.h + add.h, size.w)
    b_h, b_d = carry(b_h, b_at.d + add.d, size.h)
    b_d, b_n = carry(b_d, b_n + add_n, size.d)
    return b_n, Axes(b_d, b_h, b_w)


@triton.jit
def phase_of_axis(a, stride, pad, dilation, common, inverse, taps):
    """(taps of the phase, its first tap r0, base) on one axis, for the pixels i ≡ a mod stride. The formulas are those
    of `gather_grad_input`."""
    phi = (a + pad) % stride
    step = stride // common
    first = phi // common * inverse % step
    count = tl.maximum(taps - first + step - 1, 0) // step
    count = tl.where(phi % common == 0, count, 0)
    return count, first, (a + pad - first * dilation) // stride  # exact where count > 0


@triton.jit
def axis_taps(b_start, step, size, taps, FIRST_BIT: tl.constexpr):
    """For each pixel, bit FIRST_BIT + r says whether coordinate start + r·step is inside 0 … size − 1. [BM] → [BM]"""
    b_bits = tl.zeros_like(b_start).to(tl.int32)
    for r in range(0, taps):
        b_at = b_start + r * step
        b_bits |= ((b_at >= 0) & (b_at < size)).to(tl.int32) << (FIRST_BIT + r)
    return b_bits


@triton.jit
def valid_taps(b_start, step, size, taps):
    """For each pixel, which taps of each axis fall inside the image: bits 20 + t, 10 + r and s. [BM] → [BM]

    start: where tap 0 falls; step: from there to the next. At most ten taps an axis.
    """
    b_bits = axis_taps(b_start.d, step.d, size.d, taps.d, 20)
    b_bits |= axis_taps(b_start.h, step.h, size.h, taps.h, 10)
    b_bits |= axis_taps(b_start.w, step.w, size.w, taps.w, 0)
    return b_bits


@triton.jit
def scattered(p_base, o_first, o_last):
    """Addresses base + o_first + o_last, [first, last], of which the compiler can prove nothing: neighbouring threads
    get neighbours along the last axis.

    Triton 3.6 is told that there are pairs along it, for else it would take the first: each element in a sector of its
    own. Where there are no pairs that does no harm: nothing proves that one is aligned, so none moves as one.
    """
    p = p_base + (o_first[:, None] + o_last[None, :])
    if FIRST_AXIS_FAST:
        p = tl.max_contiguous(p, [1, 2])
    return p


@triton.jit
def load_tile(
    p_base,
    o_rows,
    o_columns,
    m_rows,
    m_columns,
    MASK_ROWS: tl.constexpr,
    MASK_COLUMNS: tl.constexpr,
    ROWS_FAST: tl.constexpr,
    SCATTERED: tl.constexpr = False,  # of the addresses the compiler can prove nothing
):
    """The tile [rows, columns] whose element (i, j) is at base + o_rows[i] + o_columns[j], zero where masked.

    Neighbouring threads should read neighbouring addresses, and Triton hands the last axis of a block to neighbouring
    threads, in Triton 3.6 only if it is SCATTERED. So where rows are the closer ones in memory (ROWS_FAST) the tile is
    loaded transposed.
    """
    if ROWS_FAST:
        if SCATTERED:  # noqa: SIM108 (settled when compiling)
            p = scattered(p_base, o_columns, o_rows)
        else:
            p = p_base + (o_columns[:, None] + o_rows[None, :])  # [columns, rows]
        if MASK_ROWS and MASK_COLUMNS:
            b = tl.load(p, mask=m_columns[:, None] & m_rows[None, :], other=0.0)
        elif MASK_ROWS:
            b = tl.load(p, mask=m_rows[None, :], other=0.0)
        elif MASK_COLUMNS:
            b = tl.load(p, mask=m_columns[:, None], other=0.0)
        else:
            b = tl.load(p)
        b = tl.trans(b)
    else:
        if SCATTERED:  # noqa: SIM108 (settled when compiling)
            p = scattered(p_base, o_rows, o_columns)
        else:
            p = p_base + (o_rows[:, None] + o_columns[None, :])  # [rows, columns]
        if MASK_ROWS and MASK_COLUMNS:
            b = tl.load(p, mask=m_rows[:, None] & m_columns[None, :], other=0.0)
        elif MASK_ROWS:
            b = tl.load(p, mask=m_rows[:, None], other=0.0)
        elif MASK_COLUMNS:
            b = tl.load(p, mask=m_columns[None, :], other=0.0)
        else:
            b = tl.load(p)
    return b


@triton.jit
def rounded(b, DTYPE: tl.constexpr, EMULATE_BF16: tl.constexpr):
    """b rounded to the nearest value of DTYPE, ties to even; the interpreter would cut a bfloat16 off instead."""
    if EMULATE_BF16:
        b_bits = b.to(tl.float32).to(tl.int32, bitcast=True)
        b_bits = tl.where(b == b, b_bits + 0x7FFF + ((b_bits >> 16) & 1), 0x7FC00000)
        b_out = (b_bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        b_out = b.to(DTYPE)
    return b_out


@triton.jit
def in_vectors(count, VECTOR: tl.constexpr):
    """count, a multiple of VECTOR, as the compiler is to see; 0 tells it nothing."""
    return count // VECTOR * VECTOR if VECTOR > 1 else count


@triton.jit
def store_tile(
    p_base, o_rows, o_columns, m_rows, m_columns, b_tile, ROWS_FAST: tl.constexpr, EMULATE_BF16: tl.constexpr
):  # fmt: skip
    """Round the tile [rows, columns] to the type of the destination, once, and store it where both masks hold.

    Neighbouring threads should write neighbouring addresses: see `load_tile`.
    """
    b_out = rounded(b_tile, p_base.dtype.element_ty, EMULATE_BF16)
    if ROWS_FAST != FIRST_AXIS_FAST:
        p = p_base + (o_columns[:, None] + o_rows[None, :])  # [columns, rows]
        tl.store(p, tl.trans(b_out), mask=m_columns[:, None] & m_rows[None, :])
    else:
        p = p_base + (o_rows[:, None] + o_columns[None, :])  # [rows, columns]
        tl.store(p, b_out, mask=m_rows[:, None] & m_columns[None, :])


@triton.jit
def widened(b, DTYPE: tl.constexpr, EMULATE_BF16: tl.constexpr):
    """b in the wider type DTYPE. Triton's interpreter gets some of bfloat16 wrong, so there it is done on its bits."""
    if EMULATE_BF16:
        b_wide = (b.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        b_wide = b.to(DTYPE)
    return b_wide


@triton.jit
def multiply(b_a, b_b, b_acc, PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr):
    """acc + a·b on the tensor cores, summed in acc's type. EMULATE_BF16: the interpreter cannot multiply bfloat16."""
    if EMULATE_BF16:
        b_a = widened(b_a, tl.float32, True)
        b_b = widened(b_b, tl.float32, True)
    return tl.dot(b_a, b_b, b_acc, input_precision=PRECISION, out_dtype=b_acc.dtype)


@triton.jit
def gather_product(
    x,  # the image that is gathered from, at the program's group
    o_x,  # [BM] offset of each pixel's tap 0 (may lie outside; then it is masked)
    b_valid,  # [BM] from valid_taps, if INSIDE is "bits"
    b_start,  # [BM] coordinates of each pixel's tap 0
    step,  # coordinates from one tap to the next
    size,  # of the image
    w,  # the filters, at the program's group and at tap 0; its channels are what is summed over
    o_w,  # [BN] offset of each column
    taps,  # on each axis
    C,  # channels to sum over
    b_acc,  # [BM, BN] what to add to
    BC: tl.constexpr,
    INSIDE: tl.constexpr,  # whether a tap is inside: "always" it is, see its "bits", or "compare" its coordinates
    EVEN_C: tl.constexpr,  # BC divides C
    VECTOR: tl.constexpr,
    X_ROWS_FAST: tl.constexpr,  # pixels lie closer than channels
    W_ROWS_FAST: tl.constexpr,  # the channels that are summed over lie closer than the columns
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    """acc[m, n] + Σ_{t,r,s} Σ_c x[pixel m moved by (t,r,s), c] · w[t,r,s,c,n]

    Taps outside, channels inside, but one loop and not four, so that the compiler can fetch the tiles of later steps
    while it multiplies this one's. The counters (t, r, s, c) are scalars carried from step to step without a division.
    """
    b_c = tl.arange(0, BC)  # [BC]
    c0 = tl.full((), 0, tl.int32)
    s, r, t = c0, c0, c0
    for _ in range(0, taps.d * taps.h * taps.w * tl.cdiv(C, BC)):
        # ---- where this step's tiles are
        tw, rw, sw = wide(t, WIDE), wide(r, WIDE), wide(s, WIDE)
        o_x_tap = tw * step.d * x.axis.d + rw * step.h * x.axis.h + sw * step.w * x.axis.w
        o_w_tap = tw * w.axis.d + rw * w.axis.h + sw * w.axis.w
        b_channel = wide(c0, WIDE) + b_c  # [BC]
        m_c = b_channel < C  # [BC]
        # ---- which pixels this tap finds inside the image
        if INSIDE == "bits":
            m_pixel = (b_valid >> (20 + t)) & (b_valid >> (10 + r)) & (b_valid >> s) & 1 != 0  # [BM]
        elif INSIDE == "compare":
            m_pixel = inside(Axes(b_start.d + t * step.d, b_start.h + r * step.h, b_start.w + s * step.w), size)
        else:
            m_pixel = o_x == o_x  # not used
        # ---- the product
        b_x = load_tile(
            x.p + o_x_tap, o_x, b_channel * x.channel, m_pixel, m_c, INSIDE != "always", not EVEN_C, X_ROWS_FAST,
            VECTOR == 1,
        )  # [BM, BC]  # fmt: skip
        b_w = load_tile(
            w.p + o_w_tap, b_channel * w.channel, o_w, m_c, m_c, not EVEN_C, False, W_ROWS_FAST, VECTOR == 1
        )  # [BC, BN]
        b_acc = multiply(b_x, b_w, b_acc, PRECISION, EMULATE_BF16)
        # ---- count on: c, then s, then r, then t
        next_tap = c0 + BC >= C
        c0 = tl.where(next_tap, 0, c0 + BC)
        s = tl.where(next_tap, s + 1, s)
        next_row = s == taps.w
        s = tl.where(next_row, 0, s)
        r = tl.where(next_row, r + 1, r)
        next_plane = r == taps.h
        r = tl.where(next_plane, 0, r)
        t = tl.where(next_plane, t + 1, t)
    return b_acc
