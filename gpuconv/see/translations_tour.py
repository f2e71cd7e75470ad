"""The texts of the tour, in English and Chinese."""

TOUR = {
    "say.training": (
        "Training a small network, to be filmed",
        "正在训练一个小网络，并记录训练过程",
    ),
    "tour": ("What a convolution layer does", "卷积层到底在做什么"),
    "tour.lead": (
        "A convolution layer slides small filters over a picture. That is all. In seven chapters: what a filter lets "
        "through, how it detects, how a layer is made of filters, how filters come by their numbers, and what layers "
        "see when they stand upon each other.\n\n"
        "Every number here was computed while this page was made, in {seconds} seconds, by the convolutions of gpuconv "
        "(backend {backend}). Things in a frame can be played with.",
        "卷积层让小小的滤波器在图像上滑动，仅此而已。本页分七章讲述：滤波器让什么通过、怎样检测特征、一层怎样由滤波器组成、滤波器里的数从何而来，以及层层堆叠之后看到了什么。\n\n"
        "页面上的每一个数，都是生成本页时（用了 {seconds} 秒）由 gpuconv 的卷积（后端 {backend}）算出来的。带边框的部分可以动手操作。",
    ),
    # ---- 1
    "smoothing.title": ("Smoothing", "平滑"),
    "smoothing.intro": (
        "Take a photograph and replace every pixel by the mean of itself and its eight neighbours. Nine numbers, each "
        "1/9, laid over nine pixels; multiply, add, move on by one pixel, and do it again. That is a convolution, and the "
        "nine numbers are its <b>filter</b>.\n\n"
        "What did it do? Look at the picture as a sum of waves: slow ones are sky and walls, fast ones are edges and "
        "grain. A filter multiplies each wave by a number, its <b>gain</b>. All gains together are the filter's "
        "<b>spectrum</b>. What passes best gives the filter its name. The names below are not asserted but computed from "
        "the gains: a wave passes if at least half of the greatest power comes through.",
        "取一张照片，把每个像素换成它自己与周围八个像素的平均值。九个数，每个都是 1/9，盖在九个像素上：相乘，相加，移动一个像素，再来一次。这就是卷积，那九个数就是<b>滤波器</b>（也叫卷积核）。\n\n"
        "它做了什么？可以把图像看成许多波的叠加：变化缓慢的波（<b>低频</b>）是天空和墙面，变化快速的波（<b>高频</b>）是边缘和颗粒。滤波器把每个波乘上一个数，即<b>增益</b>；所有增益合起来就是滤波器的<b>频谱</b>。"
        "哪些频率通过得最好，滤波器就以它们命名。下面的名称不是人为指定的，而是由增益计算出来的：一个波通过后的功率不低于最大值的一半，就算通过。",
    ),
    "smoothing.photo": ("The photograph, in grey: a temple roof.", "原照片（灰度）：一座庙宇的屋顶。"),
    "smoothing.photo.alt": (
        "A grey photograph of a Chinese temple: curved roofs with fine tiles in front of a bright sky.",
        "一张中国庙宇的灰度照片：明亮天空下的飞檐与细密的瓦片。",
    ),
    "smoothing.mean": ("The mean of 3×3", "3×3 均值滤波器"),
    "smoothing.mean.words": (
        "Nine times 1/9. The sum of its numbers is {sum}, so flat regions keep their brightness: the slowest waves pass "
        "with gain {zero}. Of the fastest ones {fastest} is left. The page computes: <b>{kind}</b>.",
        "九个 1/9。各数之和为 {sum}，所以平坦区域亮度不变：频率最低的波以增益 {zero} 通过，频率最高的波只剩 {fastest}。计算得出：<b>{kind}</b>。",
    ),
    "smoothing.gaussian": ("The Gaussian", "高斯滤波器"),
    "smoothing.gaussian.words": (
        "A bell instead of a box: near pixels count more. The gain at rest is {zero}, at the fast end {fastest}, and it "
        "falls without the ripples of the box: <b>{kind}</b>, and a better one.",
        "用钟形代替方形：离中心越近的像素权重越大。频率为零处的增益是 {zero}，频率最高处是 {fastest}，其间平滑下降，没有均值滤波器那样的波纹：<b>{kind}</b>，而且更好。",
    ),
    "smoothing.laplacian": ("The Laplacian", "拉普拉斯滤波器"),
    "smoothing.laplacian.words": (
        "Four neighbours minus four times the pixel. Its numbers sum to {sum}: flat regions give nothing at all (gain "
        "{zero}), and the faster the wave the more passes, up to {fastest}. <b>{kind}</b>: edges are left, surfaces gone.",
        "四个相邻像素之和减去中心像素的四倍。各数之和为 {sum}：平坦区域的输出为零（增益 {zero}），频率越高的波通过得越多，增益最高为 {fastest}。<b>{kind}</b>：留下边缘，抹去平坦区域。",
    ),
    "smoothing.difference": ("The difference of two Gaussians", "两个高斯之差（DoG）"),
    "smoothing.difference.words": (
        "A narrow bell minus a wide one. Neither the slowest waves (gain {zero}) nor the fastest ({fastest}) pass, but "
        "those between: <b>{kind}</b>. The cells of your retina do much the same.",
        "窄的高斯减去宽的高斯。频率最低的波（增益 {zero}）和频率最高的波（{fastest}）都通不过，中间频率的可以：<b>{kind}</b>。视网膜中的细胞所做的事与此相近。",
    ),
    "smoothing.result": ("The photograph through this filter.", "照片经过这个滤波器的结果。"),
    "smoothing.result.alt": (
        "The temple through the {side} by {side} filter: what a {kind} filter leaves of it.",
        "庙宇照片经过 {side}×{side} 滤波器：{kind}滤波器留下的部分。",
    ),
    "smoothing.filter": ("The filter, {side} × {side}.", "滤波器，{side} × {side}。"),
    "smoothing.filter.alt": (
        "The {side} by {side} numbers of the filter as colours, blue below zero, orange above.",
        "滤波器的 {side}×{side} 个数，以颜色显示，蓝色为负，橙色为正。",
    ),
    "smoothing.spectrum": (
        "Its spectrum: slow waves in the middle, fast ones outside.",
        "它的频谱：中间是低频，越往外频率越高。",
    ),
    "smoothing.spectrum.alt": (
        "The gain for waves of every speed and direction: white is none, orange is much. {kind}.",
        "各个频率、各个方向的波的增益：白色为零，橙色越深增益越大。{kind}。",
    ),
    "smoothing.profile": (
        "Gain by speed, slowest (0) to fastest (1): {kind}.",
        "增益随频率的变化，从最低（0）到最高（1）：{kind}。",
    ),
    "smoothing.profile.alt": (
        "A curve of the gain over the speed of the wave, from {zero} at 0 to {fastest} at 1.",
        "增益随频率变化的曲线，从 0 处的 {zero} 到 1 处的 {fastest}。",
    ),
    "smoothing.outro": (
        "So far somebody chose the numbers. Keep the question in mind: <b>where would the numbers come from if nobody "
        "knew which ones are good?</b>",
        "到这里为止，这些数都是人选定的。请记住这个问题：<b>如果没有人知道哪些数合适，它们该从哪里来？</b>",
    ),
    # ---- 2
    "curve.title": ("The curve detector", "曲线检测器"),
    "curve.intro": (
        "A filter can do more than blur: it can <b>look for something</b>. Here is one of 7 × 7 that holds the number 30 "
        "along a bend, and 0 elsewhere. Lay it over a patch of a picture that has the same bend, then over one that has not.",
        "滤波器不只会模糊图像，它还能<b>寻找东西</b>。这个 7 × 7 的滤波器在一段曲线上取值 30，其余为 0。先把它盖在一块含有同样曲线的图像上，再盖在一块没有这种曲线的图像上。",
    ),
    "curve.filter": ("The filter: a bend of 30s.", "滤波器：由 30 组成的一段曲线。"),
    "curve.filter.alt": (
        "Seven by seven cells; six orange ones form a line that bends from the upper right down the middle.",
        "七乘七的格子，六个橙色格子连成一条线，从右上方弯到中间再往下。",
    ),
    "curve.on": ("A patch with such a curve: response <b>{on}</b>.", "含有这种曲线的图像块：响应 <b>{on}</b>。"),
    "curve.on.alt": (
        "Seven by seven cells; a thick orange stroke bends just as the filter does. Response {on}.",
        "七乘七的格子，一道粗的橙色笔画，弯曲方式与滤波器一致。响应 {on}。",
    ),
    "curve.off": ("A patch with something else: response <b>{off}</b>.", "含有其他形状的图像块：响应 <b>{off}</b>。"),
    "curve.off.alt": (
        "Seven by seven cells; an orange shape on the left and at the bottom, nowhere on the filter's bend. Response {off}.",
        "七乘七的格子，橙色图形在左侧和底部，没有一格落在滤波器的曲线上。响应 {off}。",
    ),
    "curve.sum": (
        "The arithmetic is small enough to do by hand. On the first patch five of the six 30s meet ink: "
        "4 × (50 × 30) + 20 × 30 = <b>{on}</b>. On the second none does: <b>{off}</b>. A large number means: <i>here "
        "is what I am looking for.</i>",
        "这点算术用手就能算。在第一个图像块上，六个 30 中有五个落在笔画上：4 × (50 × 30) + 20 × 30 = <b>{on}</b>。在第二个上一个也没有：<b>{off}</b>。数值大，意思就是："
        "<i>我要找的东西就在这里。</i>",
    ),
    "curve.products": (
        "The 49 products on the first patch. They add up to {on}.",
        "第一个图像块上的 49 个乘积，总和为 {on}。",
    ),
    **{f"curve.column{i}": (str(i), str(i)) for i in range(7)},
    "curve.drawing": (
        "Now let it slide over a whole drawing. Each position gives one number; all together they are the <b>activation "
        "map</b>: bright where the drawing bends the filter's way.",
        "现在让它滑过整幅画。每个位置得到一个数，合起来就是<b>激活图</b>（也常叫特征图）：画中线条的弯曲方式与滤波器一致的地方响应最强。",
    ),
    "curve.mouse": ("The drawing.", "这幅画。"),
    "curve.mouse.alt": (
        "A line drawing of a mouse: back, ear, eye and tail.",
        "一只老鼠的线条画：背、耳朵、眼睛和尾巴。",
    ),
    "curve.map": (
        "Its activation map: every line answers a little, steep ones that bend to the right at the top a lot, and so does, "
        "a hint of what comes, any place with much ink.",
        "它的激活图：每条线都有一点响应，顶端向右弯的陡线响应很强；墨迹密集的地方响应也很强，原因下文会讲到。",
    ),
    "curve.map.alt": (
        "The mouse again, its lines in orange of different strength, strongest where they rise to the right.",
        "还是那只老鼠，线条呈深浅不一的橙色，向右上方弯起处最深。",
    ),
    "curve.footnote-flip": (
        "<b>First honest footnote.</b> In mathematics a convolution flips the filter before it slides. Networks do not: "
        "what they call convolution is a correlation. It matters: flipped, this filter gives <b>{flipped}</b> on the "
        "first patch instead of {on}. For filters that are learned it does not: training would just learn them flipped.",
        "<b>如实说明（一）。</b>数学里的卷积在滑动之前要先翻转滤波器，神经网络则不翻转：它们所谓的卷积其实是互相关。这有区别：翻转之后，这个滤波器在第一个图像块上给出 <b>{flipped}</b>，而不是 {on}。"
        "但对学出来的滤波器没有区别：训练会直接学到翻转后的版本。",
    ),
    "curve.footnote-uniform": (
        "<b>Second honest footnote.</b> A patch that is 50 everywhere has no curve at all and scores <b>{uniform}</b>, "
        "more than the curve itself! The filter cannot tell a curve from plain brightness. Subtract its mean, {mean}, from "
        "all 49 numbers, and it does not fall for that: {zero_uniform} on the uniform patch, {zero_on} on the curve, "
        "{zero_off} on the other patch.",
        "<b>如实说明（二）。</b>一个处处为 50 的图像块根本没有曲线，却得到 <b>{uniform}</b>，比曲线本身还高！这个滤波器分不清曲线与单纯的亮度。把 49 个数都减去它们的平均值 {mean}，它就不会上当："
        "均匀的图像块得 {zero_uniform}，曲线得 {zero_on}，另一个图像块得 {zero_off}。",
    ),
    "curve.flipped": ("Flipped: {flipped} on the curve.", "翻转后：在曲线上得 {flipped}。"),
    "curve.flipped.alt": ("The filter turned by half a turn.", "旋转了 180° 的滤波器。"),
    "curve.uniform": ("A uniform patch: {uniform}.", "均匀的图像块：{uniform}。"),
    "curve.uniform.alt": ("Seven by seven cells, all the same orange.", "七乘七的格子，全是同样的橙色。"),
    "curve.zero": ("The zero-mean filter.", "零均值滤波器。"),
    "curve.zero.alt": (
        "The filter with its bend in orange and all other cells in a pale blue, below zero.",
        "滤波器的曲线为橙色，其余格子为浅蓝色，即小于零。",
    ),
    "curve.zero-map": (
        "The drawing through the zero-mean filter, on the same scale as before: it also says where there is <i>no</i> such curve.",
        "这幅画经过零均值滤波器的结果，色标与前图相同：它还会指出哪里<i>没有</i>这种曲线。",
    ),
    "curve.zero-map.alt": (
        "The mouse in orange where lines bend the filter's way, blue beside them.",
        "老鼠的线条在弯曲方式与滤波器一致处为橙色，旁边为蓝色。",
    ),
    # ---- 3
    "layer.title": ("One layer", "一个卷积层"),
    "layer.intro": (
        "A colour picture has three numbers a pixel, so a filter has three sheets, one each for red, green and blue: 7 × "
        "7 × 3 = {weights} numbers. And one filter is not enough. A <b>layer</b> has many that look for different things; "
        "each makes a map of its own. Twelve filters over a picture of 32 × 32 × 3 make 32 × 32 × <b>12</b> (the picture "
        "gets a border of three pixels, so that its size stays).",
        "彩色图像的每个像素有三个数，所以滤波器也有三个通道，分别对应红、绿、蓝：7 × 7 × 3 = {weights} 个数。而且一个滤波器不够。一个<b>层</b>有许多滤波器，各自寻找不同的东西，各自得到一张激活图。"
        "十二个滤波器作用于 32 × 32 × 3 的图像，得到 32 × 32 × <b>12</b>（图像四周各填充三个像素，所以大小不变）。",
    ),
    "layer.input-picture": (
        "The picture, 32 × 32 × 3: a handwritten digit, painted onto a piece of a photograph.",
        "图像，32 × 32 × 3：一个手写数字，画在照片的一小块上。",
    ),
    "layer.input-picture.alt": (
        "A small coloured picture of 32 by 32 pixels with a handwritten digit.",
        "一张 32×32 像素的彩色小图，上面有一个手写数字。",
    ),
    "layer.filters-picture": (
        "The twelve filters, 7 × 7 × 3 each, as colours: grey is 0, full colour is ±{limit}. Chapter 5 tells where they come from.",
        "十二个滤波器，各 7 × 7 × 3，以颜色显示：灰色为 0，颜色最饱和处为 ±{limit}。第五章讲它们的来历。",
    ),
    "layer.filters-picture.alt": (
        "Twelve small coloured squares: bars and blobs of one colour beside another.",
        "十二个彩色小方块：一种颜色挨着另一种颜色的条纹和斑块。",
    ),
    "layer.maps-picture": (
        "What the layer makes of it: twelve maps of 32 × 32, all on one scale. Some see the digit, some its "
        "edges, some only the background.",
        "这一层得到的结果：十二张 32 × 32 的激活图，共用一个色标。有的看到数字，有的看到数字的边缘，有的只看到背景。",
    ),
    "layer.maps-picture.alt": (
        "Twelve maps in blue and orange in which the digit appears in different ways.",
        "十二张蓝橙两色的激活图，数字以不同的方式显现。",
    ),
    "layer.play": (
        "None of it is more than multiplying and adding. See for yourself:",
        "这一切不过是乘法和加法。不妨亲自看看：",
    ),
    "layer.shapes": (
        "Shapes, and how many numbers there are. The layer multiplies {products} times.",
        "各张量的形状，以及元素个数。这一层共做 {products} 次乘法。",
    ),
    # ---- 4
    "after.title": ("What follows", "接下来"),
    "after.intro": (
        "After a convolution come three simple things. The <b>activation</b> (here ReLU) keeps what is positive and puts "
        "the rest to 0: “not found” is not news. <b>Pooling</b> takes the largest of every 2 × 2: <i>whether</i> it was "
        "found here matters more than <i>exactly where</i>. Here is a corner of one map:",
        "卷积之后是几步简单的操作。<b>激活函数</b>（这里是 ReLU）保留正数，其余置零：“没找到”不算信息。<b>池化</b>取每个 2 × 2 区域中的最大值：<i>有没有</i>找到，比<i>确切在哪里</i>更要紧。"
        "下面是一张激活图的一角：",
    ),
    "after.before": ("Outputs of the convolution, 6 × 6.", "卷积的输出，6 × 6。"),
    "after.before.alt": ("Six by six cells, blue and orange.", "六乘六的格子，有蓝有橙。"),
    "after.relu": ("After ReLU: nothing below zero.", "经过 ReLU：没有负数。"),
    "after.relu.alt": ("The same cells; the blue ones are white now.", "同样的格子，蓝色的变成了白色。"),
    "after.pool": ("After pooling: 3 × 3.", "经过池化：3 × 3。"),
    "after.pool.alt": (
        "Three by three larger cells, each the darkest of four.",
        "三乘三的大格子，每格取四格中颜色最深的一格。",
    ),
    "after.words": (
        "Then the next layer convolves these maps in turn, and so on. Maps get smaller and more numerous: less "
        "<i>where</i>, more <i>what</i>.",
        "然后下一层再对这些激活图做卷积，如此继续。激活图越来越小，也越来越多：<i>在哪里</i>的信息越来越少，<i>是什么</i>的信息越来越多。",
    ),
    "after.pool1": (
        "After the first pooling: {side} × {side} × {channels}.",
        "第一次池化之后：{side} × {side} × {channels}。",
    ),
    "after.pool1.alt": (
        "{channels} maps of {side} by {side}; the digit can be made out.",
        "{channels} 张 {side}×{side} 的激活图，数字仍可辨认。",
    ),
    "after.pool2": ("After the second: {side} × {side} × {channels}.", "第二次之后：{side} × {side} × {channels}。"),
    "after.pool2.alt": ("{channels} coarse maps of {side} by {side}.", "{channels} 张粗糙的 {side}×{side} 的激活图。"),
    "after.pool3": ("After the third: {side} × {side} × {channels}.", "第三次之后：{side} × {side} × {channels}。"),
    "after.pool3.alt": (
        "{channels} maps of {side} by {side}, a few cells lit in each.",
        "{channels} 张 {side}×{side} 的激活图，每张只有几格亮着。",
    ),
    "after.connected": (
        "At last the maps are laid out as one row of {inputs} numbers, and a <b>fully connected</b> layer makes ten sums "
        "of them, each with weights of its own, {weights} in all. Ten numbers, one for each digit; softmax makes them "
        "shares that add up to 1.",
        "最后把这些激活图展平成一行，共 {inputs} 个数；<b>全连接</b>层对它们求十个加权和，各用各的权重，共 {weights} 个。十个数，对应十个数字；softmax 把它们变成总和为 1 的概率。",
    ),
    "after.class": ("digit", "数字"),
    "after.score": ("sum", "加权和"),
    "after.likely": ("share", "概率"),
    "after.numbers": (
        "The ten numbers. The network says {answer}; the picture is a {label}.",
        "这十个数。网络的回答是 {answer}；图上写的是 {label}。",
    ),
    "after.shapes": (
        "The shapes all the way, as height × width × channels, and the weights of each step.",
        "逐层的形状（高 × 宽 × 通道），以及每一步的参数量。",
    ),
    # ---- 5
    "training.title": ("Training makes detectors", "训练造就检测器"),
    "training.intro": (
        "Before training, filters are random numbers: they detect nothing, and the network guesses, {chance} right. "
        "Nobody tells it what to look for. It is shown pictures with their answers, and each weight is moved a "
        "little in the direction that makes the answer less wrong. After {epochs} epochs {accuracy} of {pictures} "
        "pictures that it never saw are named rightly. (Their digits are new; the two photographs behind them are the "
        "same.)\n\nAnd the filters have become something. Compare their spectra: {low_before} of 12 were low-pass "
        "before, {low_after} are after.",
        "训练之前，滤波器是随机数：什么也检测不到，网络只能乱猜，正确率 {chance}。没有人告诉它该找什么，只是给它看图片和答案，每次都把各个权重朝着让答案错得少一点的方向挪动一点。"
        "{epochs} 轮之后，{pictures} 张它从未见过的图片中有 {accuracy} 识别正确。（数字是新的，背景仍取自那两张照片。）\n\n"
        "滤波器也变得有模有样了。比较它们的频谱：12 个当中，训练前有 {low_before} 个是低通，训练后有 {low_after} 个。",
    ),
    "training.before": (
        "Before: noise. Grey is 0, full colour ±{limit}, in all three.",
        "训练前：噪声。三幅图中灰色均为 0，颜色最饱和处均为 ±{limit}。",
    ),
    "training.before.alt": ("Twelve filters of random coloured dots.", "十二个由随机彩点组成的滤波器。"),
    "training.during": ("After {middle} epochs.", "{middle} 轮之后。"),
    "training.during.alt": (
        "The twelve filters; in some the dots begin to join.",
        "十二个滤波器，有的彩点开始连成片。",
    ),
    "training.end": (
        "After {epochs} epochs: edges, bars and patches of colour against colour.",
        "{epochs} 轮之后：边缘、条纹，以及一种颜色与另一种颜色的对比。",
    ),
    "training.end.alt": (
        "The twelve filters, smooth now: one colour on one side, another on the other.",
        "十二个滤波器，已经平滑：一边一种颜色，另一边另一种颜色。",
    ),
    "training.film": (
        "Watch it happen. At first all ten outputs are about equal (the largest is {uncertain} on average, and 1/10 would "
        "be no idea at all); at the end nearly everything is on one: <b>one-hot</b> ({certain}).",
        "来看看这个过程。起初十个输出差不多相等（其中最大的平均为 {uncertain}，毫无头绪时应是 1/10）；最后几乎全部集中到一个输出上：<b>独热</b>（{certain}）。",
    ),
    "training.losses": (
        "How wrong is an answer? Two usual measures. The <b>mean squared error</b> (MSE) averages the squared distances of "
        "the ten outputs from the one-hot answer: {mse_first} before, {mse_last} after. The <b>cross-entropy</b> is "
        "−log of the share that the right digit got: {ce_first} before (log 10 = 2.303 is a pure guess), {ce_last} "
        "after. This network learned by cross-entropy, whose slope does not fade when an answer is confidently wrong.",
        "答案错了多少？常用的度量有两种。<b>均方误差</b>（MSE）是十个输出与独热答案之差的平方的平均值：训练前 {mse_first}，训练后 {mse_last}。<b>交叉熵</b>是正确数字所得概率的 −log："
        "训练前 {ce_first}（log 10 = 2.303 就是纯猜），训练后 {ce_last}。这个网络用交叉熵训练：即使答案错得很自信，它的梯度也不会消失。",
    ),
    "training.cross-entropy": ("Cross-entropy, epoch by epoch.", "交叉熵随轮次的变化。"),
    "training.cross-entropy.alt": (
        "Two curves that fall from about {ce_first} towards {ce_last}, steeply at first.",
        "两条曲线从约 {ce_first} 降向 {ce_last}，先陡后缓。",
    ),
    "training.on-training": ("training pictures", "训练集"),
    "training.on-held-out": ("held-out pictures", "留出集"),
    "training.mse": (
        "MSE of the ten outputs on held-out pictures, epoch by epoch.",
        "留出集上十个输出的均方误差随轮次的变化。",
    ),
    "training.mse.alt": (
        "A curve that falls from {mse_first} to {mse_last}.",
        "一条从 {mse_first} 降到 {mse_last} 的曲线。",
    ),
    "training.dead": ("Dead filters and duplicates", "死亡的滤波器与重复的滤波器"),
    "training.dead.words": (
        "Not every filter becomes useful. One is <b>dead</b> if no picture at all gets a positive output from it: ReLU "
        "then passes nothing on, no slope comes back, and it never learns again. Two are <b>duplicates</b> if they point "
        "the same way (cosine 0.9 or more): one would have done. Duplicate pairs in the first layer of this "
        "network: {alike}; the most alike, {first} and {second}, have cosine {cosine}. Haste kills: below is the same "
        "lesson with {lr_factor} times the learning rate, after {large_lr_epochs} epochs. Duplicate pairs in its first layer: "
        "{large_lr_alike}; right answers: {large_lr_accuracy}.",
        "并非每个滤波器都会有用。如果没有任何一张图片能让某个滤波器给出正的输出，它就<b>死亡</b>了：经过 ReLU 什么也传不下去，梯度也传不回来，它再也学不到东西。"
        "如果两个滤波器指向同一方向（余弦相似度不小于 0.9），它们就是<b>重复</b>的：留一个就够了。这个网络的第一层有 {alike} 对重复；最相似的是 {first} 和 {second}，余弦相似度为 {cosine}。"
        "欲速则不达：下表中还有同一个网络用 {lr_factor} 倍学习率训练 {large_lr_epochs} 轮之后的结果；它的第一层有 {large_lr_alike} 对重复，正确率 {large_lr_accuracy}。",
    ),
    "training.dead.table": ("Dead filters, counted on the held-out pictures.", "死亡滤波器的个数（在留出集上统计）。"),
    "training.usual-lr": ("dead", "死亡个数"),
    "training.large-lr": ("dead, rushed", "死亡个数（学习率过大）"),
    # ---- 6
    "random-search.title": ("The monkey at the keyboard", "敲键盘的猴子"),
    "random-search.intro": (
        "Could one not find a filter by luck? A monkey types a 5 × 5 filter: at each try one of the 25 numbers anew, at "
        "random, and nobody tells it whether that was good. Beside it, gradient descent, which is told the <i>slope</i>. "
        "Both want to become an edge detector; a try is one evaluation of one filter, and both get {evaluations}, from "
        "the same start, {seeds} times over ({counted} and {counted_gradient} counted). The loss is 0 for the edge "
        "detector itself and 1 for a filter of zeros. (A gradient step also has to go back through the "
        "convolution; charge it double, and nothing below changes.)",
        "难道不能靠运气碰出一个滤波器吗？让一只猴子来敲 5 × 5 的滤波器：每次随机重敲 25 个数中的一个，也没人告诉它敲得好不好。旁边是梯度下降，它知道<i>梯度</i>，即往哪个方向改损失会下降。两者都想变成一个边缘检测器；"
        "对一个滤波器评估一次算一次尝试，各有 {evaluations} 次，从同样的起点出发，重复 {seeds} 遍（实际计数分别为 {counted} 与 {counted_gradient}）。"
        "边缘检测器本身的损失为 0，全零滤波器的损失为 1。（梯度下降的每一步还要经过卷积反向传播一次；就算按双倍计算，下面的结论也不变。）",
    ),
    "random-search.race": (
        "Loss against evaluations, both on logarithmic scales: the mean of {seeds} seeds, and the band from the least to the greatest. "
        "What is below 10⁻⁷ is drawn there.",
        "损失随评估次数的变化，双对数坐标：{seeds} 个随机种子的平均值，色带从最小值到最大值。低于 10⁻⁷ 的画在 10⁻⁷ 处。",
    ),
    "random-search.race.alt": (
        "The monkey's loss stays about 2; its best so far creeps to {best_mean}; the gradient's loss dives to nothing "
        "within some tens of evaluations.",
        "猴子的损失一直在 2 左右；它迄今最好的结果缓慢降到 {best_mean}；梯度下降的损失在几十次评估之内直落到底。",
    ),
    "random-search.line-now": ("monkey, what it typed", "猴子：当前敲出的"),
    "random-search.line-best": ("monkey, best so far (if somebody kept a record)", "猴子：迄今最好的（假如有人记录）"),
    "random-search.line-gradient": ("gradient descent", "梯度下降"),
    "random-search.result": (
        "Gradient descent comes below {good} after {steps_mean} ± {steps_spread} evaluations. The monkey's best of "
        "{evaluations} is {best_mean} ± {best_spread} (mean ± standard deviation of {seeds} seeds).",
        "梯度下降用 {steps_mean} ± {steps_spread} 次评估降到 {good} 以下。"
        "猴子 {evaluations} 次里最好的损失是 {best_mean} ± {best_spread}（{seeds} 个随机种子的平均值 ± 标准差）。",
    ),
    "random-search.target": ("Wanted: an edge detector.", "目标：边缘检测器。"),
    "random-search.target.alt": (
        "Five by five cells, blue on the left, orange on the right.",
        "五乘五的格子，左蓝右橙。",
    ),
    "random-search.target-sees": ("The photograph through it.", "照片经过它的结果。"),
    "random-search.target-sees.alt": (
        "The temple's upright edges in blue and orange.",
        "庙宇的竖直边缘，呈蓝色与橙色。",
    ),
    "random-search.gradient": (
        "What gradient descent has after {evaluations}.",
        "梯度下降在 {evaluations} 次之后得到的。",
    ),
    "random-search.gradient.alt": ("Five by five cells, just like the wanted ones.", "五乘五的格子，与目标一样。"),
    "random-search.gradient-sees": ("The photograph through that.", "照片经过它的结果。"),
    "random-search.gradient-sees.alt": ("The temple's upright edges, as before.", "庙宇的竖直边缘，与前图一样。"),
    "random-search.typed": ("The monkey's best of {evaluations}.", "猴子 {evaluations} 次里最好的。"),
    "random-search.typed.alt": ("Five by five cells, blue and orange without order.", "五乘五的格子，蓝橙杂乱。"),
    "random-search.typed-sees": ("The photograph through the monkey's.", "照片经过猴子的滤波器的结果。"),
    "random-search.typed-sees.alt": (
        "The temple, blotchy, its edges hardly told from its surfaces.",
        "庙宇一片斑驳，边缘与平坦区域难以分辨。",
    ),
    "random-search.how-long": (
        "How long would it take? What it types is always 25 independent normal numbers, so the share of its filters that "
        "come within a given loss obeys a known law (the noncentral χ² distribution). The dots are what was measured; "
        "where there are tries enough to measure anything, they lie close to the law.",
        "那要多久呢？它敲出来的总是 25 个独立的正态随机数，所以损失不超过某个值的滤波器所占的比例服从一条已知的规律（非中心 χ² 分布）。圆点是实测值；只要尝试次数足够多、测得出来，它们就紧贴着这条规律。",
    ),
    "random-search.law": (
        "The share of the monkey's filters whose loss is at most the number on the horizontal axis.",
        "猴子的滤波器中，损失不超过横轴数值的比例。",
    ),
    "random-search.law.alt": (
        "A curve that falls ever more steeply towards loss 0, with measured dots on its upper right part.",
        "一条越接近损失 0 落得越陡的曲线，右上部分有实测的圆点。",
    ),
    "random-search.line-law": ("the law", "规律"),
    "random-search.line-measured": ("measured", "实测"),
    "random-search.honest": (
        "<b>Extrapolated honestly.</b> For a loss of {good} the law says one filter in 10<sup>{exponent}</sup>. It can be "
        "checked only where the dots are; below them it is mathematics, not measurement. Whatever order the monkey types "
        "in, the chance of meeting such a filter in n tries is at most n times that share. At a thousand million "
        "evaluations a second, 10<sup>{exponent}</sup> take about 10<sup>{years}</sup> years. And this is one filter of "
        "25 numbers; a network has millions. What makes learning possible is not trying, it is being told the slope.",
        "<b>如实外推。</b>要使损失达到 {good}，按规律每 10<sup>{exponent}</sup> 个滤波器才有一个。这条规律只在有圆点的地方能够检验，再往下是数学，不是测量。"
        "无论猴子按什么顺序敲，n 次尝试中碰到这样一个滤波器的概率至多是这个比例的 n 倍。就算每秒评估十亿次，10<sup>{exponent}</sup> 次也要大约 10<sup>{years}</sup> 年。"
        "而这只是一个由 25 个数组成的滤波器；一个网络有几百万个数。使学习成为可能的不是尝试，而是知道梯度。",
    ),
    # ---- 7
    "deeper.title": ("Deeper layers see combinations", "更深的层看到组合"),
    "deeper.intro": (
        "The second layer does not look at pixels. It convolves the maps of the first: it looks for <i>arrangements</i> of "
        "edges and colours, and the third for arrangements of those. Two ways to ask a feature what it likes: show it all "
        "held-out pictures and keep the <b>nine patches</b> with the strongest response; and go <b>back</b> from that "
        "one response to the pixels that made it, which is Zeiler and Fergus's <b>deconvnet</b>. Each layer also sees a "
        "larger window, its <b>receptive field</b>.",
        "第二层看的不是像素。它对第一层的激活图做卷积：寻找边缘与颜色的<i>排列</i>；第三层则寻找这些排列的排列。要知道一个特征对什么响应，有两个办法：把留出集的图片全给它看，留下响应最强的<b>九个图像块</b>；"
        "再从那一个响应<b>反向</b>追溯到引起它的像素，这就是 Zeiler 与 Fergus 的<b>反卷积网络</b>。层越深，一个输出看到的窗口也越大，这个窗口叫<b>感受野</b>。",
    ),
    "deeper.relu1": ("First layer: {side} × {side} pixels", "第一层：{side} × {side} 像素"),
    "deeper.relu2": ("Second layer: {side} × {side} pixels", "第二层：{side} × {side} 像素"),
    "deeper.relu3": ("Third layer: {side} × {side} pixels", "第三层：{side} × {side} 像素"),
    "deeper.fields": (
        "First layer against later ones: how many pixels an output depends on, and how many outputs there are.",
        "第一层与后面各层的比较：一个输出取决于多少像素，以及有多少个输出。",
    ),
    "deeper.how": (
        "The way back undoes the way forth, step by step. <b>Pooling</b>: on the way forth note which of the four was "
        "the largest (the <i>switch</i>); on the way back put the value there, and zeros in the other three. <b>ReLU</b>: "
        "what comes back goes through ReLU too. <b>Convolution</b>: convolve with the transposed filters; in gpuconv that "
        "is one of its three basic functions, <code>grad_input</code>. Without ReLU and pooling the deconvnet is exactly "
        "the gradient with respect to the picture.",
        "反向把前向一步步倒过来。<b>池化</b>：前向时记下四个之中哪个最大（<i>开关</i>），反向时把值放回那里，其余三个置零。<b>ReLU</b>：反向传回的值同样经过 ReLU。<b>卷积</b>："
        "用转置的滤波器做卷积，在 gpuconv 里这就是三个基本函数之一 <code>grad_input</code>。没有 ReLU 和池化时，反卷积网络恰好就是对图像的梯度。",
    ),
    "deeper.honest": (
        "<b>What these pictures do not show.</b> This is a small network, trained for seconds, and the features above are "
        "those that stand out most. A deconvnet shows which pixels carried a response, not why it meant anything to "
        "the network. Try your own: <code>gpuconv see timm:resnet18 --image cat.jpg</code>.",
        "<b>这些图没有说明什么。</b>这是一个只训练了几秒的小网络，上面展示的是最突出的几个特征。反卷积网络显示的是哪些像素承载了响应，而不是它对网络意味着什么。试试你自己的模型和图片："
        "<code>gpuconv see timm:resnet18 --image cat.jpg</code>。",
    ),
}
