// The playground: proxies on a circle or a sphere, dragged by hand or moved by descent.
//
// First the scene, whose numbers come from numerics.js; then the drawing. Notation: C classes,
// D = 2 or 3 dimensions, B images. Proxies and images always have unit length.

// ---- scene -----------------------------------------------------------------------------------

const scaled = (a, by) => a.map((value) => value * by);
const plus = (a, b) => a.map((value, k) => value + b[k]);
const unit = (a) => scaled(a, 1 / Math.hypot(...a));
// Vectors as the rows of a matrix, and back.
const matrix = (vectors) => Float64Array.from(vectors.flat());
const vectors = (rows, D) =>
  Array.from({ length: rows.length / D }, (_, i) => [...rows.subarray(i * D, (i + 1) * D)]);

// Both terms of the loss, their sum, and what sobook.geometry says of the proxies.
function evaluate(scene) {
  const { labels, so_weight } = scene,
    D = scene.proxies[0].length;
  const proxies = matrix(scene.proxies),
    images = matrix(scene.images);
  const anchor = numerics.proxyAnchor(images, labels, proxies, D, scene);
  const so = numerics.softOrthogonality(proxies, D);
  const turning = (gradient, at) => vectors(numerics.tangent(gradient, at, D), D);
  return {
    ...numerics.describe(proxies, D),
    proxy_anchor: anchor.value,
    soft_orthogonality: so.value,
    loss: anchor.value + so_weight * so.value,
    anchorGradient: turning(anchor.proxies, proxies),
    soGradient: turning(so.proxies, proxies),
    imageGradient: turning(anchor.embeddings, images),
  };
}

// One step of gradient descent; every vector goes back to unit length.
function step(scene) {
  const now = evaluate(scene),
    down = (v, slope) => unit(plus(v, scaled(slope, -scene.rate)));
  const proxies = scene.proxies.map((p, c) =>
    down(p, plus(now.anchorGradient[c], scaled(now.soGradient[c], scene.so_weight))),
  );
  const moved = scene.images.map((x, b) => down(x, now.imageGradient[b]));
  return { ...scene, proxies, images: scene.images_move ? moved : scene.images };
}

// Proxies at random, and a few images around a random center for each class.
function newScene(classes, dim, seed = 0, each = 5) {
  const random = numerics.generator(1000 * seed + 10 * classes + dim);
  const normal = () => numerics.normal(random);
  const direction = () => unit(Array.from({ length: dim }, normal));
  const proxies = [],
    images = [],
    labels = [];
  for (let c = 0; c < classes; c++) {
    const center = direction();
    proxies.push(direction());
    for (let k = 0; k < each; k++) {
      images.push(unit(center.map((value) => value + 0.16 * normal())));
      labels.push(c);
    }
  }
  return { proxies, images, labels };
}

// ---- drawing ---------------------------------------------------------------------------------

const ANCHOR = "#D55E00",
  ORTHOGONALITY = "#0072B2"; // PA and SO, as in every figure of the book
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
  turn: [0.5, 0.4], // how the sphere is turned: around, and towards the reader
  chosen: 0,
  held: null,
  running: false,
  size: 0, // size: side of the canvas in pixels
};

function restart() {
  const { scene } = board;
  Object.assign(scene, newScene(scene.num_classes, scene.dim, board.seed));
  board.chosen = Math.min(board.chosen, scene.num_classes - 1);
  update();
}

function change(name, value) {
  board.scene[name] = value;
  if (name === "num_classes" || name === "dim") restart();
  else update();
}

function setProxy(c, proxy) {
  board.scene.proxies = board.scene.proxies.with(c, proxy);
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
  const now = (board.now = evaluate(board.scene));
  const rows = {
    "Proxy Anchor": now.proxy_anchor,
    "SO (mean)": now.soft_orthogonality,
    "floor of SO": now.floor,
    "loss = PA + λ·SO": now.loss,
    "mean cosine": now.mean_cosine,
    coherence: now.coherence,
    "Welch bound": now.welch_bound,
  };
  $("numbers").replaceChildren(
    ...Object.entries(rows).map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value.toFixed(4))),
    ),
  );
  for (const [name] of SLIDERS) {
    $(name).value = $(name).nextSibling.textContent = board.scene[name];
  }
  $("shape").textContent = board.scene.dim === 2 ? "To the sphere" : "To the circle";
  draw();
}

// Where a direction stands on the canvas, and how near it is to the reader (1 near, −1 far).
function place(v) {
  const middle = board.size / 2,
    radius = board.size * REACH;
  if (v.length === 2) return [middle + radius * v[0], middle - radius * v[1], 1];
  const [x, y, z] = v,
    [a, b] = board.turn;
  const right = Math.cos(a) * x + Math.sin(a) * y,
    depth = -Math.sin(a) * x + Math.cos(a) * y;
  const up = Math.cos(b) * z + Math.sin(b) * depth,
    near = Math.sin(b) * z - Math.cos(b) * depth;
  return [middle + radius * right, middle - radius * up, near];
}

// The direction under the pointer: the inverse of `place`, on the half facing the reader.
function unplace(px, py) {
  const middle = board.size / 2,
    radius = board.size * REACH;
  let right = (px - middle) / radius,
    up = (middle - py) / radius;
  if (board.scene.dim === 2) return right || up ? unit([right, up]) : [1, 0];
  const reach = Math.max(1, Math.hypot(right, up));
  [right, up] = [right / reach, up / reach];
  const near = Math.sqrt(Math.max(0, 1 - right * right - up * up)),
    [a, b] = board.turn;
  const z = Math.cos(b) * up + Math.sin(b) * near,
    depth = Math.sin(b) * up - Math.cos(b) * near;
  const x = Math.cos(a) * right - Math.sin(a) * depth;
  return unit([x, Math.sin(a) * right + Math.cos(a) * depth, z]);
}

function draw() {
  const [g, size] = context(canvas);
  board.size = size;
  drawGlobe(g);
  const { proxies, images, labels, so_weight } = board.scene;
  images.forEach((x, b) => {
    const [px, py, near] = place(x);
    g.globalAlpha = near < 0 ? 0.25 : 0.9;
    g.fillStyle = PALETTE[labels[b]];
    circle(g, [px, py], size * 0.009);
    g.fill();
  });
  proxies.forEach((p, c) => {
    drawArrow(g, p, scaled(board.now.anchorGradient[c], -1), ANCHOR, 1);
    drawArrow(g, p, scaled(board.now.soGradient[c], -so_weight), ORTHOGONALITY, -1);
  });
  const places = proxies.map((p, c) => [c, ...place(p)]);
  for (const disc of places.sort((a, b) => a[3] - b[3])) drawDisc(g, ...disc);
}

function drawGlobe(g) {
  g.strokeStyle = cssColor("--ink");
  g.globalAlpha = 0.35;
  circle(g, [board.size / 2, board.size / 2], board.size * REACH);
  g.stroke();
  if (board.scene.dim === 2) return;
  for (let k = 0; k < 6; k++) {
    const a = (k * Math.PI) / 6,
      h = -Math.PI / 2 + ((k + 0.5) * Math.PI) / 6;
    drawRing(g, (t) => [Math.cos(a) * Math.cos(t), Math.sin(a) * Math.cos(t), Math.sin(t)]);
    drawRing(g, (t) => [Math.cos(h) * Math.cos(t), Math.cos(h) * Math.sin(t), Math.sin(h)]);
  }
}

function drawRing(g, point) {
  for (let k = 0; k < 60; k++) {
    const [x0, y0, near] = place(point((k * Math.PI) / 30));
    const [x1, y1] = place(point(((k + 1) * Math.PI) / 30));
    g.globalAlpha = near < 0 ? 0.07 : 0.22;
    line(g, [x0, y0], [x1, y1]);
  }
}

// Lengths level off, or one steep gradient would leave the picture; direction is exact.
function drawArrow(g, at, slope, color, side) {
  const steepness = Math.hypot(...slope);
  if (steepness < 1e-4) return;
  const [x, y, near] = place(at),
    end = place(plus(at, scaled(slope, 0.5 / (steepness + 1.5))));
  const [dx, dy] = [end[0] - x, end[1] - y],
    length = Math.hypot(dx, dy);
  if (length < 1) return;
  const rim = board.size * 0.032; // arrows begin at the edge of the disc, side by side
  g.save();
  g.translate(x, y);
  g.rotate(Math.atan2(dy, dx)); // now the arrow points to the right
  g.translate(rim, 3.5 * side);
  g.globalAlpha = near < 0 ? 0.35 : 1;
  g.strokeStyle = g.fillStyle = color;
  g.lineWidth = 3.5;
  line(g, [0, 0], [length, 0]);
  g.fill(new Path2D(`M ${length + 7} 0 l -7 6 v -12 z`));
  g.restore();
}

function drawDisc(g, c, px, py, near) {
  const radius = board.size * 0.032;
  g.globalAlpha = near < 0 ? 0.45 : 1;
  g.fillStyle = PALETTE[c];
  g.strokeStyle = cssColor("--ink");
  g.lineWidth = c === board.chosen ? 4 : 1.5;
  circle(g, [px, py], radius);
  g.fill();
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
    const input = element("input", {
      type: "range",
      id: name,
      min,
      max,
      step: by,
      "aria-label": title,
    });
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

function press(event) {
  const [x, y] = pointer(event, canvas),
    reach = Math.max(24, board.size * 0.05);
  const places = board.scene.proxies.map(place);
  const gaps = places.map(([px, py]) => Math.hypot(px - x, py - y));
  const c = gaps.indexOf(Math.min(...gaps)),
    hit = gaps[c] < reach;
  board.held = hit ? { proxy: c } : { turn: [x, y] };
  if (hit) board.chosen = c;
  canvas.setPointerCapture(event.pointerId);
  canvas.focus();
  draw();
}

function drag(event) {
  if (!board.held) return;
  const [x, y] = pointer(event, canvas),
    { proxy, turn } = board.held;
  if (proxy !== undefined) {
    setProxy(proxy, unplace(x, y));
  } else if (board.scene.dim === 3) {
    const [a, b] = board.turn;
    board.turn = [a - (x - turn[0]) / 120, clamp(b + (y - turn[1]) / 120, -1.5, 1.5)];
    board.held.turn = [x, y];
    draw();
  }
}

function key(event) {
  const sides = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const number = Number(event.key);
  if (number >= 1 && number <= board.scene.num_classes) board.chosen = number - 1;
  else if (event.key === "Enter") descend();
  else if (event.key === " ") run(!board.running);
  else if (sides[event.key]) nudge(...sides[event.key]);
  else return;
  event.preventDefault();
  draw();
}

function nudge(right, up) {
  const p = board.scene.proxies[board.chosen];
  if (p.length === 2) {
    const angle = Math.atan2(p[1], p[0]) - 0.05 * (right || up);
    setProxy(board.chosen, [Math.cos(angle), Math.sin(angle)]);
  } else {
    const [px, py] = place(p),
      by = board.size * 0.02;
    setProxy(board.chosen, unplace(px + right * by, py - up * by));
  }
}

addControls();
canvas.onpointerdown = press;
canvas.onpointermove = drag;
canvas.onpointerup = canvas.onpointercancel = () => {
  board.held = null;
};
canvas.onkeydown = key;
restart();
redrawWith(draw, canvas);
window.playground = { evaluate, step, newScene, board, place, unplace };
