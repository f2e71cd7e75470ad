"""Copies of one or two tensors whose channels then lie side by side: copy[n, p, c] = x[n, c, p], p counting pixels.

Memory-bound: everything is read once and written once. A weight's filters are images here, and its taps are pixels;
where it is turned, filters are channels, and channels and taps are pixels and images: copy[c, tap, k]. In a result that
was computed channels last, and is copied to where it is to lie, pixels are channels and channels pixels. A program
takes a tile of BP pixels × BC channels of an image, which it reads along the pixels where those are neighbours and
writes along the channels; in between the compiler turns it round in shared memory.

    program i    →  tile i of ⌈C/BC⌉·⌈P/BP⌉ of each image, channels fastest; first those of a, then those of b
    program i    →  where MANY > 0, tiles i·MANY … of BC channels × all P pixels, which lie together in memory as one
                    run of vectors although rows of pixels begin anywhere, as those of filters of 3 × 3 taps do
    masks        →  pixels and channels beyond the last
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .common import kernel, wide


class Source(NamedTuple):
    """A tensor to be copied: sizes, and strides in elements. Pixels are counted along three axes."""

    images: Any
    channels: Any
    pixels: Any  # of one image
    height: Any  # of the second and the third axis
    width: Any
    n: Any
    c: Any
    d: Any
    h: Any
    w: Any
    copy_n: Any  # strides of images and pixels in the copy, in pixels
    copy_p: Any


@triton.jit
def copy_tile(
    program, p_x, p_copy, x,
    BP: tl.constexpr, BC: tl.constexpr,
    NEIGHBOURS: tl.constexpr,  # what lies side by side: "pixels" of a channel, "channels" of a pixel, or "nothing"
    ROW: tl.constexpr,  # x.n, x.c and x.pixels are divided by it: see VECTOR in common
    VECTOR: tl.constexpr,  # x.channels is divided by it
    WIDE: tl.constexpr,
):  # fmt: skip
    channels = x.channels * VECTOR
    pixels = x.pixels * ROW
    channel_blocks, pixel_blocks = tl.cdiv(channels, BC), tl.cdiv(pixels, BP)
    n = wide(program // (channel_blocks * pixel_blocks), WIDE)
    o_c = program % channel_blocks * BC + tl.arange(0, BC)  # [BC]
    o_p = program // channel_blocks % pixel_blocks * BP + tl.arange(0, BP)  # [BP]
    o_pixel = o_p
    if NEIGHBOURS != "pixels":
        o_row = o_p // x.width
        o_pixel = o_p % x.width * wide(x.w, WIDE) + o_row % x.height * x.h + o_row // x.height * x.d
    o_channel = o_c
    if NEIGHBOURS != "channels":
        o_channel = wide(o_c, WIDE) * x.c * ROW
    m = (o_c < channels)[:, None] & (o_p < pixels)[None, :]  # [BC, BP]
    o_x = n * x.n * ROW + o_channel[:, None] + o_pixel[None, :]
    b_x = tl.load(p_x + o_x, mask=m, other=0.0)  # [BC, BP]
    o_copy = ((n * x.copy_n + wide(o_p, WIDE) * x.copy_p) * channels)[:, None] + o_c[None, :]  # [BP, BC]
    tl.store(p_copy + o_copy, tl.trans(b_x), mask=tl.trans(m))


@triton.jit
def copy_flat(
    program, p_x, p_copy, x,
    BP: tl.constexpr, BC: tl.constexpr,  # BP: no fewer than pixels
    MANY: tl.constexpr,  # tiles of a program
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    channels = x.channels * VECTOR
    blocks = tl.cdiv(channels, BC)
    tiles = x.images * blocks
    first = wide(program, WIDE) * MANY
    # Where MANY is more than 1 BC divides the channels, and so tiles lie one after the other.
    begin = (first // blocks * channels + first % blocks * BC) * x.pixels
    # One element a thread: a `gather` puts what it is given into shared memory, where runs of eight would conflict.
    o = tl.max_contiguous(tl.arange(0, MANY * BC * BP), 1)
    here = tl.minimum(MANY, tiles - first) * tl.minimum(BC, channels - first % blocks * BC) * x.pixels
    b_x = tl.load(p_x + begin + o, mask=o < here, other=0.0)  # [MANY · BC · BP]

    o_row = tl.arange(0, MANY * BP)  # pixels of all tiles
    o_c = tl.arange(0, BC)
    tile, o_p = o_row // BP, o_row % BP
    o_from = ((tile * BC)[:, None] + o_c[None, :]) * x.pixels + o_p[:, None]  # [MANY · BP, BC]
    b_copy = tl.reshape(tl.gather(b_x, tl.reshape(o_from, (MANY * BP * BC,)), 0), (MANY * BP, BC))
    n, o_channel = (first + tile) // blocks, ((first + tile) % blocks * BC)[:, None] + o_c[None, :]
    m = ((first + tile < tiles) & (o_p < x.pixels))[:, None] & (o_channel < channels)
    tl.store(p_copy + ((n * x.pixels + o_p) * channels)[:, None] + o_channel, b_copy, mask=m)


@triton.jit
def copy(
    program, p_x, p_copy, x,
    BP: tl.constexpr, BC: tl.constexpr, MANY: tl.constexpr,  # MANY: 0 for tiles of rows
    NEIGHBOURS: tl.constexpr, ROW: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    if MANY > 0:
        copy_flat(program, p_x, p_copy, x, BP, BC, MANY, VECTOR, WIDE)
    else:
        copy_tile(program, p_x, p_copy, x, BP, BC, NEIGHBOURS, ROW, VECTOR, WIDE)


@kernel
def pack(
    p_a, p_b, p_copy_a, p_copy_b,  # a or b, with its copy, may be None
    programs_of_a,
    a_images, a_channels, a_pixels, a_height, a_width, a_n, a_c, a_d, a_h, a_w,
    a_copy_n, a_copy_p,
    b_images, b_channels, b_pixels, b_height, b_width, b_n, b_c, b_d, b_h, b_w,
    b_copy_n, b_copy_p,
    A_BP: tl.constexpr, A_BC: tl.constexpr, A_MANY: tl.constexpr, A_NEIGHBOURS: tl.constexpr, A_ROW: tl.constexpr,
    A_VECTOR: tl.constexpr,
    B_BP: tl.constexpr, B_BC: tl.constexpr, B_MANY: tl.constexpr, B_NEIGHBOURS: tl.constexpr, B_ROW: tl.constexpr,
    B_VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if p_a is not None:  # noqa: SIM102 (settled when compiling, unlike the next)
        if program < programs_of_a:
            a = Source(a_images, a_channels, a_pixels, a_height, a_width, a_n, a_c, a_d, a_h, a_w, a_copy_n, a_copy_p)
            copy(program, p_a, p_copy_a, a, A_BP, A_BC, A_MANY, A_NEIGHBOURS, A_ROW, A_VECTOR, WIDE)
    if p_b is not None:  # noqa: SIM102
        if program >= programs_of_a:
            b = Source(b_images, b_channels, b_pixels, b_height, b_width, b_n, b_c, b_d, b_h, b_w, b_copy_n, b_copy_p)
            copy(program - programs_of_a, p_b, p_copy_b, b, B_BP, B_BC, B_MANY, B_NEIGHBOURS, B_ROW, B_VECTOR, WIDE)
