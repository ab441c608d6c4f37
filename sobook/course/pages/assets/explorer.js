// The explorer: heatmap, map, angles and pictures of runs, linked.
//
// Everything it shows is in `DATA` (made by sobook/course/pages/explorer.py). One state, one `draw`:
// whatever is hovered, selected or scrubbed changes the state, and every view redraws from it in
// the next frame. Notation: A classes; the first C have proxies and stand so in the heatmap.

const { classes, labels, runs } = DATA;
const A = classes.length;
const trained = [...classes.keys()].filter((c) => classes[c].proxy);
const C = trained.length;
const END = Math.max(...runs.map((model) => model.epochs.length)) - 1;
const KINDS = Object.keys(runs[0].maps);
const members = classes.map((_, c) => [...labels.keys()].filter((i) => labels[i] === c));
const groups = [...new Set(classes.map(({ group }) => group))].sort();
const groupColor = (group) => PALETTE[groups.indexOf(group) % PALETTE.length];
const colors = classes.map(({ group }) => (groups.length > 1 ? groupColor(group) : "#888888"));
const CHOSEN = ["#E69F00", "#56B4E9"]; // the two classes of a cell, wherever they are drawn

const state = {
  run: runs.length - 1,
  kind: 0, // of map
  epoch: runs.at(-1).kept,
  playing: false,
  a: -1, // class and, for a pair, second class chosen
  b: -1,
  image: -1,
  over: [-1, -1], // classes under the pointer
};

const run = () => runs[state.run];
const focus = () => (state.over[0] >= 0 ? state.over : [state.a, state.b]);
const hasProxy = (c) => c >= 0 && c < C;
const nearestEpoch = (model) => Math.min(Math.round(state.epoch), model.epochs.length - 1);

// ---- numbers at the epoch shown, in between by interpolation ----------------------------------

function interpolated(model, valueAt) {
  const epoch = Math.min(state.epoch, model.epochs.length - 1);
  const t = epoch % 1;
  return (1 - t) * valueAt(Math.floor(epoch)) + t * valueAt(Math.ceil(epoch));
}

// Of all pairs i < j: (0, 1), (0, 2) … (1, 2) …
const cosines = (model) =>
  model.cosines[0].map((_, k) => interpolated(model, (e) => model.cosines[e][k]));

// undefined where one of the two has no proxy
function cosine(model, a, b) {
  if (a === b || !hasProxy(a) || !hasProxy(b)) return undefined;
  const i = Math.min(a, b);
  const k = (i * (2 * C - i - 1)) / 2 + Math.abs(a - b) - 1;
  return interpolated(model, (e) => model.cosines[e][k]);
}

// ---- heatmap ---------------------------------------------------------------------------------

const barWidth = (width) => Math.max(6, width * 0.03); // the groups' colors, left of the cells

function drawHeat() {
  const [g, w] = context($("heat"));
  const bar = barWidth(w);
  const side = w - bar;
  const size = side / C;
  const matrix = new Float32Array(C * C);
  const values = cosines(run());
  for (let i = 0, k = 0; i < C; i++) {
    for (let j = i + 1; j < C; j++, k++) matrix[i * C + j] = matrix[j * C + i] = values[k];
  }
  drawCosines(g, matrix, C, DATA.limit, bar, side);
  for (const c of trained) {
    g.fillStyle = colors[c];
    g.fillRect(0, c * size, bar - 3, Math.ceil(size));
  }
  focus().forEach((c, which) => {
    if (!hasProxy(c)) return;
    for (const width of [3, 1.5]) {
      g.strokeStyle = width === 3 ? "#000" : CHOSEN[which];
      g.lineWidth = width;
      g.strokeRect(bar, c * size, side, size);
      g.strokeRect(bar + c * size, 0, size, side);
    }
  });
}

function cellAt(event) {
  const width = $("heat").clientWidth;
  const bar = barWidth(width);
  const [x, y] = pointer(event, $("heat"));
  const cell = [y, x - bar].map((at) => Math.floor((at * C) / (width - bar)));
  return cell.every(hasProxy) ? cell : [-1, -1];
}

// ---- map -------------------------------------------------------------------------------------

let mapSide = 0; // pixels
const onMap = (x, y) => [x, y].map((value) => mapSide * (0.03 + 0.94 * value));
const point = (i) => onMap(...run().maps[KINDS[state.kind]][i]);

function star(c) {
  const places = run().stars[KINDS[state.kind]];
  return onMap(...[0, 1].map((axis) => interpolated(run(), (e) => places[e][c][axis])));
}

function drawMap() {
  const [g, w] = context($("map"));
  const chosen = focus();
  mapSide = w;
  const dot = (i, color, radius) => {
    disc(g, point(i), radius, color);
    g.stroke();
  };
  g.globalAlpha = 0.7;
  labels.forEach((c, i) => {
    g.fillStyle = g.strokeStyle = colors[c];
    circle(g, point(i), Math.max(1.6, w / 240));
    if (classes[c].proxy) g.fill();
    else g.stroke();
  });
  g.globalAlpha = 1;
  g.strokeStyle = cssColor("--ink");
  g.lineWidth = 1.5;
  chosen.forEach((c, which) => members[c]?.forEach((i) => dot(i, CHOSEN[which], w / 110)));
  if (state.image >= 0) dot(state.image, "#fff", w / 70);
  g.lineWidth = 1;
  for (const c of trained) if (!chosen.includes(c)) drawStar(g, star(c), colors[c], w / 75);
  chosen.forEach((c, which) => {
    if (hasProxy(c)) drawStar(g, star(c), CHOSEN[which], w / 38);
  });
}

function drawStar(g, [x, y], color, radius) {
  const corners = Array.from({ length: 10 }, (_, k) => {
    const [r, angle] = [radius * (k % 2 ? 0.45 : 1), (k * Math.PI) / 5 - Math.PI / 2];
    return [x + r * Math.cos(angle), y + r * Math.sin(angle)];
  });
  g.fillStyle = color;
  path(g, corners);
  g.closePath();
  g.fill();
  g.stroke();
}

// The image or proxy nearest to the pointer, within 18 pixels.
function pointAt(event) {
  const [x, y] = pointer(event, $("map"));
  let best = { image: -1, c: -1, distance: 18 };
  const consider = (place, image, c) => {
    const distance = Math.hypot(place[0] - x, place[1] - y);
    if (distance < best.distance) best = { image, c, distance };
  };
  labels.forEach((c, i) => consider(point(i), i, c));
  for (const c of trained) consider(star(c), -1, c);
  return best;
}

// ---- angles ----------------------------------------------------------------------------------

const STEP = 2; // degrees of a bin
const histogram = (values) => numerics.angleHistogram(values, STEP);
const density = (angle) => numerics.randomAngleDensity(clamp(angle, 1, 179), DATA.dim);
const WELCH = Math.sqrt(Math.max(0, C - DATA.dim) / (DATA.dim * (C - 1)));
const everyEpoch = runs.flatMap((model) => model.cosines.map(histogram));
const TALLEST = 1.05 * Math.max(density(90), ...everyEpoch.flatMap((heights) => [...heights]));
const binsUsed = [...everyEpoch[0].keys()].filter(
  (k) => density((k + 0.5) * STEP) > 5e-4 || everyEpoch.some((heights) => heights[k] > 0),
);
const [LEAST, MOST] = [binsUsed[0] * STEP, (binsUsed.at(-1) + 1) * STEP];

function drawAngles() {
  const [g, w, h] = context($("angles"));
  const bottom = h - 26;
  const x = (angle) => 8 + ((w - 16) * (angle - LEAST)) / (MOST - LEAST);
  const y = (value) => bottom - (bottom - 8) * (value / TALLEST);
  g.font = "13px system-ui, sans-serif";
  drawChance(g, { x, y, low: LEAST, high: MOST, bottom, density, step: 15 });
  g.strokeStyle = cssColor("--quiet");
  g.setLineDash([4, 4]);
  for (const at of [0, WELCH].map(numerics.degrees).map(x)) line(g, [at, 4], [at, bottom]);
  runs.forEach((model, r) => {
    const shown = model === run();
    g.setLineDash(r ? [8, 4] : []);
    g.strokeStyle = model.color;
    g.lineWidth = shown ? 3.5 : 1.8;
    g.globalAlpha = shown ? 1 : 0.6;
    const stairs = [...histogram(cosines(model))].flatMap((height, k) => [
      [x(k * STEP), y(height)],
      [x((k + 1) * STEP), y(height)],
    ]);
    line(g, ...stairs.slice(LEAST, MOST)); // two points per bin of two degrees
  });
  g.globalAlpha = 1;
  g.setLineDash([]);
  const [a, b] = focus();
  for (const c of trained) {
    const value = cosine(run(), a, c);
    if (value === undefined) continue;
    const at = x(numerics.degrees(value));
    g.strokeStyle = CHOSEN[c === b ? 1 : 0];
    g.lineWidth = c === b ? 4 : 1.5;
    line(g, [at, bottom], [at, bottom - (c === b ? 40 : 14)]);
  }
}

// ---- words and pictures ----------------------------------------------------------------------

// The thumbnail of an image; as an answer to a query it is framed and marked by its verdict.
function thumb(i, verdict = "") {
  const side = verdict ? 0.9 * DATA.tile : DATA.tile;
  const corner = [i % DATA.columns, Math.floor(i / DATA.columns)].map((k) => `${-k * side}px`);
  const mark = { relevant: "✓", irrelevant: "✗" }[verdict] ?? "";
  return button(mark, () => select(labels[i], -1, i), {
    class: `thumb ${verdict}`,
    "aria-label": `${verdict} image of ${classes[labels[i]].name}`,
    style: `width:${side}px;height:${side}px;background-size:${DATA.columns * side}px;background-position:${corner.join(" ")}`,
  });
}

function classRow(c, which) {
  const { name, group, proxy } = classes[c];
  return [
    element("h3", { style: `border-color:${CHOSEN[which]}` }, name),
    element("small", {}, proxy ? group : "test class: never trained on, no proxy"),
    element("div", { class: "row" }, ...members[c].map((i) => thumb(i))),
  ];
}

function pairText(a, b) {
  return runs.map((model) => {
    const known = cosineText(model, a, b);
    const forth = percent(model.confusion[a][b], 1);
    const back = percent(model.confusion[b][a], 1);
    const text = `${model.name}: ${known && `${known}; `}${forth} of the nearest images of the first are of the second, ${back} the other way`;
    return element("p", { style: `border-color:${model.color}` }, text);
  });
}

function cosineText(model, a, b) {
  const value = cosine(model, a, b);
  return value === undefined ? "" : `cosine ${fixed(value, 2)}`;
}

function confusedWith(c) {
  const { name, confusion } = run();
  const others = [...classes.keys()].filter((j) => j !== c && confusion[c][j]);
  const worst = others.sort((i, j) => confusion[c][j] - confusion[c][i]).slice(0, 4);
  if (!worst.length) return element("p", {}, `${name}: all its nearest images are its own`);
  const links = worst.map((j) => {
    const text = `${classes[j].name} (${percent(confusion[c][j], 1)})`;
    return button(text, () => select(c, j), { class: "link" });
  });
  return element("p", {}, `${name} mixes it up with `, ...links);
}

function nearestImages(i) {
  const rows = runs.map((model) => {
    const name = element("b", { style: `color:${model.color}` }, model.name);
    const nearest = model.near[i].map((j) =>
      thumb(j, labels[j] === labels[i] ? "relevant" : "irrelevant"),
    );
    return element("div", { class: "row" }, name, thumb(i), ...nearest);
  });
  return [element("h3", {}, "Nearest images of the one you chose"), ...rows];
}

function drawPictures() {
  const { a, b, image } = state;
  const content = a < 0 ? ["Choose a class: click a cell, a point, or type its name."] : [];
  if (b >= 0) content.push(...pairText(a, b));
  else if (a >= 0) content.push(confusedWith(a));
  if (image >= 0) content.push(...nearestImages(image));
  if (a >= 0) content.push(...classRow(a, 0));
  if (b >= 0) content.push(...classRow(b, 1));
  $("pictures").replaceChildren(...content);
}

function drawNumbers() {
  const rows = runs.map((model) => {
    const e = nearestEpoch(model);
    const ended = Math.round(state.epoch) > e ? ` (epoch ${model.epochs[e]})` : "";
    const numbers = model.numbers[e];
    return [
      element("th", { scope: "row", style: `color:${model.color}` }, model.name + ended),
      numbers.rms_cosine.toFixed(3),
      numbers.coherence.toFixed(3),
      percent(numbers.common_mode_share, 1),
      numbers.effective_rank.toFixed(1),
      numbers.recall?.toFixed(3) ?? "–",
    ];
  });
  const head = ["", "RMS cosine", "coherence", "common mode", "effective rank", "Recall@1"];
  fillTable($("numbers"), head, rows);
}

// ---- one state, one draw ---------------------------------------------------------------------

const draw = inNextFrame(() => {
  drawHeat();
  drawMap();
  drawAngles();
  drawNumbers();
  const e = nearestEpoch(run());
  const kind = KINDS[state.kind];
  $("epoch").value = state.epoch;
  $("when").textContent = `epoch ${run().epochs[e]}${e === run().kept ? " (kept)" : ""}`;
  $("trust").textContent = `${kind.toUpperCase()}: ${run().trust[kind]}`;
  for (const name of ["run", "kind"]) {
    const buttons = [...$(`${name}s`).children];
    buttons.forEach((node, k) => node.setAttribute("aria-pressed", k === state[name]));
  }
});

// A change that the pictures and words below follow as well.
function change(values) {
  Object.assign(state, values);
  drawPictures();
  draw();
}

function nameClasses(a, b) {
  if (b < 0 || a === b) return classes[a].name;
  const known = cosineText(run(), a, b);
  return `${classes[a].name} and ${classes[b].name}${known && `: ${known} in ${run().name}`}`;
}

function select(a, b = -1, image = -1) {
  change({ a, b: b === a ? -1 : b, image, over: [-1, -1] });
  $("status").textContent = a < 0 ? "nothing chosen" : nameClasses(a, b);
}

function hover(over, event, image = -1) {
  const tip = $("tip");
  if (over.join() !== state.over.join()) draw();
  state.over = over;
  tip.hidden = over[0] < 0;
  if (tip.hidden) return;
  tip.replaceChildren(...(image >= 0 ? [thumb(image)] : []), nameClasses(...over));
  tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - 230)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - 90)}px`;
}

function play(on) {
  state.playing = on;
  $("play").textContent = on ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", on ? "pause" : "play the epochs");
  if (on && state.epoch >= END) state.epoch = 0;
  const start = performance.now() - 700 * state.epoch; // milliseconds per epoch
  const tick = (now) => {
    if (!state.playing) return;
    state.epoch = clamp((now - start) / 700, 0, END);
    draw();
    if (state.epoch >= END) play(false);
    else requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}

function scrub() {
  play(false);
  change({ epoch: Number($("epoch").value) });
}

function search() {
  const wanted = $("search").value.trim().toLowerCase();
  if (!wanted) return;
  const names = classes.map(({ name }) => name.toLowerCase());
  const exact = names.indexOf(wanted);
  const c = exact >= 0 ? exact : names.findIndex((name) => name.includes(wanted));
  if (c >= 0) select(c);
  else $("status").textContent = `no class is called ${$("search").value}`;
}

// ---- pointer and keys ------------------------------------------------------------------------

function heatKey(event) {
  const step = arrowKey(event)?.toReversed(); // down, right
  if (!step) return;
  event.preventDefault();
  const move = (cell) => cell.map((k, axis) => clamp(k + step[axis], 0, C - 1));
  const row = hasProxy(state.a) ? state.a : 0;
  let to = move([row, hasProxy(state.b) ? state.b : row]);
  if (to[0] === to[1]) to = move(to); // over the diagonal
  if (to[0] !== to[1]) select(...to);
}

function mapKey(event) {
  const step = arrowKey(event);
  if (!step) return;
  event.preventDefault();
  const by = step[0] + step[1];
  select((Math.max(state.a, by > 0 ? -1 : 0) + by + A) % A);
}

function pageKey(event) {
  const focused = document.activeElement;
  if (event.key === "Escape") select(-1);
  else if (event.key === "/" && focused !== $("search")) {
    event.preventDefault();
    $("search").focus();
  } else if (event.key === " " && ["BODY", "CANVAS"].includes(focused.tagName)) {
    event.preventDefault();
    play(!state.playing);
  }
}

function fillPage() {
  const look = (model) => ({ style: `border-color:${model.color}` });
  $("runs").append(...runs.map((m, run) => button(m.name, () => change({ run }), look(m))));
  $("kinds").append(
    ...KINDS.map((name, kind) => button(name.toUpperCase(), () => change({ kind }))),
  );
  $("note").textContent = DATA.note;
  $("names").append(...classes.map(({ name }) => element("option", { value: name })));
  document.head.append(element("style", {}, `.thumb { background-image: url(${DATA.sprite}); }`));
  $("epoch").max = END;
  drawLegend($("scale"), DATA.limit);
}

function listen() {
  const [heat, map] = [$("heat"), $("map")];
  heat.onpointermove = (event) => hover(cellAt(event), event);
  map.onpointermove = (event) => hover([pointAt(event).c, -1], event, pointAt(event).image);
  heat.onpointerleave = map.onpointerleave = () => hover([-1, -1]);
  heat.onclick = (event) => select(...cellAt(event));
  map.onclick = (event) => select(pointAt(event).c, -1, pointAt(event).image);
  heat.onkeydown = heatKey;
  map.onkeydown = mapKey;
  document.onkeydown = pageKey;
  $("epoch").oninput = scrub;
  $("play").onclick = () => play(!state.playing);
  $("search").onchange = $("search").onsearch = search;
  redrawWith(draw, document.body);
}

fillPage();
listen();
select(-1);
