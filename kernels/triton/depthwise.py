"""What the depthwise kernels share: blocks of pixels and channels in either layout, and the sum over taps.

A filter of a depthwise convolution has one channel, so there is no matrix product: a tap costs one multiply-add. A
program owns a tile of BH × BW pixels for BC channels and keeps its sums in registers; for each tap it loads the tile
anew, moved by the tap. All but the first of these loads find most of it in the L1 cache, so that up to about 3 × 3 taps
the bytes from memory are what takes time, and beyond that the cache. (The CUDA kernels, which take taps from registers,
do not have that limit.)

    LAST     blocks are [pixels, channels], as channels-last tensors lie in memory; else [channels, pixels]
    VECTOR   as in `common`

Filters, strides and dilations are compile-time constants.
"""

import triton
import triton.language as tl

from .common import HW, rounded, wide, widened


@triton.jit
def spread(b_pixel, b_channel, LAST: tl.constexpr):
    """The sums of all pairs, as a block: [BP], [BC] → [BP, BC] or [BC, BP]"""
    return b_pixel[:, None] + b_channel[None, :] if LAST else b_channel[:, None] + b_pixel[None, :]


@triton.jit
def both(m_pixel, m_channel, LAST: tl.constexpr):
    """Whether both of a pair hold, as a block: [BP], [BC] → [BP, BC] or [BC, BP]"""
    return m_pixel[:, None] & m_channel[None, :] if LAST else m_channel[:, None] & m_pixel[None, :]


@triton.jit
def by_channel(b_channel, LAST: tl.constexpr):
    """A value for each channel, to be broadcast along the pixels of a block: [BC] → [1, BC] or [BC, 1]"""
    return b_channel[None, :] if LAST else b_channel[:, None]


@triton.jit
def tile_pixels(tile, across, high, BH: tl.constexpr, BW: tl.constexpr):
    """(image, coordinates [BP]) of the pixels of a tile, of which an image has high × across."""
    b = tl.arange(0, BH * BW)  # [BP]
    return tile // across // high, HW(tile // across % high * BH + b // BW, tile % across * BW + b % BW)


@triton.jit
def tap_sum(
    b_acc,  # the block to add to
    source,  # at the program's image
    b_at,  # [BP] coordinates of the results
    o_channel, m_channel,  # [BC] offset of each channel in the source
    w,  # at each channel's filter, [BC]
    size, pad,  # of the source
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    BACKWARD: tl.constexpr,  # a tap means (h + pad − r·d) / u, where that is whole; else h·u − pad + r·d
    LAST: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    """acc + Σ_{r,s} source[pixel moved by (r, s), c] · w[c, r, s], zero outside the source; of acc's shape."""
    for r in range(R):
        for s in tl.static_range(S):
            if BACKWARD:
                b_h, b_w = b_at.h + pad.h - r * DILATION_H, b_at.w + pad.w - s * DILATION_W
                m_pixel = (b_h >= 0) & (b_w >= 0) & (b_h % STRIDE_H == 0) & (b_w % STRIDE_W == 0)  # [BP]
                b_h, b_w = b_h // STRIDE_H, b_w // STRIDE_W
                m_pixel &= (b_h < size.h) & (b_w < size.w)
            else:
                b_h, b_w = b_at.h * STRIDE_H - pad.h + r * DILATION_H, b_at.w * STRIDE_W - pad.w + s * DILATION_W
                m_pixel = (b_h >= 0) & (b_h < size.h) & (b_w >= 0) & (b_w < size.w)
            p = source.p + spread(b_h * source.axis.h + b_w * source.axis.w, o_channel, LAST)
            b_x = widened(tl.load(p, mask=both(m_pixel, m_channel, LAST), other=0.0), b_acc.dtype, EMULATE_BF16)
            p_tap = w.p + r * w.axis.h + s * w.axis.w
            b_w_tap = widened(tl.load(p_tap, mask=m_channel, other=0.0), b_acc.dtype, EMULATE_BF16)  # [BC]
            b_acc += b_x * by_channel(b_w_tap, LAST)
    return b_acc


@triton.jit
def store_block(
    p_result, b_at, o_channel, m_channel, size, pixel, b_block,  # pixel: the stride of flat pixel numbers
    WIDE: tl.constexpr, LAST: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    """Round a block, once, and store what is inside the image."""
    o = spread((wide(b_at.h, WIDE) * size.w + b_at.w) * pixel, o_channel, LAST)
    m = both((b_at.h < size.h) & (b_at.w < size.w), m_channel, LAST)
    tl.store(p_result + o, rounded(b_block, p_result.dtype.element_ty, EMULATE_BF16), mask=m)
