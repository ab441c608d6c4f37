// The playground: proxies on a circle or a sphere, dragged by hand or moved by descent.
//
// First the scene, whose numbers come from numerics.js; then the drawing. Notation: C classes,
// D = 2 or 3 dimensions, B images. Proxies (C, D) and images (B, D) have rows of unit length.

// ---- scene -----------------------------------------------------------------------------------

const unitRows = (rows, D) => numerics.unitRows(rows, D).unit;

// Both terms of the loss, their sum, how they move proxies and images, and sobook.geometry's numbers.
function evaluate({ proxies, images, labels, ...settings }) {
  const { dim, so_weight } = settings;
  const anchor = numerics.proxyAnchor(images, labels, proxies, dim, settings);
  const so = numerics.softOrthogonality(proxies, dim);
  return {
    ...numerics.describe(proxies, dim),
    proxy_anchor: anchor.value,
    soft_orthogonality: so.value,
    loss: anchor.value + so_weight * so.value,
    anchorGradient: numerics.tangent(anchor.proxies, proxies, dim),
    soGradient: numerics.tangent(so.proxies, proxies, dim),
    imageGradient: numerics.tangent(anchor.embeddings, images, dim),
  };
}

// One step of gradient descent; every row goes back to unit length.
function step(scene) {
  const now = evaluate(scene);
  const slopes = now.anchorGradient.map((value, k) => value + scene.so_weight * now.soGradient[k]);
  const down = (rows, gradient) =>
    unitRows(
      rows.map((value, k) => value - scene.rate * gradient[k]),
      scene.dim,
    );
  const images = scene.images_move ? down(scene.images, now.imageGradient) : scene.images;
  return { ...scene, proxies: down(scene.proxies, slopes), images };
}

// Proxies at random, and a few images around a random center for each class.
function newScene(classes, dim, seed, each = 5) {
  const random = numerics.generator(1000 * seed + 10 * classes + dim);
  const normals = () => numerics.normals(random, dim);
  const [proxies, images, labels] = [[], [], []];
  for (let c = 0; c < classes; c++) {
    const center = unitRows(normals(), dim);
    proxies.push(...normals());
    for (let k = 0; k < each; k++) {
      images.push(...normals().map((value, d) => center[d] + 0.16 * value));
      labels.push(c);
    }
  }
  const unit = (values) => unitRows(Float64Array.from(values), dim);
  return { proxies: unit(proxies), images: unit(images), labels };
}

// ---- state -----------------------------------------------------------------------------------

const REACH = 0.4; // radius of the circle, in sides of the canvas
const SLIDERS = [
  ["num_classes", "classes", 3, 8, 1],
  ["so_weight", "λ (weight of SO)", 0, 200, 1],
  ["margin", "margin δ", 0, 0.5, 0.01],
  ["threshold", "threshold b", -0.5, 0.9, 0.01],
  ["scale", "scale α", 1, 64, 1],
  ["rate", "step size", 0.0005, 0.02, 0.0005],
];

const canvas = $("board");
const board = {
  scene: { rate: 0.004, images_move: false, ...DATA },
  seed: DATA.seed,
  angles: [0.5, 0.4], // from which the sphere is seen: around, and towards the reader
  chosen: 0,
  dragged: false, // the chosen proxy, rather than the sphere
  running: false,
  size: 0, // side of the canvas in pixels
};

function restart() {
  const { num_classes, dim } = board.scene;
  Object.assign(board.scene, newScene(num_classes, dim, board.seed));
  board.chosen = Math.min(board.chosen, num_classes - 1);
  update();
}

function change(name, value) {
  board.scene[name] = value;
  if (name === "num_classes" || name === "dim") restart();
  else update();
}

function setProxy(c, proxy) {
  board.scene.proxies.set(proxy, c * board.scene.dim);
  update();
}

function descend() {
  board.scene = step(board.scene);
  update();
}

function run(on) {
  board.running = on;
  $("run").textContent = on ? "Stop" : "Run";
  const tick = () => {
    if (!board.running) return;
    descend();
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}

// Everything follows from the scene: numbers, arrows and controls.
function update() {
  board.now = evaluate(board.scene);
  const { now } = board;
  const rows = [
    ["Proxy Anchor", now.proxy_anchor],
    ["SO (mean)", now.soft_orthogonality],
    ["floor of SO", now.floor],
    ["loss = PA + λ·SO", now.loss],
    ["mean cosine", now.mean_cosine],
    ["coherence", now.coherence],
    ["Welch bound", now.welch_bound],
  ].map(([name, value]) => [element("dt", {}, name), element("dd", {}, value.toFixed(4))]);
  $("numbers").replaceChildren(...rows.map((pair) => element("div", {}, ...pair)));
  for (const [name] of SLIDERS) {
    $(name).value = $(name).nextSibling.textContent = board.scene[name];
  }
  $("shape").textContent = board.scene.dim === 2 ? "To the sphere" : "To the circle";
  draw();
}

// ---- drawing ---------------------------------------------------------------------------------

// Where a direction stands on the canvas, and how near it is to the reader (1 near, −1 far).
function place(v) {
  const [right, up, near] = project(v, board.angles);
  return [board.size * (0.5 + REACH * right), board.size * (0.5 - REACH * up), near];
}

// The direction under the pointer: the inverse of `place`, on the half facing the reader.
function unplace(x, y) {
  const [right, up] = [x, board.size - y].map((v) => (v / board.size - 0.5) / REACH);
  if (board.scene.dim === 2) return unitRows([right || 1e-9, up], 2);
  const reach = Math.max(1, Math.hypot(right, up));
  const near = Math.sqrt(Math.max(0, 1 - right * right - up * up));
  return unitRows(unproject([right / reach, up / reach, near], board.angles), 3);
}

function draw() {
  const [g, size] = context(canvas);
  board.size = size;
  const { proxies, images, labels, so_weight, dim } = board.scene;
  g.strokeStyle = cssColor("--ink");
  g.globalAlpha = 0.35;
  circle(g, [size / 2, size / 2], size * REACH);
  g.stroke();
  if (dim === 3) drawGlobe(g, place);
  rowsOf(images, dim).forEach((x, b) => {
    const [px, py, near] = place(x);
    g.globalAlpha = near < 0 ? 0.25 : 0.9;
    disc(g, [px, py], size * 0.009, PALETTE[labels[b]]);
  });
  const points = rowsOf(proxies, dim);
  const { anchorGradient, soGradient } = board.now;
  points.forEach((p, c) => {
    drawSlope(g, p, rowsOf(anchorGradient, dim)[c], 1, "#D55E00", 1);
    drawSlope(g, p, rowsOf(soGradient, dim)[c], so_weight, "#0072B2", -1);
  });
  const discs = points.map((p, c) => [c, ...place(p)]);
  for (const disc of discs.sort((a, b) => a[3] - b[3])) drawDisc(g, ...disc);
}

// Against a gradient. Lengths level off, or a steep one would leave the picture; direction is exact.
// The two arrows of a disc begin at its edge, side by side.
function drawSlope(g, at, gradient, weight, color, side) {
  const steepness = weight * Math.hypot(...gradient);
  if (steepness < 1e-4) return;
  const [x, y, near] = place(at);
  const reach = (0.5 * weight) / (steepness + 1.5);
  const [endX, endY] = place(at.map((value, d) => value - reach * gradient[d]));
  const length = Math.hypot(endX - x, endY - y);
  if (length < 1) return;
  const [along, across] = [(endX - x) / length, (endY - y) / length];
  const point = (far) => [
    x + far * along - 3.5 * side * across,
    y + far * across + 3.5 * side * along,
  ];
  g.globalAlpha = near < 0 ? 0.35 : 1;
  g.strokeStyle = g.fillStyle = color;
  arrow(g, point(board.size * 0.032), point(board.size * 0.032 + length + 7), 3.5);
}

function drawDisc(g, c, px, py, near) {
  const radius = board.size * 0.032;
  g.globalAlpha = near < 0 ? 0.45 : 1;
  g.strokeStyle = cssColor("--ink");
  g.lineWidth = c === board.chosen ? 4 : 1.5;
  disc(g, [px, py], radius, PALETTE[c]);
  g.stroke();
  g.font = `bold ${Math.round(radius * 1.2)}px sans-serif`;
  g.textAlign = "center";
  g.textBaseline = "middle";
  g.fillStyle = "#fff";
  g.strokeStyle = "#222";
  g.lineWidth = 2.5;
  g.strokeText(c + 1, px, py);
  g.fillText(c + 1, px, py);
}

// ---- controls --------------------------------------------------------------------------------

function addControls() {
  for (const [name, title, min, max, by] of SLIDERS) {
    const range = { type: "range", id: name, min, max, step: by, "aria-label": title };
    const input = element("input", range);
    input.oninput = () => change(name, Number(input.value));
    $("controls").append(
      element("label", {}, element("span", {}, title), input, element("output")),
    );
  }
  const moves = element("input", { type: "checkbox", id: "images_move" });
  moves.onchange = () => change("images_move", moves.checked);
  $("controls").append(element("label", { class: "check" }, moves, "images move too"));
  const redraw = () => {
    board.seed += 1;
    restart();
  };
  $("buttons").append(
    button("Step", descend, { id: "step" }),
    button("Run", () => run(!board.running), { id: "run" }),
    button("New draw", redraw),
    button("", () => change("dim", 5 - board.scene.dim), { id: "shape" }),
  );
}

function press([x, y]) {
  const places = rowsOf(board.scene.proxies, board.scene.dim).map(place);
  const gaps = places.map(([px, py]) => Math.hypot(px - x, py - y));
  const nearest = gaps.indexOf(Math.min(...gaps));
  board.dragged = gaps[nearest] < Math.max(24, board.size * 0.05);
  if (board.dragged) board.chosen = nearest;
  canvas.focus();
  draw();
}

function drag([x, y], change) {
  if (board.dragged) setProxy(board.chosen, unplace(x, y));
  else if (board.scene.dim === 3) {
    board.angles = turned(board.angles, change);
    draw();
  }
}

function key(event) {
  const number = Number(event.key);
  if (number >= 1 && number <= board.scene.num_classes) board.chosen = number - 1;
  else if (event.key === "Enter") descend();
  else if (event.key === " ") run(!board.running);
  else if (arrowKey(event)) nudge(...arrowKey(event));
  else return;
  event.preventDefault();
  draw();
}

function nudge(right, down) {
  const p = rowsOf(board.scene.proxies, board.scene.dim)[board.chosen];
  if (p.length === 2) {
    const angle = Math.atan2(p[1], p[0]) - 0.05 * (right || -down);
    setProxy(board.chosen, [Math.cos(angle), Math.sin(angle)]);
  } else {
    const [x, y] = place(p);
    setProxy(board.chosen, unplace(x + 0.02 * board.size * right, y + 0.02 * board.size * down));
  }
}

addControls();
onDrag(canvas, press, drag);
canvas.onkeydown = key;
restart();
redrawWith(draw, canvas);
