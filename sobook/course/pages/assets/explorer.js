// The explorer: heatmap, map, angles and pictures of runs, linked.
//
// Everything it shows is in `DATA` (made by sobook/course/pages/explorer.py). One state, one `draw`:
// whatever is hovered, selected or scrubbed changes the state, and every view redraws from it in
// the next frame. Notation: C classes with proxies (the first ones), A all classes, E epochs.

const { classes, labels, order, runs } = DATA;
const C = order.length,
  A = classes.length,
  END = Math.max(...runs.map((one) => one.epochs.length)) - 1;
const KINDS = Object.keys(runs[0].maps);
const members = classes.map((_, c) => [...labels.keys()].filter((i) => labels[i] === c));
const rank = classes.map((_, c) => order.indexOf(c)); // in the heatmap; −1: no proxy
const groups = [...new Set(classes.map(({ group }) => group))];
const groupColor = (group) => PALETTE[groups.indexOf(group) % PALETTE.length];
const colors = classes.map(({ group }) => (groups.length > 1 ? groupColor(group) : "#888888"));
const CHOSEN = ["#E69F00", "#56B4E9"]; // the two classes of a cell, wherever they are drawn

const state = {
  run: runs.length - 1,
  map: KINDS[0],
  epoch: runs[runs.length - 1].kept,
  playing: false,
  a: -1,
  b: -1,
  image: -1,
  over: [-1, -1], // classes and image chosen, classes under the pointer
};
const frames = { count: 0 };

const run = () => runs[state.run];
const focus = () => (state.over[0] >= 0 ? state.over : [state.a, state.b]);
const signed = (value) => value.toFixed(2).replace("-", "−");
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const { degrees } = numerics;
const nearestEpoch = (one) => Math.min(Math.round(state.epoch), one.epochs.length - 1);

// ---- numbers at the epoch shown, in between by interpolation ----------------------------------

function interpolated(one, valueAt) {
  const epoch = Math.min(state.epoch, one.epochs.length - 1),
    low = Math.floor(epoch);
  const t = epoch - low;
  return (1 - t) * valueAt(low) + t * valueAt(Math.ceil(epoch));
}

// Of all pairs i < j: (0, 1), (0, 2) … (1, 2) …
const cosines = (one) => one.cosines[0].map((_, k) => interpolated(one, (e) => one.cosines[e][k]));

// undefined where one of the two has no proxy
function cosine(one, a, b) {
  if (a === b || !(rank[a] >= 0 && rank[b] >= 0)) return undefined;
  const i = Math.min(a, b),
    k = (i * (2 * C - i - 1)) / 2 + Math.abs(a - b) - 1;
  return interpolated(one, (e) => one.cosines[e][k]);
}

// ---- heatmap ---------------------------------------------------------------------------------

const cells = element("canvas", { width: C, height: C }).getContext("2d");
const barWidth = (width) => Math.max(6, width * 0.03); // the groups' colors, left of the cells

// Colors of cosines from −limit to +limit, as pixels; the legend shows the same.
function heatColors() {
  const g = $("scale").getContext("2d"),
    ramp = g.createLinearGradient(0, 0, 256, 0);
  DATA.gradient.forEach((color, k) => ramp.addColorStop(k / (DATA.gradient.length - 1), color));
  g.fillStyle = ramp;
  g.fillRect(0, 0, 256, 1);
  return new Uint32Array(g.getImageData(0, 0, 256, 1).data.buffer);
}
const HEAT = heatColors();

function drawHeat() {
  const [g, w] = context($("heat")),
    bar = barWidth(w),
    side = w - bar,
    size = side / C;
  const picture = cells.createImageData(C, C),
    values = cosines(run());
  const pixels = new Uint32Array(picture.data.buffer).fill(0xff969696); // gray, the diagonal
  let k = 0;
  for (let i = 0; i < C; i++) {
    for (let j = i + 1; j < C; j++) {
      const level = clamp(Math.round(127.5 * (1 + values[k++] / DATA.limit)), 0, 255);
      pixels[rank[i] * C + rank[j]] = pixels[rank[j] * C + rank[i]] = HEAT[level];
    }
  }
  cells.putImageData(picture, 0, 0);
  g.imageSmoothingEnabled = false;
  g.drawImage(cells.canvas, bar, 0, side, side);
  order.forEach((c, k) => {
    g.fillStyle = colors[c];
    g.fillRect(0, k * size, bar - 3, Math.ceil(size));
  });
  focus().forEach((c, which) => {
    if (!(rank[c] >= 0)) return;
    for (const [color, width] of [
      ["#000", 3],
      [CHOSEN[which], 1.5],
    ]) {
      g.strokeStyle = color;
      g.lineWidth = width;
      g.strokeRect(bar, rank[c] * size, side, size);
      g.strokeRect(bar + rank[c] * size, 0, size, side);
    }
  });
}

function cellAt(event) {
  const width = $("heat").clientWidth,
    bar = barWidth(width),
    size = (width - bar) / C;
  const [x, y] = pointer(event, $("heat"));
  return [order[Math.floor(y / size)] ?? -1, order[Math.floor((x - bar) / size)] ?? -1];
}

// ---- map -------------------------------------------------------------------------------------

let mapSide = 0; // pixels
const onMap = (x, y) => [x, y].map((value) => mapSide * (0.03 + 0.94 * value));
const point = (i) => onMap(...run().maps[state.map][i]);

function star(c) {
  const places = run().stars[state.map];
  return onMap(...[0, 1].map((axis) => interpolated(run(), (e) => places[e][c][axis])));
}

function drawMap() {
  const [g, w] = context($("map")),
    chosen = focus();
  mapSide = w;
  const dot = (i, color, radius) => {
    g.fillStyle = color;
    circle(g, point(i), radius);
    g.fill();
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
  for (const c of order) if (!chosen.includes(c)) drawStar(g, star(c), colors[c], w / 75);
  chosen.forEach((c, which) => {
    if (rank[c] >= 0) drawStar(g, star(c), CHOSEN[which], w / 38);
  });
}

function drawStar(g, [x, y], color, radius) {
  g.fillStyle = color;
  g.beginPath();
  for (let k = 0; k < 10; k++) {
    const r = k % 2 ? radius * 0.45 : radius,
      angle = (k * Math.PI) / 5 - Math.PI / 2;
    g.lineTo(x + r * Math.cos(angle), y + r * Math.sin(angle));
  }
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
  order.forEach((c) => consider(star(c), -1, c));
  return best;
}

// ---- angles ----------------------------------------------------------------------------------

const STEP = 2; // degrees of a bin
const histogram = (values) => numerics.angleHistogram(values, STEP);

function drawAngles() {
  const [g, w, h] = context($("angles")),
    [low, high] = DATA.angles,
    bottom = h - 26;
  const x = (angle) => 8 + ((w - 16) * (angle - low)) / (high - low);
  const y = (density) => bottom - (bottom - 8) * (density / DATA.tallest);
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
    const heights = histogram(cosines(one)),
      shown = one === run();
    g.setLineDash(r ? [8, 4] : []);
    g.strokeStyle = one.color;
    g.lineWidth = shown ? 3.5 : 1.8;
    g.globalAlpha = shown ? 1 : 0.6;
    g.beginPath();
    for (let k = low / STEP; k < high / STEP; k++) {
      g.lineTo(x(k * STEP), y(heights[k]));
      g.lineTo(x((k + 1) * STEP), y(heights[k]));
    }
    g.stroke();
  });
  g.globalAlpha = 1;
  g.setLineDash([]);
  const [a, b] = focus();
  for (const c of order) {
    const value = cosine(run(), a, c),
      which = c === b ? 1 : 0;
    if (value === undefined) continue;
    g.strokeStyle = CHOSEN[which];
    g.lineWidth = [1.5, 4][which];
    line(g, [x(degrees(value)), bottom], [x(degrees(value)), bottom - [14, 40][which]]);
  }
  g.fillStyle = cssColor("--ink");
  g.font = "13px system-ui, sans-serif";
  g.textAlign = "center";
  for (let d = Math.ceil(low / 15) * 15; d <= high; d += 15) g.fillText(`${d}°`, x(d), h - 8);
}

// ---- words and pictures ----------------------------------------------------------------------

// The thumbnail of an image; `relevant` frames and marks it as an answer to a query.
function thumb(i, relevant) {
  const asked = relevant !== undefined,
    side = asked ? 0.9 * DATA.tile : DATA.tile;
  const verdict = relevant ? "relevant" : "irrelevant",
    mark = relevant ? "✓" : "✗";
  const column = i % DATA.columns,
    row = Math.floor(i / DATA.columns);
  return button(asked ? mark : "", () => select(labels[i], -1, i), {
    class: asked ? `thumb ${verdict}` : "thumb",
    "aria-label": `image of ${classes[labels[i]].name}${asked ? `, ${verdict}` : ""}`,
    style:
      `width:${side}px;height:${side}px;background-size:${DATA.columns * side}px;` +
      `background-position:-${column * side}px -${row * side}px`,
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
  return runs.map((one) => {
    const value = cosine(one, a, b),
      known = value === undefined ? "" : `cosine ${signed(value)}; `;
    const [there, back] = [percent(one.confusion[a][b]), percent(one.confusion[b][a])];
    return element(
      "p",
      { style: `border-color:${one.color}` },
      `${one.name}: ${known}${there} of ` +
        `the nearest images of the first are of the second, ${back} the other way`,
    );
  });
}

function confusedWith(c) {
  const { name, confusion } = run(),
    others = [...Array(A).keys()];
  const worst = others
    .filter((j) => j !== c && confusion[c][j])
    .sort((i, j) => confusion[c][j] - confusion[c][i])
    .slice(0, 4);
  if (!worst.length) return element("p", {}, `${name}: all its nearest images are its own`);
  const links = worst.map((j) =>
    button(`${classes[j].name} (${percent(confusion[c][j])})`, () => select(c, j), {
      class: "link",
    }),
  );
  return element("p", {}, `${name} mixes it up with `, ...links);
}

function nearestImages(i) {
  const rows = runs.map((one) => {
    const name = element("b", { style: `color:${one.color}` }, one.name);
    const nearest = one.near[i].map((j) => thumb(j, labels[j] === labels[i]));
    return element("div", { class: "row" }, name, thumb(i), ...nearest);
  });
  return [element("h3", {}, "Nearest images of the one you chose"), ...rows];
}

function drawPictures() {
  const { a, b, image } = state,
    content = [];
  if (a < 0) content.push("Choose a class: click a cell, a point, or type its name.");
  else {
    content.push(...(b >= 0 ? pairText(a, b) : [confusedWith(a)]));
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
    const e = nearestEpoch(one),
      ended = Math.round(state.epoch) > e;
    const name = one.name + (ended ? ` (epoch ${one.epochs[e]})` : "");
    const title = element("th", { scope: "row", style: `color:${one.color}` }, name);
    const values = NUMBERS.map(([, text]) => element("td", {}, text(one.numbers[e])));
    return element("tr", {}, title, ...values);
  });
  const header = element("thead", {}, element("tr", {}, element("th"), ...head));
  $("numbers").replaceChildren(header, element("tbody", {}, ...rows));
}

// ---- one state, one draw ---------------------------------------------------------------------

let waiting = 0;
function draw() {
  waiting ||= requestAnimationFrame(() => {
    waiting = 0;
    frames.count += 1;
    drawHeat();
    drawMap();
    drawAngles();
    drawNumbers();
    const one = run(),
      e = nearestEpoch(one);
    $("epoch").value = state.epoch;
    $("when").textContent = `epoch ${one.epochs[e]}${e === one.kept ? " (kept)" : ""}`;
    $("trust").textContent = `${state.map.toUpperCase()}: ${one.trust[state.map]}`;
  });
}

const announce = (text) => {
  $("status").textContent = text;
};

function nameClasses(a, b) {
  if (b < 0 || a === b) return classes[a].name;
  const value = cosine(run(), a, b);
  const known = value === undefined ? "" : `: cosine ${signed(value)} in ${run().name}`;
  return `${classes[a].name} and ${classes[b].name}${known}`;
}

function select(a, b = -1, image = -1) {
  Object.assign(state, { a, b: b === a ? -1 : b, image, over: [-1, -1] });
  drawPictures();
  draw();
  announce(a < 0 ? "nothing chosen" : nameClasses(a, state.b));
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

// One button per choice; the one chosen is pressed.
function addSwitch(id, names, choose) {
  const pressOnly = (chosen) =>
    [...$(id).children].forEach((node, k) => node.setAttribute("aria-pressed", k === chosen));
  $(id).append(
    ...names.map((name, k) =>
      button(name, () => {
        choose(k);
        pressOnly(k);
        drawPictures();
        draw();
      }),
    ),
  );
  return pressOnly;
}

function play(on) {
  let before = performance.now();
  state.playing = on;
  $("play").textContent = on ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", on ? "pause" : "play the epochs");
  if (on && state.epoch >= END) state.epoch = 0;
  const tick = (now) => {
    if (!state.playing) return;
    // A frame's time may lie before the click that asked for it.
    state.epoch = Math.min(END, state.epoch + Math.max(0, now - before) / 700);
    before = now;
    draw();
    if (state.epoch >= END) play(false);
    else requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
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
  const names = classes.map(({ name }) => name.toLowerCase()),
    exact = names.indexOf(wanted);
  const c = exact >= 0 ? exact : names.findIndex((name) => name.includes(wanted));
  if (c >= 0) select(c);
  else announce(`no class is called ${$("search").value}`);
}

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function heatKey(event) {
  const step = ARROWS[event.key];
  if (!step) return;
  event.preventDefault();
  const move = (cell) => cell.map((k, axis) => clamp(k + step[axis], 0, C - 1));
  const row = Math.max(0, rank[state.a] ?? 0),
    column = rank[state.b] ?? row;
  let to = move([row, column]);
  if (to[0] === to[1]) to = move(to); // over the diagonal
  if (to[0] !== to[1]) select(order[to[0]], order[to[1]]);
}

function mapKey(event) {
  const step = ARROWS[event.key];
  if (!step) return;
  event.preventDefault();
  const by = step[0] + step[1];
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

function fillPage() {
  $("note").textContent = DATA.note;
  addSwitch(
    "runs",
    runs.map(({ name }) => name),
    (k) => {
      state.run = k;
    },
  )(state.run);
  addSwitch(
    "kinds",
    KINDS.map((kind) => kind.toUpperCase()),
    (k) => {
      state.map = KINDS[k];
    },
  )(0);
  runs.forEach((one, k) => {
    $("runs").children[k].style.borderColor = one.color;
  });
  $("names").append(...classes.map(({ name }) => element("option", { value: name })));
  document.head.append(element("style", {}, `.thumb { background-image: url(${DATA.sprite}); }`));
  $("epoch").max = END;
  $("least").textContent = `−${DATA.limit}`;
  $("most").textContent = `+${DATA.limit}`;
}

function listen() {
  const heat = $("heat"),
    map = $("map");
  heat.onpointermove = (event) => hover(cellAt(event), event);
  map.onpointermove = (event) => {
    const { c, image } = pointAt(event);
    hover([c, -1], event, image);
  };
  heat.onpointerleave = map.onpointerleave = () => hover([-1, -1]);
  heat.onclick = (event) => select(...cellAt(event));
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
  redrawWith(draw, document.body);
}

fillPage();
listen();
select(-1);
window.explorer = { state, runs, data: DATA, frames, select, play, cosines, histogram };
