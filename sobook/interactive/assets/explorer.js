// The explorer: heatmap, map, angles and pictures of one or two runs, linked.
//
// Everything it shows is in `DATA` (made by sobook/interactive/explorer.py). One state, one `draw`:
// whatever is hovered, selected or scrubbed changes the state, and every view redraws from it in
// the next frame. Notation: C classes with proxies, A all classes, N images, E epochs.

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const unpack = (Type, text) => new Type(bytes(text).buffer);
const mapValues = (object, change) =>
  Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value)]));
const floats = (text) => unpack(Float32Array, text);

const labels = unpack(Uint16Array, DATA.labels), heatColors = unpack(Uint32Array, DATA.colors);
const C = DATA.order.length, A = DATA.classes.length, N = labels.length, PAIRS = (C * (C - 1)) / 2;
const runs = DATA.runs.map((one) => ({
  ...one,
  cosines: unpack(Int16Array, one.cosines), // (E, PAIRS), in 1/32767
  confusion: unpack(Uint16Array, one.confusion), // (A, A), in 1/10000
  near: unpack(Uint16Array, one.near), // (N, depth)
  maps: mapValues(one.maps, floats), // kind → (N, 2)
  stars: mapValues(one.stars, floats), // kind → (E, C, 2)
  lastEpoch: one.epochs.length - 1,
}));
const members = DATA.classes.map((_, c) => [...labels.keys()].filter((i) => labels[i] === c));
const rank = DATA.classes.map((_, c) => DATA.order.indexOf(c)); // in the heatmap; −1: no proxy
const groups = [...new Set(DATA.classes.map(({ group }) => group))];
const groupColor = (group) => PALETTE[groups.indexOf(group) % PALETTE.length];
const colors = DATA.classes.map(({ group }) => (groups.length > 1 ? groupColor(group) : "#888888"));
const CHOSEN = ["#E69F00", "#56B4E9"]; // the two classes of a cell, wherever they are drawn

const state = {
  run: runs.length - 1, difference: false, // what the heatmap and the map show
  from: 0, slide: 1, // points move from the map of run `from` while `slide` grows from 0 to 1
  map: Object.keys(runs[0].maps)[0], epoch: runs[runs.length - 1].kept, playing: false,
  a: -1, b: -1, image: -1, over: [-1, -1], // classes and image chosen, classes under the pointer
};
const frames = { count: 0 };

const run = () => runs[state.run];
const focus = () => (state.over[0] >= 0 ? state.over : [state.a, state.b]);
const signed = (value) => value.toFixed(2).replace("-", "−");
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const degrees = (cosine) => (Math.acos(clamp(cosine, -1, 1)) * 180) / Math.PI;

// ---- numbers at an epoch, in between by interpolation -----------------------------------------

function pairIndex(i, j) {
  const low = Math.min(i, j), high = Math.max(i, j);
  return (low * (2 * C - low - 1)) / 2 + high - low - 1;
}

function between(one, epoch) {
  const e = Math.min(epoch, one.lastEpoch), low = Math.floor(e);
  return [low, Math.min(low + 1, one.lastEpoch), e - low];
}

// All C(C−1)/2 cosines of a run at an epoch; kept until another epoch is asked for.
const kept = new Map(runs.map((one) => [one, { epoch: -1, values: new Float32Array(PAIRS) }]));
function cosines(one, epoch) {
  const [low, high, t] = between(one, epoch), memory = kept.get(one);
  if (memory.epoch !== low + t) {
    const a = one.cosines.subarray(low * PAIRS), b = one.cosines.subarray(high * PAIRS);
    for (let k = 0; k < PAIRS; k++) memory.values[k] = ((1 - t) * a[k] + t * b[k]) / 32767;
    memory.epoch = low + t;
  }
  return memory.values;
}

const cosine = (one, a, b) => cosines(one, state.epoch)[pairIndex(a, b)];
const haveCosine = (a, b) => a !== b && rank[a] >= 0 && rank[b] >= 0; // false where b is −1
const confusion = (one, a, b) => one.confusion[a * A + b] / 10000;

// ---- heatmap ---------------------------------------------------------------------------------

const cells = element("canvas", { width: Math.max(C, 1), height: Math.max(C, 1) });
const barWidth = (width) => Math.max(6, width * 0.03); // the groups' colors, left of the cells

function drawHeat() {
  const [g, w] = context($("heat")), bar = barWidth(w), side = w - bar, size = side / C;
  const values = cosines(run(), state.epoch);
  const first = state.difference ? cosines(runs[0], state.epoch) : null;
  const pen = cells.getContext("2d"), picture = pen.createImageData(C, C);
  const pixels = new Uint32Array(picture.data.buffer).fill(0xff969696); // gray, the diagonal
  for (let r = 0; r < C; r++) {
    for (let c = 0; c < C; c++) {
      if (r === c) continue;
      const k = pairIndex(DATA.order[r], DATA.order[c]), value = values[k] - (first ? first[k] : 0);
      const level = clamp(Math.round(127.5 * (1 + value / DATA.limit)), 0, 255);
      pixels[r * C + c] = heatColors[level];
    }
  }
  pen.putImageData(picture, 0, 0);
  g.imageSmoothingEnabled = false;
  g.drawImage(cells, bar, 0, side, side);
  DATA.order.forEach((c, k) => {
    g.fillStyle = colors[c];
    g.fillRect(0, k * size, bar - 3, Math.ceil(size));
  });
  focus().forEach((c, which) => {
    if (!(rank[c] >= 0)) return;
    for (const [color, width] of [["#000", 3], [CHOSEN[which], 1.5]]) {
      g.strokeStyle = color;
      g.lineWidth = width;
      g.strokeRect(bar, rank[c] * size, side, size);
      g.strokeRect(bar + rank[c] * size, 0, size, side);
    }
  });
}

function cellAt(event) {
  const box = $("heat").getBoundingClientRect(), bar = barWidth(box.width), side = box.width - bar;
  const column = Math.floor(((event.clientX - box.left - bar) / side) * C);
  const row = Math.floor(((event.clientY - box.top) / side) * C);
  if (row < 0 || row >= C || column >= C) return [-1, -1];
  return [DATA.order[row], column < 0 ? -1 : DATA.order[column]];
}

// ---- map -------------------------------------------------------------------------------------

const onMap = (x, y, w, h) => [w * (0.03 + 0.94 * x), h * (0.03 + 0.94 * y)];

function point(i, w, h) {
  const mix = (before, now) => {
    const t = state.slide * state.slide * (3 - 2 * state.slide);
    return (1 - t) * before + t * now;
  };
  const now = run().maps[state.map], before = runs[state.from].maps[state.map];
  const [x, y] = [2 * i, 2 * i + 1].map((k) => mix(before[k], now[k]));
  return onMap(x, y, w, h);
}

function star(c, w, h) {
  const [low, high, t] = between(run(), state.epoch), places = run().stars[state.map];
  const at = (epoch, k) => places[2 * (epoch * C + c) + k];
  return onMap(...[0, 1].map((k) => (1 - t) * at(low, k) + t * at(high, k)), w, h);
}

// The points stand still while proxies move: they are drawn once and kept.
const layer = document.createElement("canvas");
let layerKey = "";

function drawPointLayer(w, h, ratio) {
  const key = [w, h, ratio, state.run, state.map, state.slide, cssColor("--paper")].join();
  if (key === layerKey) return;
  layerKey = key;
  layer.width = w * ratio;
  layer.height = h * ratio;
  const g = layer.getContext("2d"), radius = Math.max(1.6, w / 240);
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.globalAlpha = 0.7;
  for (let i = 0; i < N; i++) {
    g.fillStyle = g.strokeStyle = colors[labels[i]];
    circle(g, point(i, w, h), radius);
    if (DATA.classes[labels[i]].proxy) g.fill();
    else g.stroke();
  }
}

function drawMap() {
  const [g, w, h] = context($("map")), chosen = focus();
  drawPointLayer(w, h, window.devicePixelRatio || 1);
  g.drawImage(layer, 0, 0, w, h);
  g.strokeStyle = cssColor("--ink");
  g.lineWidth = 1.5;
  const dot = (i, color, radius) => {
    g.fillStyle = color;
    circle(g, point(i, w, h), radius);
    g.fill();
    g.stroke();
  };
  chosen.forEach((c, which) => {
    for (const i of members[c] ?? []) dot(i, CHOSEN[which], w / 110);
  });
  if (state.image >= 0) dot(state.image, "#fff", w / 70);
  g.lineWidth = 1;
  for (const c of DATA.order) {
    if (!chosen.includes(c)) drawStar(g, star(c, w, h), colors[c], w / 75);
  }
  chosen.forEach((c, which) => {
    if (rank[c] >= 0) drawStar(g, star(c, w, h), CHOSEN[which], w / 38);
  });
}

function drawStar(g, [x, y], color, radius) {
  g.fillStyle = color;
  g.beginPath();
  for (let k = 0; k < 10; k++) {
    const r = k % 2 ? radius * 0.45 : radius, angle = (k * Math.PI) / 5 - Math.PI / 2;
    g.lineTo(x + r * Math.cos(angle), y + r * Math.sin(angle));
  }
  g.closePath();
  g.fill();
  g.stroke();
}

// The image or proxy nearest to the pointer, within 18 pixels.
function pointAt(event) {
  const box = $("map").getBoundingClientRect();
  let best = { image: -1, c: -1, distance: 18 };
  const consider = ([x, y], image, c) => {
    const distance = Math.hypot(x - (event.clientX - box.left), y - (event.clientY - box.top));
    if (distance < best.distance) best = { image, c, distance };
  };
  for (let i = 0; i < N; i++) consider(point(i, box.width, box.height), i, labels[i]);
  for (const c of DATA.order) consider(star(c, box.width, box.height), -1, c);
  return best;
}

// ---- angles ----------------------------------------------------------------------------------

const STEP = 2, BINS = 180 / STEP; // degrees, and how many such bins there are

// Fraction of the pairs per degree.
function histogram(values) {
  const counts = new Float32Array(BINS);
  for (const value of values) counts[Math.min(BINS - 1, Math.floor(degrees(value) / STEP))] += 1;
  return counts.map((count) => count / (values.length * STEP));
}

function drawAngles() {
  const [g, w, h] = context($("angles")), [low, high] = DATA.angles, bottom = h - 26;
  const x = (angle) => 8 + ((w - 16) * (angle - low)) / (high - low);
  const y = (density) => bottom - (bottom - 8) * Math.min(1.05, density / DATA.tallest);
  g.beginPath();
  g.moveTo(x(low), bottom);
  for (let angle = low; angle <= high; angle += 0.5) g.lineTo(x(angle), y(DATA.chance[2 * angle]));
  g.lineTo(x(high), bottom);
  g.fillStyle = "#88888855";
  g.fill();
  g.strokeStyle = cssColor("--quiet");
  g.setLineDash([4, 4]);
  for (const angle of [90, DATA.welch]) if (angle) line(g, [x(angle), 4], [x(angle), bottom]);
  runs.forEach((one, r) => {
    const heights = histogram(cosines(one, state.epoch)), shown = one === run();
    g.setLineDash(r ? [8, 4] : []);
    g.strokeStyle = one.color;
    g.lineWidth = shown ? 3.5 : 1.8;
    g.globalAlpha = shown ? 1 : 0.6;
    g.beginPath();
    for (let k = Math.floor(low / STEP); k * STEP < high; k++) {
      g.lineTo(x(k * STEP), y(heights[k]));
      g.lineTo(x((k + 1) * STEP), y(heights[k]));
    }
    g.stroke();
  });
  g.globalAlpha = 1;
  g.setLineDash([]);
  const [a, b] = focus();
  for (const c of DATA.order.filter((other) => haveCosine(a, other))) {
    const at = x(degrees(cosine(run(), a, c))), which = c === b ? 1 : 0;
    g.strokeStyle = CHOSEN[which];
    g.lineWidth = [1.5, 4][which];
    line(g, [at, bottom], [at, bottom - [14, 40][which]]);
  }
  g.fillStyle = cssColor("--ink");
  g.font = "13px system-ui, sans-serif";
  g.textAlign = "center";
  for (let d = Math.ceil(low / 15) * 15; d <= high; d += 15) g.fillText(`${d}°`, x(d), h - 8);
}

// ---- words and pictures ----------------------------------------------------------------------

const className = (c) => DATA.classes[c].name;
const bordered = (color, ...content) =>
  element("p", { style: `border-color:${color}` }, ...content);

// The thumbnail of an image; `relevant` frames and marks it as an answer to a query.
function thumb(i, relevant) {
  const side = relevant === undefined ? DATA.tile : 0.9 * DATA.tile;
  const [name, mark] = relevant ? ["relevant", "✓"] : ["irrelevant", "✗"];
  const text = relevant === undefined ? "" : mark;
  const node = button(text, () => select(labels[i], -1, i), {
    class: text ? `thumb ${name}` : "thumb",
    "aria-label": `image of ${className(labels[i])}${text && `, ${name}`}`,
  });
  node.style.cssText = `width:${side}px;height:${side}px;background-size:${DATA.columns * side}px;`
    + `background-position:-${(i % DATA.columns) * side}px -${Math.floor(i / DATA.columns) * side}px`;
  return node;
}

function classRow(c, which) {
  const { name, group, proxy } = DATA.classes[c];
  return [
    element("h3", { style: `border-color:${CHOSEN[which]}` }, name),
    element("small", {}, proxy ? group : "test class: never trained on, no proxy"),
    element("div", { class: "row" }, ...members[c].map((i) => thumb(i))),
  ];
}

function pairText(a, b) {
  return runs.map((one) => {
    const known = haveCosine(a, b) ? `cosine ${signed(cosine(one, a, b))}; ` : "";
    const [there, back] = [percent(confusion(one, a, b)), percent(confusion(one, b, a))];
    return bordered(one.color, `${one.name}: ${known}${there} of the nearest images of the first `
      + `are of the second, ${back} the other way`);
  });
}

function confusedWith(c) {
  const one = run(), others = [...Array(A).keys()].filter((j) => j !== c && confusion(one, c, j));
  others.sort((i, j) => confusion(one, c, j) - confusion(one, c, i));
  if (!others.length) return element("p", {}, `${one.name}: all its nearest images are its own`);
  const links = others.slice(0, 4).map((j) => button(
    `${className(j)} (${percent(confusion(one, c, j))})`, () => select(c, j), { class: "link" }));
  return element("p", {}, `${one.name} mixes it up with `, ...links);
}

function nearestImages(i) {
  const rows = runs.map((one) => {
    const nearest = [...one.near.subarray(i * DATA.depth, (i + 1) * DATA.depth)];
    const name = element("b", { style: `color:${one.color}` }, one.name);
    const found = nearest.map((j) => thumb(j, labels[j] === labels[i]));
    return element("div", { class: "row" }, name, thumb(i), ...found);
  });
  return [element("h3", {}, "Nearest images of the one you chose"), ...rows];
}

function drawPictures() {
  const { a, b, image } = state, content = [];
  if (a < 0) content.push("Choose a class: click a cell, a point, or type its name.");
  else {
    if (b >= 0) content.push(...pairText(a, b));
    else content.push(confusedWith(a));
    if (image >= 0) content.push(...nearestImages(image));
    content.push(...classRow(a, 0));
    if (b >= 0) content.push(...classRow(b, 1));
  }
  $("pictures").replaceChildren(...content);
}

const NUMBERS = [
  ["RMS cosine", (n) => n.rms_cosine.toFixed(3)],
  ["coherence", (n) => n.coherence.toFixed(3)],
  ["common mode", (n) => percent(n.common_mode_share)],
  ["effective rank", (n) => n.effective_rank.toFixed(1)],
  ["Recall@1", (n) => n.recall?.toFixed(3) ?? "–"],
];

function drawNumbers() {
  const head = NUMBERS.map(([title]) => element("th", { scope: "col" }, title));
  const rows = runs.map((one) => {
    const wanted = Math.round(state.epoch), epoch = Math.min(wanted, one.lastEpoch);
    const name = one.name + (wanted > epoch ? ` (epoch ${one.epochs[epoch]})` : "");
    const title = element("th", { scope: "row", style: `color:${one.color}` }, name);
    const values = NUMBERS.map(([, text]) => element("td", {}, text(one.numbers[epoch])));
    return element("tr", {}, title, ...values);
  });
  const header = element("thead", {}, element("tr", {}, element("th"), ...head));
  $("numbers").replaceChildren(header, element("tbody", {}, ...rows));
}

// ---- one state, one draw ---------------------------------------------------------------------

let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    frames.count += 1;
    drawHeat();
    drawMap();
    drawAngles();
    drawNumbers();
    const one = run(), epoch = Math.min(Math.round(state.epoch), one.lastEpoch);
    $("epoch").value = state.epoch;
    $("when").textContent = `epoch ${one.epochs[epoch]}${epoch === one.kept ? " (kept)" : ""}`;
    $("trust").textContent = `${state.map.toUpperCase()}: ${one.trust[state.map]}`;
  });
}

function announce(text) {
  $("status").textContent = text;
}

function nameClasses(a, b) {
  if (b < 0 || a === b) return className(a);
  const known = haveCosine(a, b) ? `: cosine ${signed(cosine(run(), a, b))} in ${run().name}` : "";
  return `${className(a)} and ${className(b)}${known}`;
}

function select(a, b = -1, image = -1) {
  Object.assign(state, { a, b: b === a ? -1 : b, image, over: [-1, -1] });
  drawPictures();
  draw();
  announce(a < 0 ? "nothing chosen" : nameClasses(a, state.b));
}

function hover(over, event, image = -1) {
  const tip = $("tip");
  if (over.join() !== state.over.join()) {
    state.over = over;
    draw();
  }
  tip.hidden = over[0] < 0;
  if (tip.hidden) return;
  tip.replaceChildren(...(image >= 0 ? [thumb(image)] : []), nameClasses(...over));
  tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - 230)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - 90)}px`;
}

function press(buttons, isPressed) {
  [...buttons].forEach((node, k) => node.setAttribute("aria-pressed", isPressed(k)));
}

function chooseRun(index, difference = false) {
  Object.assign(state, { from: state.run, run: index, difference, slide: 0 });
  press($("runs").children, (k) => k === (difference ? runs.length : index));
  drawPictures();
  const start = performance.now(), still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const duration = still || state.from === index ? 1 : 500; // milliseconds
  const move = () => {
    state.slide = Math.min(1, (performance.now() - start) / duration);
    draw();
    if (state.slide < 1) requestAnimationFrame(move);
  };
  move();
}

function chooseMap(kind) {
  state.map = kind;
  press($("kinds").children, (k) => Object.keys(runs[0].maps)[k] === kind);
  draw();
}

function play(on) {
  const end = Math.max(...runs.map((one) => one.lastEpoch));
  let before = performance.now();
  state.playing = on;
  $("play").textContent = on ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", on ? "pause" : "play the epochs");
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

function scrub() {
  play(false);
  state.epoch = Number($("epoch").value);
  drawPictures();
  draw();
}

function search() {
  const wanted = $("search").value.trim().toLowerCase();
  if (!wanted) return;
  const names = DATA.classes.map(({ name }) => name.toLowerCase()), exact = names.indexOf(wanted);
  const c = exact >= 0 ? exact : names.findIndex((name) => name.includes(wanted));
  if (c >= 0) select(c);
  else announce(`no class is called ${$("search").value}`);
}

function heatKey(event) {
  const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const step = arrows[event.key];
  if (!step) return;
  event.preventDefault();
  const move = (cell) => cell.map((k, axis) => clamp(k + step[axis], 0, C - 1));
  const row = Math.max(0, rank[state.a] ?? 0), column = state.b >= 0 ? rank[state.b] : row;
  let to = move([row, column]);
  if (to[0] === to[1]) to = move(to); // over the diagonal
  if (to[0] !== to[1]) select(DATA.order[to[0]], DATA.order[to[1]]);
}

function mapKey(event) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  select((Math.max(state.a, by > 0 ? -1 : 0) + by + A) % A);
}

function pageKey(event) {
  const focused = document.activeElement;
  if (event.key === "Escape") {
    select(-1);
  } else if (event.key === "/" && focused !== $("search")) {
    event.preventDefault();
    $("search").focus();
  } else if (event.key === " " && ["BODY", "CANVAS"].includes(focused.tagName)) {
    event.preventDefault();
    play(!state.playing);
  }
}

function switchLight() {
  const { dataset } = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = (dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  draw();
}

function fillPage() {
  $("note").textContent = DATA.note;
  const runButton = (text, color, ...choice) =>
    button(text, () => chooseRun(...choice), { style: `border-color:${color}` });
  $("runs").append(...runs.map((one, k) => runButton(one.name, one.color, k)));
  if (runs.length === 2) {
    $("runs").append(runButton(`${runs[1].name} − ${runs[0].name}`, "#888", 1, true));
  }
  const kinds = Object.keys(runs[0].maps);
  $("kinds").append(...kinds.map((kind) => button(kind.toUpperCase(), () => chooseMap(kind))));
  $("kinds").hidden = kinds.length < 2;
  $("names").append(...DATA.classes.map(({ name }) => element("option", { value: name })));
  $("sprite").textContent = `.thumb { background-image: url(${DATA.sprite}); }`;
  $("epoch").max = Math.max(...runs.map((one) => one.lastEpoch));
  $("scale").style.background = `linear-gradient(90deg, ${DATA.gradient.join()})`;
  $("least").textContent = `−${DATA.limit}`;
  $("most").textContent = `+${DATA.limit}`;
}

function listen() {
  const heat = $("heat"), map = $("map");
  heat.onpointermove = (event) => hover(cellAt(event), event);
  map.onpointermove = (event) => {
    const { c, image } = pointAt(event);
    hover([c, -1], event, image);
  };
  heat.onpointerleave = map.onpointerleave = () => hover([-1, -1]);
  heat.onclick = (event) => {
    const [a, b] = cellAt(event);
    if (a >= 0) select(a, b);
  };
  map.onclick = (event) => {
    const { c, image } = pointAt(event);
    select(c, -1, image);
  };
  heat.onkeydown = heatKey;
  map.onkeydown = mapKey;
  document.onkeydown = pageKey;
  $("epoch").oninput = scrub;
  $("play").onclick = () => play(!state.playing);
  $("search").onchange = $("search").onsearch = search;
  $("light").onclick = switchLight;
  new ResizeObserver(draw).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

fillPage();
listen();
chooseMap(state.map);
chooseRun(state.run);
select(-1);
window.explorer = { state, runs, data: DATA, frames, select, play, cosines, histogram };
