"use strict";

const settings = JSON.parse(document.getElementById("settings").textContent);
const stops = settings.diverging.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));

// The map of pictures.py: a value from −limit to limit as [red, green, blue].
function diverging(value, limit) {
  const at = (Math.max(-1, Math.min(1, value / limit)) + 1) / 2 * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2), part = at - low;
  return stops[low].map((from, i) => Math.round(from + (stops[low + 1][i] - from) * part));
}

function floats(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer), values = new Float32Array(bytes.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = view.getFloat32(4 * i, true);
  return values;
}

function element(tag, parent, properties = {}) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  }
  parent.append(made);
  return made;
}

// Paint rows × columns cells, colour(row, column) → [red, green, blue], one pixel each.
function paint(canvas, rows, columns, colour) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    image.data.set([...colour(Math.floor(i / columns), i % columns), 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

const number = (value) => {
  const text = Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6 || value === 0
    ? String(Number(value.toPrecision(5))) : value.toExponential(3);
  return text.replace("-", "−");
};
const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
const largest = (values) => { let most = 0; for (const v of values) most = Math.max(most, Math.abs(v)); return most || 1; };

// One layer: choose a map, then an output of it; see the window, the filter, the products and their sum.
function layer(root, data) {
  const [channels, height, width] = data.input_shape, [filters, depth, rows, columns] = data.weight_shape;
  const [, outRows, outColumns] = data.output_shape, [strideY, strideX] = data.stride, [dilY, dilX] = data.dilation;
  const input = floats(data.input), weight = floats(data.weight), bias = floats(data.bias), output = floats(data.output);
  const words = data.words, mapLimit = largest(output), weightLimit = largest(weight), inputLimit = largest(input);
  let [k, p, q] = data.at;

  const out = (filter, row, column) => output[(filter * outRows + row) * outColumns + column];
  const chooser = element("div", root, { className: "channels", role: "group", "aria-label": words.maps });
  const buttons = [];
  for (let filter = 0; filter < filters; filter++) {
    const name = fill(words.map, { n: data.names[filter] });
    const button = element("button", chooser, { type: "button", title: name, "aria-label": name });
    paint(element("canvas", button), outRows, outColumns, (row, column) => diverging(out(filter, row, column), mapLimit));
    button.onclick = () => { k = filter; show(); };
    buttons.push(button);
  }
  const stage = element("div", root, { className: "stage" });
  const left = element("figure", stage), right = element("figure", stage);
  const picture = element("canvas", left, { role: "img", "aria-label": words.input });
  element("figcaption", left, { textContent: words.input });
  const map = element("canvas", right, { tabIndex: 0, role: "application", "aria-label": words.output, className: "map" });
  element("figcaption", right, { textContent: words.output });
  const terms = element("div", root, { className: "terms" });
  const sum = element("p", root, { className: "sum readout", "aria-live": "polite" });
  const details = element("details", root);
  element("summary", details, { textContent: words.details });
  const numbers = element("div", details);
  details.ontoggle = () => show();

  const zoom = Math.max(1, Math.round(360 / outColumns));
  // Cells enlarged on a canvas of its own, with a frame around rows top … bottom, columns left … right.
  function framed(canvas, cells, times, top, leftmost, bottom, rightmost) {
    const [h, w] = [cells.height, cells.width], context = canvas.getContext("2d");
    canvas.width = w * times;
    canvas.height = h * times;
    context.imageSmoothingEnabled = false;
    context.drawImage(cells, 0, 0, w * times, h * times);
    for (const [colour, line] of [["#ffffff", 5], ["#d0006f", 3]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(leftmost * times, top * times, (rightmost - leftmost) * times, (bottom - top) * times);
    }
  }
  const shown = document.createElement("canvas"), pixels = atob(data.picture);
  paint(shown, data.picture_shape[0], data.picture_shape[1], (row, column) =>
    [0, 1, 2].map((i) => pixels.charCodeAt((row * data.picture_shape[1] + column) * 3 + i)));

  function show() {
    buttons.forEach((button, filter) => button.setAttribute("aria-pressed", String(filter === k)));
    const cells = document.createElement("canvas");
    paint(cells, outRows, outColumns, (row, column) => diverging(out(k, row, column), mapLimit));
    framed(map, cells, zoom, p, q, p + 1, q + 1);
    const scaleY = data.picture_shape[0] / data.pixels[0], scaleX = data.picture_shape[1] / data.pixels[1];
    const top = p * strideY + data.origin[0], leftmost = q * strideX + data.origin[1];
    framed(picture, shown, Math.max(1, Math.round(360 / shown.width)), top * scaleY, leftmost * scaleX,
      (top + (rows - 1) * dilY + 1) * scaleY, (leftmost + (columns - 1) * dilX + 1) * scaleX);

    let total = bias[k];
    const parts = [];
    for (let c = 0; c < depth; c++) {
      const part = { c, window: [], filter: [], products: [], sum: 0 };
      for (let r = 0; r < rows; r++) for (let s = 0; s < columns; s++) {
        const x = input[((data.first[k] + c) * height + p * strideY + r * dilY) * width + q * strideX + s * dilX];
        const w = weight[((k * depth + c) * rows + r) * columns + s];
        part.window.push(x); part.filter.push(w); part.products.push(x * w);
        part.sum += x * w;
      }
      total += part.sum;
      parts.push(part);
    }
    const most = depth <= 4 ? parts : [...parts].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum)).slice(0, 3);
    const productLimit = largest(most.flatMap((part) => part.products));
    terms.replaceChildren();
    const limits = { window: inputLimit, filter: weightLimit, products: productLimit };
    for (const key of ["", "window", "filter", "products", "total"]) {
      const scale = limits[key] ? ` ±${Number(limits[key].toPrecision(2))}` : "";
      element("span", terms, { className: "head", textContent: key ? words[key] + scale : "" });
    }
    for (const part of most) {
      element("span", terms, { textContent: data.channels[part.c] || fill(words.channel, { n: part.c + 1 }) });
      for (const [key, limit] of Object.entries(limits)) {
        const canvas = element("canvas", terms, { role: "img", "aria-label": `${words[key]} ${part.c + 1}` });
        paint(canvas, rows, columns, (row, column) => diverging(part[key][row * columns + column], limit));
      }
      element("output", terms, { textContent: number(part.sum) });
    }
    const rest = parts.filter((part) => !most.includes(part)).reduce((all, part) => all + part.sum, 0);
    const terse = most.map((part) => number(part.sum));
    if (most.length < parts.length) terse.push(fill(words.others, { n: parts.length - most.length, sum: number(rest) }));
    const given = out(k, p, q);
    const values = { k: data.names[k], p: p + data.corner[0], q: q + data.corner[1], n: depth * rows * columns,
      sums: terse.join(" + ").replaceAll("+ −", "− "), bias: number(bias[k]), sum: number(total), output: number(given) };
    sum.textContent = fill(words.sum, values);
    Object.assign(root.dataset, { k, p, q, sum: total, output: given });
    map.setAttribute("aria-label", `${words.output} ${fill(words.place, values)}`);

    numbers.replaceChildren();
    if (details.open) for (const part of most) {
      const table = element("table", element("div", numbers, { className: "table" }));
      element("caption", table, { textContent: data.channels[part.c] || fill(words.channel, { n: part.c + 1 }) });
      for (let r = 0; r < rows; r++) {
        const line = element("tr", table);
        for (let s = 0; s < columns; s++) {
          const i = r * columns + s, short = (v) => String(Number(v.toPrecision(2))).replace("-", "−");
          element("td", line, { textContent: `${short(part.window[i])} × ${short(part.filter[i])} = ${short(part.products[i])}` });
        }
      }
    }
  }

  map.onpointerdown = (event) => {
    const box = map.getBoundingClientRect();
    q = Math.min(outColumns - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * outColumns)));
    p = Math.min(outRows - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * outRows)));
    show();
  };
  map.onkeydown = (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    p = Math.min(outRows - 1, Math.max(0, p + step[0]));
    q = Math.min(outColumns - 1, Math.max(0, q + step[1]));
    show();
  };
  show();
}

// A film: the filters and the ten outputs for one picture, epoch by epoch.
function film(root, data) {
  const words = data.words, pixels = atob(data.filters), [count, side] = data.filter_shape, across = 4;
  const controls = element("div", root, { className: "controls" });
  const play = element("button", controls, { type: "button", textContent: words.play });
  const slider = element("input", controls, { type: "range", min: 0, max: data.outputs.length - 1, value: 0, "aria-label": words.epoch });
  const readout = element("p", root, { className: "readout", "aria-live": "polite" });
  const screen = element("div", root, { className: "film" });
  const left = element("div", screen), right = element("div", screen);
  const canvas = element("canvas", left, { role: "img", "aria-label": words.filters });
  const example = element("canvas", right, { className: "example", role: "img", "aria-label": fill(words.example, { n: data.label }) });
  const picture = atob(data.picture), size = Math.sqrt(picture.length / 3);
  paint(example, size, size, (row, column) => [0, 1, 2].map((i) => picture.charCodeAt((row * size + column) * 3 + i)));
  const bars = element("div", right, { className: "bars", role: "img" }), digits = element("div", right, { className: "digits", "aria-hidden": "true" });
  const columns = data.outputs[0].map((_, i) => {
    element("span", digits, { textContent: i });
    return element("i", bars, { className: i === data.label ? "right" : "" });
  });

  function show() {
    const epoch = Number(slider.value), rows = Math.ceil(count / across), cell = side + 1, blank = getComputedStyle(root).backgroundColor.match(/\d+/g).slice(0, 3).map(Number);
    paint(canvas, rows * cell - 1, across * cell - 1, (row, column) => {
      if (row % cell === side || column % cell === side) return blank;
      const filter = Math.floor(row / cell) * across + Math.floor(column / cell);
      const at = (((epoch * count + filter) * side + row % cell) * side + column % cell) * 3;
      return [0, 1, 2].map((i) => pixels.charCodeAt(at + i));
    });
    const likely = data.outputs[epoch];
    columns.forEach((bar, i) => { bar.style.height = `${100 * likely[i]}%`; bar.title = likely[i].toFixed(3); });
    bars.setAttribute("aria-label", likely.map((value, i) => `${i}: ${value.toFixed(2)}`).join(", "));
    readout.textContent = fill(words.readout, { epoch, ce: data.cross_entropy[epoch].toFixed(3), mse: data.mse[epoch].toFixed(4),
      accuracy: (100 * data.accuracy[epoch]).toFixed(1), right: likely[data.label].toFixed(3) });
    root.dataset.epoch = epoch;
  }
  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = words.play; };
  play.onclick = () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    play.textContent = words.pause;
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (slider.value === slider.max) stop();
    }, 350);
  };
  slider.oninput = () => { stop(); show(); };
  show();
}

const kinds = { layer, film };
for (const root of document.querySelectorAll(".widget")) {
  kinds[root.dataset.kind](root, JSON.parse(root.querySelector("script").textContent));
}
