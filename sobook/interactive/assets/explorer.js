// The explorer: heatmap, map, angles and pictures of one or two runs, linked.
//
// Everything it shows is in `DATA` (made by sobook/explorer.py); nothing is fetched. One state, one
// `draw`: whatever is hovered, selected or scrubbed changes the state, and every view redraws from
// it in the next frame. Notation: C classes with proxies, A all classes, N images, E epochs.
"use strict";

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);
const shorts = (text) => new Int16Array(bytes(text).buffer);
const words = (text) => new Uint16Array(bytes(text).buffer);
const $ = (id) => document.getElementById(id);
const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#882255", "#999933", "#332288", "#44AA99"];
const FIRST = "#E69F00", SECOND = "#56B4E9"; // the two classes of a cell, wherever they are drawn

const D = { ...DATA, labels: words(DATA.labels), colors: bytes(DATA.colors) };
const C = D.order.length, A = D.classes.length, N = D.labels.length, PAIRS = (C * (C - 1)) / 2;
for (const run of D.runs) {
  run.cosines = shorts(run.cosines);
  run.confusion = words(run.confusion);
  run.near = words(run.near);
  for (const kind of Object.keys(run.maps)) {
    run.maps[kind] = floats(run.maps[kind]);
    run.stars[kind] = floats(run.stars[kind]);
  }
}
const members = Array.from({ length: A }, () => []);
D.labels.forEach((label, i) => members[label].push(i));
const place = new Array(A).fill(-1); // where a class stands in the heatmap
D.order.forEach((c, k) => { place[c] = k; });
const groups = [...new Set(D.classes.map((c) => c.group))];
const shade = D.classes.map((c) => (groups.length > 1 ? PALETTE[groups.indexOf(c.group) % PALETTE.length] : "#888888"));

const state = { run: D.runs.length - 1, difference: false, map: Object.keys(D.runs[0].maps)[0],
  epoch: D.runs[D.runs.length - 1].kept, a: -1, b: -1, over: [-1, -1], image: -1, playing: false, slide: 1, from: 0 };
const frames = { count: 0 };

// ---- numbers at an epoch, in between by interpolation -----------------------------------------

const pairIndex = (i, j) => (i < j ? (i * (2 * C - i - 1)) / 2 + j - i - 1 : (j * (2 * C - j - 1)) / 2 + i - j - 1);
const lastEpoch = (run) => run.epochs.length - 1;

function between(run, epoch) {
  const e = Math.min(epoch, lastEpoch(run)), low = Math.floor(e);
  return [low, Math.min(low + 1, lastEpoch(run)), e - low];
}

// All C(C−1)/2 cosines of a run at an epoch, classes 0..C−1.
const buffers = new Map();
function cosines(run, epoch) {
  const [low, high, t] = between(run, epoch);
  if (!buffers.has(run)) buffers.set(run, { key: -1, values: new Float32Array(PAIRS) });
  const buffer = buffers.get(run);
  if (buffer.key !== low + t) {
    const [a, b] = [low * PAIRS, high * PAIRS];
    for (let k = 0; k < PAIRS; k++) buffer.values[k] = ((1 - t) * run.cosines[a + k] + t * run.cosines[b + k]) / 32767;
    buffer.key = low + t;
  }
  return buffer.values;
}

function star(run, epoch, c) {
  const [low, high, t] = between(run, epoch), s = run.stars[state.map];
  const at = (e, k) => s[2 * (e * C + c) + k];
  return [0, 1].map((k) => (1 - t) * at(low, k) + t * at(high, k));
}

const run = () => D.runs[state.run];
const signed = (value) => value.toFixed(2).replace("-", "−");
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const focus = () => (state.over[0] >= 0 ? state.over : [state.a, state.b]);
const tint = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function board(id) {
  const canvas = $(id), ratio = window.devicePixelRatio || 1;
  const [w, h] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
  }
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, w, h);
  return [g, w, h];
}

// ---- heatmap ---------------------------------------------------------------------------------

const cells = document.createElement("canvas");
cells.width = cells.height = Math.max(C, 1);

function drawHeat() {
  const [g, w] = board("heat"), bar = Math.max(6, w * 0.03), side = w - bar;
  const values = cosines(run(), state.epoch), first = state.difference ? cosines(D.runs[0], state.epoch) : null;
  const pen = cells.getContext("2d"), picture = pen.createImageData(C, C), gray = [150, 150, 150];
  for (let r = 0; r < C; r++) {
    for (let c = 0; c < C; c++) {
      const at = 4 * (r * C + c);
      let rgb = gray;
      if (r !== c) {
        const k = pairIndex(D.order[r], D.order[c]), value = first ? values[k] - first[k] : values[k];
        const level = Math.max(0, Math.min(255, Math.round(127.5 * (1 + value / D.limit))));
        rgb = [D.colors[3 * level], D.colors[3 * level + 1], D.colors[3 * level + 2]];
      }
      picture.data.set([...rgb, 255], at);
    }
  }
  pen.putImageData(picture, 0, 0);
  g.imageSmoothingEnabled = false;
  g.drawImage(cells, bar, 0, side, side);
  const size = side / C;
  D.order.forEach((c, k) => { g.fillStyle = shade[c]; g.fillRect(0, k * size, bar - 3, Math.ceil(size)); });
  focus().forEach((c, which) => {
    if (c < 0 || place[c] < 0) return;
    g.strokeStyle = "#000"; g.lineWidth = 3; g.strokeRect(bar, place[c] * size, side, size); g.strokeRect(bar + place[c] * size, 0, size, side);
    g.strokeStyle = which ? SECOND : FIRST; g.lineWidth = 1.5;
    g.strokeRect(bar, place[c] * size, side, size);
    g.strokeRect(bar + place[c] * size, 0, size, side);
  });
}

function cellAt(event) {
  const box = $("heat").getBoundingClientRect(), bar = Math.max(6, box.width * 0.03), side = box.width - bar;
  const column = Math.floor(((event.clientX - box.left - bar) / side) * C), row = Math.floor(((event.clientY - box.top) / side) * C);
  if (row < 0 || row >= C || column >= C) return [-1, -1];
  return [D.order[row], column < 0 ? -1 : D.order[column]];
}

// ---- map -------------------------------------------------------------------------------------

function points() {
  const now = run().maps[state.map];
  if (state.slide >= 1) return now;
  const before = D.runs[state.from].maps[state.map], t = state.slide * state.slide * (3 - 2 * state.slide);
  return now.map((value, k) => (1 - t) * before[k] + t * value);
}

const onMap = (x, y, w, h) => [w * (0.03 + 0.94 * x), h * (0.03 + 0.94 * y)];
const layer = document.createElement("canvas");
let layerKey = "";

// The points stand still while proxies move: they are drawn once and kept.
function pointLayer(w, h, ratio) {
  const key = [w, h, ratio, state.run, state.map, state.slide, tint("--paper")].join();
  if (key === layerKey) return;
  layerKey = key;
  layer.width = w * ratio; layer.height = h * ratio;
  const g = layer.getContext("2d"), all = points(), radius = Math.max(1.6, w / 240);
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.globalAlpha = 0.7; g.lineWidth = 1;
  for (let i = 0; i < N; i++) {
    const [x, y] = onMap(all[2 * i], all[2 * i + 1], w, h), c = D.labels[i];
    g.fillStyle = g.strokeStyle = shade[c];
    g.beginPath(); g.arc(x, y, radius, 0, 7);
    if (D.classes[c].proxy) g.fill(); else g.stroke();
  }
}

function drawMap() {
  const [g, w, h] = board("map"), ratio = window.devicePixelRatio || 1, all = points();
  pointLayer(w, h, ratio);
  g.drawImage(layer, 0, 0, w, h);
  const chosen = focus();
  chosen.forEach((c, which) => {
    if (c < 0) return;
    for (const i of members[c]) dot(g, onMap(all[2 * i], all[2 * i + 1], w, h), which ? SECOND : FIRST, w / 110);
  });
  if (state.image >= 0) dot(g, onMap(all[2 * state.image], all[2 * state.image + 1], w, h), "#fff", w / 70);
  D.order.forEach((c) => { if (!chosen.includes(c)) drawStar(g, star(run(), state.epoch, c), w, h, shade[c], w / 75); });
  chosen.forEach((c, which) => {
    if (c >= 0 && place[c] >= 0) drawStar(g, star(run(), state.epoch, c), w, h, which ? SECOND : FIRST, w / 38);
  });
}

function dot(g, [x, y], color, radius) {
  g.fillStyle = color; g.strokeStyle = tint("--ink"); g.lineWidth = 1.5;
  g.beginPath(); g.arc(x, y, radius, 0, 7); g.fill(); g.stroke();
}

function drawStar(g, [mx, my], w, h, color, radius) {
  const [x, y] = onMap(mx, my, w, h);
  g.fillStyle = color; g.strokeStyle = tint("--ink"); g.lineWidth = 1;
  g.beginPath();
  for (let k = 0; k < 10; k++) {
    const r = k % 2 ? radius * 0.45 : radius, a = (k * Math.PI) / 5 - Math.PI / 2;
    g.lineTo(x + r * Math.cos(a), y + r * Math.sin(a));
  }
  g.closePath(); g.fill(); g.stroke();
}

function pointAt(event) {
  const box = $("map").getBoundingClientRect(), all = points();
  const [px, py] = [event.clientX - box.left, event.clientY - box.top];
  let best = { image: -1, c: -1, distance: 18 };
  for (let i = 0; i < N; i++) {
    const [x, y] = onMap(all[2 * i], all[2 * i + 1], box.width, box.height), distance = Math.hypot(x - px, y - py);
    if (distance < best.distance) best = { image: i, c: D.labels[i], distance };
  }
  for (const c of D.order) {
    const [x, y] = onMap(...star(run(), state.epoch, c), box.width, box.height), distance = Math.hypot(x - px, y - py);
    if (distance < best.distance) best = { image: -1, c, distance };
  }
  return best;
}

// ---- angles ----------------------------------------------------------------------------------

// ln Γ by Stirling's series, after raising the argument: exact to 10 digits here.
function logGamma(z) {
  let shift = 0;
  for (; z < 9; z++) shift -= Math.log(z);
  return shift + (z - 0.5) * Math.log(z) - z + 0.5 * Math.log(2 * Math.PI) + 1 / (12 * z) - 1 / (360 * z ** 3);
}
const randomDensity = (degrees) => (Math.PI / 180) * Math.exp(logGamma(D.dim / 2) - logGamma((D.dim - 1) / 2)
  - 0.5 * Math.log(Math.PI) + (D.dim - 2) * Math.log(Math.max(1e-12, Math.sin((degrees * Math.PI) / 180))));
const STEP = 2, BINS = 180 / STEP;

function histogram(values) {
  const counts = new Float32Array(BINS);
  for (const value of values) counts[Math.min(BINS - 1, Math.floor((Math.acos(Math.max(-1, Math.min(1, value))) * 180) / Math.PI / STEP))] += 1;
  return counts.map((count) => count / (values.length * STEP));
}

function drawAngles() {
  const [g, w, h] = board("angles"), [low, high] = D.angles, bottom = h - 26;
  const x = (degrees) => 8 + ((w - 16) * (degrees - low)) / (high - low), y = (share) => bottom - (bottom - 8) * Math.min(1.05, share / D.tallest);
  g.beginPath(); g.moveTo(x(low), bottom);
  for (let d = low; d <= high; d += 0.5) g.lineTo(x(d), y(randomDensity(d)));
  g.lineTo(x(high), bottom); g.fillStyle = "#88888855"; g.fill();
  g.strokeStyle = tint("--quiet"); g.lineWidth = 1; g.setLineDash([4, 4]);
  for (const at of [90, D.welch]) if (at) { g.beginPath(); g.moveTo(x(at), 4); g.lineTo(x(at), bottom); g.stroke(); }
  D.runs.forEach((one, r) => {
    const heights = histogram(cosines(one, state.epoch));
    g.setLineDash(r ? [8, 4] : []); g.strokeStyle = one.color;
    g.lineWidth = one === run() ? 3.5 : 1.8; g.globalAlpha = one === run() ? 1 : 0.6;
    g.beginPath();
    for (let k = Math.floor(low / STEP); k * STEP < high; k++) {
      g.lineTo(x(k * STEP), y(heights[k])); g.lineTo(x((k + 1) * STEP), y(heights[k]));
    }
    g.stroke();
  });
  g.globalAlpha = 1; g.setLineDash([]);
  const [a, b] = focus(), values = cosines(run(), state.epoch);
  if (a >= 0 && place[a] >= 0) {
    for (const c of D.order) {
      if (c === a) continue;
      const degrees = (Math.acos(values[pairIndex(a, c)]) * 180) / Math.PI, strong = c === b;
      g.strokeStyle = strong ? SECOND : FIRST; g.lineWidth = strong ? 4 : 1.5;
      g.beginPath(); g.moveTo(x(degrees), bottom); g.lineTo(x(degrees), bottom - (strong ? 40 : 14)); g.stroke();
    }
  }
  g.fillStyle = tint("--ink"); g.font = "13px system-ui, sans-serif"; g.textAlign = "center";
  for (let d = Math.ceil(low / 15) * 15; d <= high; d += 15) g.fillText(`${d}°`, x(d), h - 8);
}

// ---- words and pictures ----------------------------------------------------------------------

function thumb(i, { right, similar } = {}) {
  const node = document.createElement("button");
  node.type = "button";
  node.className = `thumb ${right === undefined ? "" : right ? "right" : "wrong"}`;
  node.setAttribute("aria-label", `image of ${D.classes[D.labels[i]].name}${right === undefined ? "" : right ? ", right" : ", wrong"}`);
  const scale = similar ? 0.9 : 1, side = D.tile * scale;
  node.style.cssText = `width:${side}px;height:${side}px;background-size:${D.columns * side}px;`
    + `background-position:-${(i % D.columns) * side}px -${Math.floor(i / D.columns) * side}px`;
  if (right !== undefined) node.textContent = right ? "✓" : "✗";
  node.onclick = () => select(D.labels[i], -1, i);
  return node;
}

function say(tag, text, parent, className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = className;
  parent.append(node);
  return node;
}

function classRow(c, which, box) {
  const title = say("h3", D.classes[c].name, box);
  title.style.borderColor = which ? SECOND : FIRST;
  say("small", D.classes[c].proxy ? D.classes[c].group : "test class: never trained on, no proxy", box);
  const row = say("div", "", box, "row");
  for (const i of members[c]) row.append(thumb(i));
}

function confusionOf(one, i, j) { return one.confusion[i * A + j] / 10000; }

function pairWords(a, b, box) {
  for (const one of D.runs) {
    const known = place[a] >= 0 && place[b] >= 0;
    const cosine = known ? `cosine ${signed(cosines(one, state.epoch)[pairIndex(a, b)])}; ` : "";
    const line = say("p", `${one.name}: ${cosine}${percent(confusionOf(one, a, b))} of the nearest images of the first are of the second, ${percent(confusionOf(one, b, a))} the other way`, box);
    line.style.borderColor = one.color;
  }
}

function mistaken(c, box) {
  const one = run(), found = D.classes.map((_, j) => [j, confusionOf(one, c, j)]).filter(([j, v]) => j !== c && v > 0);
  found.sort((p, q) => q[1] - p[1]);
  if (!found.length) { say("p", `${one.name}: all its nearest images are its own`, box); return; }
  const line = say("p", `${one.name} mixes it up with `, box);
  for (const [j, share] of found.slice(0, 4)) {
    const link = say("button", `${D.classes[j].name} (${percent(share)})`, line, "link");
    link.onclick = () => select(c, j);
  }
}

function imageWords(i, box) {
  say("h3", "Nearest images of the one you chose", box);
  for (const one of D.runs) {
    const row = say("div", "", box, "row");
    const name = say("b", one.name, row); name.style.color = one.color;
    row.append(thumb(i));
    for (let k = 0; k < D.depth; k++) {
      const j = one.near[i * D.depth + k];
      row.append(thumb(j, { right: D.labels[j] === D.labels[i], similar: true }));
    }
  }
}

function drawPictures() {
  const box = $("pictures");
  box.replaceChildren();
  if (state.a < 0) { say("p", "Choose a class: click a cell, a point, or type its name.", box); return; }
  if (state.b >= 0) pairWords(state.a, state.b, box);
  else mistaken(state.a, box);
  if (state.image >= 0) imageWords(state.image, box);
  classRow(state.a, 0, box);
  if (state.b >= 0) classRow(state.b, 1, box);
}

function drawNumbers() {
  const e = Math.round(state.epoch), box = $("numbers");
  const columns = ["RMS cosine", "coherence", "common mode", "effective rank", "Recall@1"];
  const keys = ["rms_cosine", "coherence", "common_mode_share", "effective_rank", "recall"];
  const head = columns.map((title) => `<th scope="col">${title}</th>`).join("");
  const rows = D.runs.map((one) => {
    const at = one.numbers[Math.min(e, lastEpoch(one))];
    const cell = (key) => (at[key] == null ? "–" : key === "common_mode_share" ? percent(at[key]) : at[key].toFixed(key === "effective_rank" ? 1 : 3));
    return `<tr><th scope="row" style="color:${one.color}"></th>${keys.map((key) => `<td>${cell(key)}</td>`).join("")}</tr>`;
  });
  box.innerHTML = `<thead><tr><th></th>${head}</tr></thead><tbody>${rows.join("")}</tbody>`;
  box.querySelectorAll("tbody th").forEach((node, r) => { node.textContent = D.runs[r].name + (e > lastEpoch(D.runs[r]) ? ` (epoch ${D.runs[r].epochs[lastEpoch(D.runs[r])]})` : ""); });
}

// ---- one state, one draw ---------------------------------------------------------------------

let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    frames.count += 1;
    drawHeat(); drawMap(); drawAngles(); drawNumbers();
    const one = run(), e = Math.min(Math.round(state.epoch), lastEpoch(one));
    $("epoch").value = state.epoch;
    $("when").textContent = `epoch ${one.epochs[e]}${e === one.kept ? " (kept)" : ""}`;
    $("trust").textContent = `${state.map.toUpperCase()}: ${one.trust[state.map]}`;
  });
}

function tell(text) { $("status").textContent = text; }

function select(a, b = -1, image = -1) {
  Object.assign(state, { a, b: b === a ? -1 : b, image, over: [-1, -1] });
  drawPictures(); draw();
  if (a < 0) { tell("nothing chosen"); return; }
  const names = [a, state.b].filter((c) => c >= 0).map((c) => D.classes[c].name);
  const known = state.b >= 0 && place[a] >= 0 && place[state.b] >= 0;
  tell(names.join(" and ") + (known ? `: cosine ${signed(cosines(run(), state.epoch)[pairIndex(a, state.b)])} in ${run().name}` : ""));
}

function hover(over, event, image = -1) {
  const tip = $("tip");
  if (over.join() !== state.over.join()) { state.over = over; draw(); }
  tip.hidden = over[0] < 0;
  if (tip.hidden || !event) return;
  tip.replaceChildren();
  if (image >= 0) tip.append(thumb(image));
  const [a, b] = over, known = b >= 0 && a !== b;
  say("span", D.classes[a].name + (known ? ` and ${D.classes[b].name}: cosine ${signed(cosines(run(), state.epoch)[pairIndex(a, b)])}` : ""), tip);
  tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - 230)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - 90)}px`;
}

function chooseRun(index, difference = false) {
  Object.assign(state, { from: state.run, run: index, difference, slide: state.run === index ? 1 : 0 });
  [...$("runs").children].forEach((node, k) => node.setAttribute("aria-pressed", difference ? k === D.runs.length : k === index));
  drawPictures();
  const start = performance.now(), still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const move = () => {
    state.slide = still ? 1 : Math.min(1, (performance.now() - start) / 500);
    draw();
    if (state.slide < 1) requestAnimationFrame(move);
  };
  move();
}

function play(on) {
  state.playing = on;
  $("play").textContent = on ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", on ? "pause" : "play the epochs");
  let before = performance.now();
  const end = Math.max(...D.runs.map(lastEpoch));
  if (on && state.epoch >= end) state.epoch = 0;
  const tick = (now) => {
    if (!state.playing) return;
    state.epoch = Math.min(end, state.epoch + (now - before) / 700);
    before = now;
    draw();
    if (state.epoch >= end) play(false);
    else requestAnimationFrame(tick);
  };
  if (on) requestAnimationFrame(tick);
}

function search(text) {
  const wanted = text.trim().toLowerCase();
  const found = D.classes.findIndex((c) => c.name.toLowerCase() === wanted);
  const near = found >= 0 ? found : D.classes.findIndex((c) => wanted && c.name.toLowerCase().includes(wanted));
  if (near >= 0) select(near); else tell(wanted ? `no class is called ${text}` : "");
}

function heatKey(event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const row = Math.max(0, place[state.a]), column = state.b >= 0 ? place[state.b] : row;
  const clip = (k) => Math.max(0, Math.min(C - 1, k));
  let to = [clip(row + step[0]), clip(column + step[1])];
  if (to[0] === to[1]) to = [clip(to[0] + step[0]), clip(to[1] + step[1])]; // over the diagonal
  if (to[0] !== to[1]) select(D.order[to[0]], D.order[to[1]]);
}

function mapKey(event) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  select((Math.max(state.a, by > 0 ? -1 : 0) + by + A) % A);
}

function start() {
  document.title = $("title").textContent = D.title;
  $("note").textContent = D.note;
  const switches = [...D.runs.map((one, k) => [one.name, () => chooseRun(k), one.color])];
  if (D.runs.length === 2) switches.push([`${D.runs[1].name} − ${D.runs[0].name}`, () => chooseRun(1, true), "#888"]);
  for (const [name, action, color] of switches) {
    const node = say("button", name, $("runs"));
    node.type = "button"; node.onclick = action; node.style.borderColor = color;
  }
  for (const kind of Object.keys(D.runs[0].maps)) {
    const node = say("button", kind.toUpperCase(), $("kinds"));
    node.type = "button"; node.name = kind;
    node.onclick = () => { state.map = kind; markKinds(); draw(); };
  }
  $("kinds").hidden = $("kinds").children.length < 2;
  for (const one of D.classes) {
    const node = document.createElement("option");
    node.value = one.name;
    $("names").append(node);
  }
  $("sprite").textContent = `.thumb { background-image: url(${D.sprite}); }`;
  $("epoch").max = Math.max(...D.runs.map(lastEpoch));
  $("epoch").oninput = () => { play(false); state.epoch = Number($("epoch").value); draw(); drawPictures(); };
  $("play").onclick = () => play(!state.playing);
  $("search").onchange = $("search").onsearch = () => search($("search").value);
  const heat = $("heat"), map = $("map");
  heat.onpointermove = (event) => hover(cellAt(event), event);
  heat.onpointerleave = map.onpointerleave = () => hover([-1, -1]);
  heat.onclick = (event) => { const [a, b] = cellAt(event); if (a >= 0) select(a, b); };
  map.onpointermove = (event) => { const at = pointAt(event); hover([at.c, -1], event, at.image); };
  map.onclick = (event) => { const at = pointAt(event); select(at.c, -1, at.image); };
  heat.onkeydown = heatKey; map.onkeydown = mapKey;
  document.onkeydown = (event) => {
    if (event.key === "Escape") select(-1);
    else if (event.key === "/" && document.activeElement !== $("search")) { event.preventDefault(); $("search").focus(); }
    else if (event.key === " " && ["BODY", "CANVAS"].includes(document.activeElement.tagName)) { event.preventDefault(); play(!state.playing); }
  };
  $("light").onclick = () => {
    const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    draw();
  };
  new ResizeObserver(draw).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  $("scale").style.background = `linear-gradient(90deg, ${[0, 32, 64, 96, 127, 160, 192, 224, 255].map((k) => `rgb(${D.colors.slice(3 * k, 3 * k + 3).join()})`).join()})`;
  $("least").textContent = `−${D.limit}`; $("most").textContent = `+${D.limit}`;
  markKinds(); chooseRun(state.run); select(-1);
}

function markKinds() {
  for (const node of $("kinds").children) node.setAttribute("aria-pressed", node.name === state.map);
}

window.explorer = { state, data: D, frames, select, chooseRun, play, cosines, histogram, randomDensity, pairIndex };
start();
