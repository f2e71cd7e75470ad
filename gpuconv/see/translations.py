"""The texts of all pages in English and Chinese. {name} is filled in; <b>, <i> and <code> are the only markup."""

import html
from collections.abc import Mapping
from typing import Any

from gpuconv.errors import UserError
from gpuconv.see.translations_tour import TOUR
from gpuconv.see.translations_your_model import YOUR_MODEL
from gpuconv.text import printable

LANGUAGES = ("en", "zh")

_KINDS = {  # of spectra, as `Spectrum.kind` has them
    "low-pass": ("low-pass", "低通"),
    "band-pass": ("band-pass", "带通"),
    "high-pass": ("high-pass", "高通"),
    "all-pass": ("all-pass", "全通"),
    "none": ("nothing at all", "全部阻断"),
}

_COMMON = {
    "page.skip": ("Skip to the text", "跳到正文"),
    "page.chapters": ("Chapters", "章节"),
    "page.noscript": ("This part needs JavaScript.", "这一部分需要 JavaScript。"),
    "page.footer": (
        "Made by <code>gpuconv see</code>. Blue is below zero, white is zero, orange is above it, everywhere; maps that "
        "are shown together share one scale, which is printed beneath them.",
        "由 <code>gpuconv see</code> 生成。全文统一配色：蓝色小于零，白色等于零，橙色大于零；放在一起比较的图共用一个色标，色标标在图的下方。",
    ),
    "layer.how": (
        "Choose one of {count} maps, then click any output in it (or move with the arrow keys): you see the window that "
        "the filter looks at, the filter, their products, and the sum.",
        "先从 {count} 张激活图中选一张，再点击其中任意一个输出（也可用方向键移动）：你会看到滤波器覆盖的窗口、滤波器本身、逐项乘积，以及它们的和。",
    ),
    "layer.maps": ("Maps", "激活图"),
    "layer.map": ("map {n}", "激活图 {n}"),
    "layer.input": ("The picture; the frame is the window", "图像；方框标出窗口"),
    "layer.output": ("The outputs; the frame is the one explained", "输出；方框标出正在解释的那一个"),
    "layer.window": ("window", "窗口"),
    "layer.filter": ("filter", "滤波器"),
    "layer.products": ("products", "乘积"),
    "layer.total": ("sum", "和"),
    "layer.channel": ("channel {n}", "通道 {n}"),
    "layer.others": ("{sum} (the other {n} channels)", "{sum}（其余 {n} 个通道）"),
    "layer.sum": (
        "Output {k} at row {p}, column {q}: {n} products, {sums}, and the bias {bias} make {sum}. The op gave {output}.",
        "激活图 {k}，第 {p} 行第 {q} 列：{n} 个乘积，{sums}，再加上偏置 {bias}，得 {sum}。算子的输出是 {output}。",
    ),
    "layer.place": ("(map {k}, row {p}, column {q})", "（激活图 {k}，第 {p} 行，第 {q} 列）"),
    "layer.details": ("Every product in numbers", "逐项列出所有乘积"),
    "film.how": (
        "Play the film, or drag through it. Left: the twelve filters. Right: what the network holds for likely when it "
        "sees the picture above the bars; the orange bar is the right digit.",
        "播放动画，或者拖动滑块。左边是十二个滤波器；右边是网络看到柱状图上方那张图片时给出的十个概率，橙色柱对应正确的数字。",
    ),
    "film.play": ("▶ Play", "▶ 播放"),
    "film.pause": ("❚❚ Pause", "❚❚ 暂停"),
    "film.epoch": ("Epoch", "轮次"),
    "film.filters": ("The twelve filters of the first layer at this epoch", "这一轮第一层的十二个滤波器"),
    "film.example": ("The picture: a {n}", "图片：数字 {n}"),
    "film.readout": (
        "After epoch {epoch}: cross-entropy {ce}, MSE {mse}, {accuracy} % right on held-out pictures; this picture's "
        "right digit gets {right}.",
        "第 {epoch} 轮后：交叉熵 {ce}，均方误差 {mse}，留出集准确率 {accuracy} %；这张图片的正确数字得到的概率为 {right}。",
    ),
    "features.patches": (
        "Channel {channel} of <code>{layer}</code>: the windows of {height} × {width} pixels that it responds to most "
        "({count}), from {strongest} down to {weakest}.",
        "<code>{layer}</code> 的通道 {channel}：响应最强的窗口（{count} 个，{height} × {width} 像素），响应值从 {strongest} 到 {weakest}。",
    ),
    "features.patches.alt": (
        "{count} small cut-outs of pictures that channel {channel} of {layer} responds to most, the strongest first.",
        "{layer} 的通道 {channel} 响应最强的 {count} 个图像块，最强的在前。",
    ),
    "features.projections": (
        "The same windows through the deconvnet: which pixels made it respond, in their colours; grey had no part.",
        "同样这些窗口，经反卷积网络投影回像素：显示是哪些像素、以什么颜色引起了响应；灰色表示没有贡献。",
    ),
    "features.projections.alt": (
        "The deconvnet's projection of each of the {count} patches of channel {channel} of {layer}, colours around grey.",
        "{layer} 的通道 {channel} 的 {count} 个图像块各自的反卷积投影，灰色为零。",
    ),
    "features.projections-signed": (
        "The same windows through the deconvnet, mean over the channels: which pixels made it respond, and with which sign.",
        "同样这些窗口，经反卷积网络投影回像素（各通道取平均）：显示是哪些像素、以什么符号引起了响应。",
    ),
    "features.projections-signed.alt": (
        "The deconvnet's projection of each of the {count} patches of channel {channel} of {layer}, blue to orange.",
        "{layer} 的通道 {channel} 的 {count} 个图像块各自的反卷积投影，由蓝到橙。",
    ),
    "shapes.what": ("what", "名称"),
    "shapes.layer": ("layer", "层"),
    "shapes.shape": ("shape", "形状"),
    "shapes.count": ("numbers", "元素个数"),
    "shapes.parameters": ("weights", "参数量"),
    "shapes.filters": ("filters", "滤波器数"),
    "shapes.field": ("receptive field", "感受野"),
    "shapes.channels": ("channels", "通道数"),
    "shapes.maps": ("maps", "激活图大小"),
}

CATALOGUE: dict[str, tuple[str, str]] = {**_COMMON, **TOUR, **YOUR_MODEL}


class Translation:
    """The catalogue in one language. Raises UserError for a language that it does not have."""

    def __init__(self, language: str) -> None:
        if language not in LANGUAGES:
            raise UserError(f"lang must be one of {', '.join(LANGUAGES)}, but got {language!r}")
        self.language = language
        self._column = LANGUAGES.index(language)

    def of(self, key: str, values: Mapping[str, Any], plain: bool = False) -> str:
        """The text `key` with `values` filled in, as HTML or plain; without values as it is, since page.js fills some in."""
        words = CATALOGUE[key][self._column]
        if not values:
            return words
        shown = {
            name: _KINDS[value][self._column]
            if name == "kind"
            else printable(value)
            if plain
            else html.escape(printable(value))
            for name, value in values.items()
        }
        return words.format_map(shown)
