// What the pages share: data, elements, numbers as text, and drawing on canvases.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const PALETTE =
  "#0072B2 #E69F00 #009E73 #CC79A7 #D55E00 #56B4E9 #882255 #999933 #332288 #44AA99".split(" ");
const RED_BLUE = // RdBu_r, as in figures.proxy_heatmaps
  "#053061 #2166ac #4393c3 #92c5de #d1e5f0 #f7f7f7 #fddbc7 #f4a582 #d6604d #b2182b #67001f";

const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const fixed = (value, digits = 3) => value.toFixed(digits).replace("-", "−");
const rowsOf = (matrix, D) =>
  Array.from({ length: matrix.length / D }, (_, i) => matrix.subarray(i * D, (i + 1) * D));
const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)} %`;

// ---- elements --------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A button in the page's style; `type` keeps it from ever submitting anything.
function button(text, action, attributes = {}) {
  const node = element("button", { type: "button", ...attributes }, text);
  node.onclick = action;
  return node;
}

// Rows of cells: text, or elements; a `th` is a cell of its own.
function fillTable(table, head, rows) {
  const cell = (value) => (value.tagName === "TH" ? value : element("td", {}, value));
  const titles = head.map((text) => element("th", { scope: "col" }, text));
  const body = rows.map((cells) => element("tr", {}, ...cells.map(cell)));
  const header = element("thead", {}, element("tr", {}, ...titles));
  table.replaceChildren(header, element("tbody", {}, ...body));
}

// ---- canvases --------------------------------------------------------------------------------

// The 2-D context of a canvas, cleared, with its size in CSS pixels.
function context(canvas) {
  const { clientWidth: w, clientHeight: h } = canvas;
  canvas.width = Math.round(w * devicePixelRatio); // this also clears it
  canvas.height = Math.round(h * devicePixelRatio);
  const g = canvas.getContext("2d");
  g.scale(devicePixelRatio, devicePixelRatio);
  return [g, w, h];
}

function circle(g, [x, y], radius) {
  g.beginPath();
  g.arc(x, y, radius, 0, 2 * Math.PI);
}

function disc(g, place, radius, color) {
  circle(g, place, radius);
  g.fillStyle = color;
  g.fill();
}

function path(g, points) {
  g.beginPath();
  for (const point of points) g.lineTo(...point);
}

function line(g, ...points) {
  path(g, points);
  g.stroke();
}

function arrow(g, from, to, width) {
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  const head = Math.min(3 * width, length);
  if (head < 1) return;
  g.save();
  g.translate(...from);
  g.rotate(Math.atan2(to[1] - from[1], to[0] - from[0])); // now it points to the right
  g.lineWidth = width;
  line(g, [0, 0], [length - 0.8 * head, 0]);
  g.fill(new Path2D(`M ${length} 0 l ${-head} ${0.55 * head} v ${-1.1 * head} z`));
  g.restore();
}

// `draw` in the next frame, once, however often it is asked for until then.
function inNextFrame(draw) {
  let frame;
  return () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  };
}

// Pages draw on their canvases themselves: again for another size, and for light or dark.
function redrawWith(draw, node) {
  new ResizeObserver(draw).observe(node);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

// ---- pointer and keys ------------------------------------------------------------------------

// Where the pointer is on a canvas, in CSS pixels.
function pointer(event, canvas) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

// `press(place)`, then `move(place, change)` until the pointer is released.
function onDrag(canvas, press, move) {
  let place;
  canvas.onpointerdown = (event) => {
    place = pointer(event, canvas);
    canvas.setPointerCapture(event.pointerId);
    press(place);
  };
  canvas.onpointermove = (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    const [x, y] = place;
    place = pointer(event, canvas);
    move(place, [place[0] - x, place[1] - y]);
  };
}

// Steps to the right and down that an arrow key asks for.
function arrowKey({ key }) {
  return { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
}

// ---- circle and sphere -----------------------------------------------------------------------

// A direction seen from angles [around, towards the reader]: right, up, near (1 near, −1 far).
function project(v, [a, b]) {
  if (v.length === 2) return [v[0], v[1], 1];
  const right = Math.cos(a) * v[0] + Math.sin(a) * v[1];
  const depth = Math.cos(a) * v[1] - Math.sin(a) * v[0];
  return [
    right,
    Math.cos(b) * v[2] + Math.sin(b) * depth,
    Math.sin(b) * v[2] - Math.cos(b) * depth,
  ];
}

// Its inverse on the near side.
function unproject([right, up, near], [a, b]) {
  const depth = Math.sin(b) * up - Math.cos(b) * near;
  return [
    Math.cos(a) * right - Math.sin(a) * depth,
    Math.sin(a) * right + Math.cos(a) * depth,
    Math.cos(b) * up + Math.sin(b) * near,
  ];
}

const turned = ([a, b], [dx, dy]) => [a - dx / 120, clamp(b + dy / 120, -1.5, 1.5)]; // by pixels

// A circle on the sphere, `out` from its vertical axis and `up` from its middle.
const parallel = (angle) => (t) => [
  Math.cos(angle) * Math.cos(t),
  Math.cos(angle) * Math.sin(t),
  Math.sin(angle),
];

// A closed curve of directions; `at` says where one is: [x, y, near]. The far side is faint.
function drawRing(g, at, direction, alpha) {
  const points = Array.from({ length: 49 }, (_, k) => at(direction((k * Math.PI) / 24)));
  for (let k = 0; k < 48; k++) {
    g.globalAlpha = points[k][2] < 0 ? 0.3 * alpha : alpha;
    line(g, points[k].slice(0, 2), points[k + 1].slice(0, 2));
  }
}

function drawGlobe(g, at) {
  for (let k = 0; k < 6; k++) {
    const a = (k * Math.PI) / 6;
    const meridian = (t) => [Math.cos(a) * Math.cos(t), Math.sin(a) * Math.cos(t), Math.sin(t)];
    drawRing(g, at, meridian, 0.25);
    drawRing(g, at, parallel(((k + 0.5) * Math.PI) / 6 - Math.PI / 2), 0.25);
  }
}

// ---- cosines and angles ----------------------------------------------------------------------

const cells = element("canvas").getContext("2d");
let shades;

// 256 colors from blue to red, as pixels; the legend shows them.
function drawLegend(canvas, limit) {
  $("least").textContent = `−${limit}`;
  $("most").textContent = `+${limit}`;
  if (shades) return;
  const g = canvas.getContext("2d");
  g.fillStyle = g.createLinearGradient(0, 0, 256, 0);
  RED_BLUE.split(" ").forEach((color, k) => g.fillStyle.addColorStop(k / 10, color));
  g.fillRect(0, 0, 256, 1);
  shades = new Uint32Array(g.getImageData(0, 0, 256, 1).data.buffer);
}

// (C, C) cosines as a square, from −limit to +limit; the diagonal is gray.
function drawCosines(g, cosines, C, limit, left, side) {
  cells.canvas.width = cells.canvas.height = C;
  const picture = cells.createImageData(C, C);
  const pixels = new Uint32Array(picture.data.buffer);
  for (let k = 0; k < pixels.length; k++) {
    const level = clamp(Math.round(127.5 * (1 + cosines[k] / limit)), 0, 255);
    pixels[k] = k % (C + 1) ? shades[level] : 0xff969696;
  }
  cells.putImageData(picture, 0, 0);
  g.imageSmoothingEnabled = false;
  g.drawImage(cells.canvas, left, 0, side, side);
}

// Below a histogram of angles: random directions in gray, and a scale in degrees.
function drawChance(g, { x, y, low, high, bottom, density, step }) {
  const angles = Array.from({ length: 2 * (high - low) + 1 }, (_, k) => low + k / 2);
  path(g, [[x(low), bottom], ...angles.map((a) => [x(a), y(density(a))]), [x(high), bottom]]);
  g.fillStyle = "#88888855";
  g.fill();
  g.fillStyle = cssColor("--ink");
  for (let angle = Math.ceil(low / step) * step; angle <= high; angle += step) {
    g.textAlign = angle === low ? "left" : angle === high ? "right" : "center";
    g.fillText(`${angle}°`, x(angle), bottom + 18);
  }
}
