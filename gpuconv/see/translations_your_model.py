"""The texts of the page on the reader's own model, in English and Chinese."""

YOUR_MODEL = {
    "your-model": ("What {name} sees", "{name} 看到了什么"),
    "your-model.lead": (
        "Your model and your image, layer <code>{layer}</code>, computed by gpuconv (backend {backend}) in {seconds} "
        "seconds. What these things mean is told, from the beginning, by <code>gpuconv see tour</code>.",
        "你的模型和你的图像，<code>{layer}</code> 层，由 gpuconv（后端 {backend}）用 {seconds} 秒算出。这些内容的含义，<code>gpuconv see tour</code> 会从头讲起。",
    ),
    "your-layer.title": ("The layer at work", "工作中的这一层"),
    "your-layer.untrained": (
        "The weights are random: nobody trained this model. What its filters and features look for has no meaning.",
        "权重是随机的：这个模型没有经过训练，它的滤波器和特征在寻找什么并无意义。",
    ),
    "your-layer.image": (
        "The image as the model gets it: {height} × {width} × {channels}.",
        "模型接收到的图像：{height} × {width} × {channels}。",
    ),
    "your-layer.image.alt": (
        "The image that was given, {width} by {height} pixels.",
        "给定的图像，{width}×{height} 像素。",
    ),
    "your-layer.maps": (
        "The {count} strongest of the {all} maps of <code>{layer}</code>, {height} × {width} each, on one scale: channels {channels}.",
        "<code>{layer}</code> 的 {all} 张激活图中响应最强的 {count} 张，各 {height} × {width}，共用一个色标：通道 {channels}。",
    ),
    "your-layer.maps.alt": ("{count} maps of the image in blue and orange.", "图像的 {count} 张蓝橙两色激活图。"),
    "your-layer.shapes": (
        "Shapes as channels × height × width. The layer multiplies {products} times.",
        "各张量的形状（通道 × 高 × 宽）。这一层共做 {products} 次乘法。",
    ),
    "your-filters.title": ("Its filters", "它的滤波器"),
    "your-filters.words": (
        "{all} filters of {shape}. By their spectra {low} are low-pass, {band} band-pass, {high} high-pass and {flat} "
        "all-pass. Pairs of duplicates (cosine 0.9 or more): {alike}. Channels that are nowhere positive on this image: "
        "{silent}; seen on one image only, that does not make them dead.",
        "{all} 个滤波器，各为 {shape}。按频谱划分：低通 {low} 个，带通 {band} 个，高通 {high} 个，全通 {flat} 个。重复的滤波器（余弦相似度不小于 0.9）：{alike} 对。"
        "在这张图像上处处不为正的通道：{silent} 个；只看一张图像，还不能断定它们已经死亡。",
    ),
    "your-filters.colours": (
        "Filters 0 to {last} as colours on one scale: grey is 0, full colour ±{limit}.",
        "滤波器 0 到 {last}，以颜色显示，共用一个色标：灰色为 0，颜色最饱和处为 ±{limit}。",
    ),
    "your-filters.colours.alt": ("{count} filters as small coloured squares.", "{count} 个滤波器，显示为彩色小方块。"),
    "your-filters.signed": (
        "The first channel of filters 0 to {last}, on one scale.",
        "滤波器 0 到 {last} 的第一个通道，共用一个色标。",
    ),
    "your-filters.signed.alt": (
        "{count} filters as small squares, blue to orange.",
        "{count} 个滤波器，显示为由蓝到橙的小方块。",
    ),
    "your-features.title": ("What its features look for", "它的特征在寻找什么"),
    "your-features.words": (
        "For each layer the three channels that stand out most on your image, the windows that they respond to most, and "
        "the deconvnet's way back from each response to the pixels.",
        "每一层选出对你的图像响应最突出的三个通道，展示它们响应最强的窗口，以及反卷积网络从每个响应追溯到像素的结果。",
    ),
    "your-features.layer": (
        "<code>{layer}</code>: {height} × {width} pixels",
        "<code>{layer}</code>：{height} × {width} 像素",
    ),
    "your-features.fields": (
        "First layer against later ones. A receptive field ends where the image does.",
        "第一层与后面各层的比较。感受野不会超出图像。",
    ),
}
