// The playground: proxies on a circle or a sphere, dragged by hand or moved by descent.
//
// One source for two places: anywidget loads it as a widget's front end, and a page without a
// kernel calls `mount`. The first half is arithmetic alone (the same as sobook/losses.py, tested
// against it), the second half draws. Notation: C classes, D = 2 or 3 dimensions, B images.

// ---- arithmetic ------------------------------------------------------------------------------

const dot = (a, b) => a.reduce((sum, value, k) => sum + value * b[k], 0);
const scaled = (a, by) => a.map((value) => value * by);
const plus = (a, b) => a.map((value, k) => value + b[k]);
export const unit = (a) => scaled(a, 1 / Math.sqrt(dot(a, a)));
// What of a gradient turns a unit vector; the rest would only change its length.
const tangent = (gradient, at) => plus(gradient, scaled(at, -dot(gradient, at)));

// log(1 + Σ exp z) and the share of each term in its derivative, without overflow.
function logOnePlusSumExp(z) {
  const top = Math.max(0, ...z);
  const terms = z.map((value) => Math.exp(value - top));
  const total = terms.reduce((a, b) => a + b, Math.exp(-top));
  return { value: top + Math.log(total), shares: terms.map((term) => term / total) };
}

/** Proxy Anchor (Kim et al., CVPR 2020): value, and its gradients for unit proxies and images. */
export function proxyAnchor(proxies, images, labels, margin, scale) {
  const P = proxies.map(unit), X = images.map(unit), zero = () => P[0].map(() => 0);
  const gradient = P.map(zero), imageGradient = X.map(zero);
  const present = new Set(labels).size;
  let value = 0;
  P.forEach((p, c) => {
    const cosines = X.map((x) => dot(x, p));
    const own = [], others = [];
    labels.forEach((label, b) => (label === c ? own : others).push(b));
    const sides = [
      [own, (s) => -scale * (s - margin), -scale / present],
      [others, (s) => scale * (s + margin), scale / P.length],
    ];
    for (const [members, exponent, slope] of sides) {
      if (!members.length) continue;
      const sum = logOnePlusSumExp(members.map((b) => exponent(cosines[b])));
      value += (sum.value * Math.abs(slope)) / scale;
      members.forEach((b, k) => {
        gradient[c] = plus(gradient[c], scaled(X[b], slope * sum.shares[k]));
        imageGradient[b] = plus(imageGradient[b], scaled(p, slope * sum.shares[k]));
      });
    }
  });
  return {
    value,
    gradient: gradient.map((g, c) => tangent(g, P[c])),
    imageGradient: imageGradient.map((g, b) => tangent(g, X[b])),
  };
}

/** Soft orthogonality, "mean": the mean squared cosine of two different proxies. */
export function softOrthogonality(proxies) {
  const P = proxies.map(unit), pairs = P.length * (P.length - 1);
  let value = 0;
  const gradient = P.map((p, i) => {
    let sum = p.map(() => 0);
    P.forEach((q, j) => {
      if (i === j) return;
      const cosine = dot(p, q);
      value += cosine * cosine / pairs;
      sum = plus(sum, scaled(q, 4 * cosine / pairs));
    });
    return tangent(sum, p);
  });
  return { value, gradient };
}

/** Both terms, their sum, and what sobook.geometry says of the proxies. */
export function evaluate(scene) {
  const { proxies, images, labels, margin, scale, so_weight } = scene;
  const anchor = proxyAnchor(proxies, images, labels, margin, scale);
  const so = softOrthogonality(proxies), C = proxies.length, D = proxies[0].length;
  const P = proxies.map(unit);
  let coherence = 0;
  for (let i = 0; i < C; i++)
    for (let j = 0; j < i; j++) coherence = Math.max(coherence, Math.abs(dot(P[i], P[j])));
  return {
    proxy_anchor: anchor.value,
    soft_orthogonality: so.value,
    loss: anchor.value + so_weight * so.value,
    floor: Math.max(0, C * C / D - C) / (C * (C - 1)),
    coherence,
    welch_bound: C > D ? Math.sqrt((C - D) / (D * (C - 1))) : 0,
    anchorGradient: anchor.gradient,
    soGradient: so.gradient,
    imageGradient: anchor.imageGradient,
  };
}

/** One step of gradient descent; every vector goes back to unit length. */
export function step(scene) {
  const now = evaluate(scene), rate = scene.rate;
  const proxies = scene.proxies.map((p, c) => {
    const slope = plus(now.anchorGradient[c], scaled(now.soGradient[c], scene.so_weight));
    return unit(plus(unit(p), scaled(slope, -rate)));
  });
  const images = !scene.images_move ? scene.images
    : scene.images.map((x, b) => unit(plus(unit(x), scaled(now.imageGradient[b], -rate))));
  return { ...scene, proxies, images };
}

// A small seeded generator (mulberry32): the same scene for everybody.
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Proxies at random, and a few images around a random center for each class. */
export function newScene(classes, dim, seed = 0, each = 5) {
  const random = generator(1000 * seed + 10 * classes + dim);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const direction = () => unit(Array.from({ length: dim }, normal));
  const proxies = [], images = [], labels = [];
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

const COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#882255", "#999933"];
const ANCHOR = "#D55E00", ORTHOGONALITY = "#0072B2"; // PA and SO, as in every figure of the book
const REACH = 0.4; // radius of the circle, in sides of the canvas
const DEFAULTS = { num_classes: 4, dim: 2, so_weight: 20, margin: 0.1, scale: 32, rate: 0.004, images_move: false };
const SLIDERS = [
  ["num_classes", "classes", 3, 8, 1],
  ["so_weight", "λ (weight of SO)", 0, 200, 1],
  ["margin", "margin δ", 0, 0.5, 0.01],
  ["scale", "scale α", 1, 64, 1],
  ["rate", "step size", 0.0005, 0.02, 0.0005],
];

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

class Playground {
  constructor(model, el) {
    this.model = model;
    this.turn = [0.5, 0.4]; // how the sphere is turned: around, and towards the reader
    this.chosen = 0;
    this.scene = { ...DEFAULTS };
    for (const name of Object.keys(DEFAULTS)) this.scene[name] = model.get(name) ?? DEFAULTS[name];
    this.seed = model.get("seed") ?? 0;
    this.build(el);
    const given = model.get("proxies");
    this.restart(given && given.length ? given : null);
    this.listeners = {};
    for (const name of [...Object.keys(DEFAULTS), "proxies"]) {
      model.on(`change:${name}`, (this.listeners[name] = () => this.fromModel(name)));
    }
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.canvas);
  }

  build(el) {
    this.canvas = element("canvas", { class: "board", tabindex: "0", role: "application",
      "aria-label": "Proxies: drag them; or choose one with its number and turn it with the arrow keys" });
    this.numbers = element("dl", { class: "numbers", "aria-live": "off" });
    this.inputs = {};
    const controls = element("div", { class: "controls" });
    for (const [name, title, low, high, by] of SLIDERS) {
      const input = element("input", { type: "range", min: low, max: high, step: by, name, "aria-label": title });
      const output = element("output");
      input.oninput = () => this.change(name, Number(input.value));
      this.inputs[name] = { input, output };
      controls.append(element("label", {}, element("span", {}, title), input, output));
    }
    const moves = element("input", { type: "checkbox", name: "images_move" });
    moves.onchange = () => this.change("images_move", moves.checked);
    this.inputs.images_move = { input: moves };
    controls.append(element("label", { class: "check" }, moves, "images move too"));
    this.buttons = element("div", { class: "buttons" });
    const button = (title, name, action) => {
      const node = element("button", { type: "button", name }, title);
      node.onclick = action;
      this.buttons.append(node);
      return node;
    };
    button("Step", "step", () => this.step());
    this.runner = button("Run", "run", () => this.run(!this.running));
    button("New draw", "draw", () => { this.seed += 1; this.restart(); });
    this.shape = button("", "shape", () => this.change("dim", this.scene.dim === 2 ? 3 : 2));
    const key = element("p", { class: "key" });
    for (const [color, text] of [[ANCHOR, "→ descent of Proxy Anchor"], [ORTHOGONALITY, "→ descent of λ·SO"]]) {
      key.append(element("span", { style: `border-color:${color}` }, text));
    }
    key.append("Discs: proxies. Dots: images. Drag a disc; drag elsewhere to turn the sphere.");
    this.root = element("div", { class: "sobook-playground" }, this.canvas,
      element("div", { class: "side" }, this.numbers, controls, this.buttons, key));
    el.append(this.root);
    this.canvas.onpointerdown = (event) => this.press(event);
    this.canvas.onpointermove = (event) => this.drag(event);
    this.canvas.onpointerup = this.canvas.onpointercancel = () => { this.held = null; };
    this.canvas.onkeydown = (event) => this.key(event);
  }

  restart(proxies = null) {
    if (proxies) Object.assign(this.scene, { num_classes: proxies.length, dim: proxies[0].length });
    Object.assign(this.scene, newScene(this.scene.num_classes, this.scene.dim, this.seed));
    const [images, labels] = [this.model.get("images"), this.model.get("labels")];
    const fits = images && images.length && images[0].length === this.scene.dim
      && Math.max(...labels) < this.scene.num_classes;
    if (fits && proxies) Object.assign(this.scene, { images, labels });
    if (proxies) this.scene.proxies = proxies.map(unit);
    this.chosen = Math.min(this.chosen, this.scene.num_classes - 1);
    this.update();
  }

  change(name, value) {
    if (this.scene[name] === value) return;
    this.scene[name] = value;
    if (name === "num_classes" || name === "dim") this.restart();
    else this.update();
  }

  fromModel(name) {
    if (this.sending) return;
    if (name === "proxies") this.restart(this.model.get("proxies"));
    else this.change(name, this.model.get(name));
  }

  step() {
    this.scene = step(this.scene);
    this.update();
  }

  run(on) {
    this.running = on;
    this.runner.textContent = on ? "Stop" : "Run";
    const tick = () => {
      if (!this.running || !this.root.isConnected) return;
      this.step();
      requestAnimationFrame(tick);
    };
    if (on) requestAnimationFrame(tick);
  }

  // Everything follows from the scene: numbers, arrows, controls, and what Python sees.
  update() {
    this.now = evaluate(this.scene);
    const n = this.now, fixed = (value) => value.toFixed(4);
    const rows = [
      ["Proxy Anchor", fixed(n.proxy_anchor)], ["SO (mean)", fixed(n.soft_orthogonality)],
      ["floor of SO", fixed(n.floor)], ["loss = PA + λ·SO", fixed(n.loss)],
      ["coherence", fixed(n.coherence)], ["Welch bound", fixed(n.welch_bound)],
    ];
    this.numbers.replaceChildren(...rows.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value))));
    for (const [name, { input, output }] of Object.entries(this.inputs)) {
      if (input.type === "checkbox") input.checked = this.scene[name];
      else { input.value = this.scene[name]; output.textContent = this.scene[name]; }
    }
    this.shape.textContent = this.scene.dim === 2 ? "To the sphere" : "To the circle";
    this.draw();
    this.tell();
  }

  tell() {
    const { images, labels, ...scene } = this.scene;
    const { anchorGradient, soGradient, imageGradient, ...numbers } = this.now;
    this.sending = true;
    for (const [name, value] of Object.entries({ ...scene, images, labels, numbers })) this.model.set(name, value);
    this.sending = false;
    clearTimeout(this.later);
    this.later = setTimeout(() => this.model.save_changes(), 80); // not sixty times a second
  }

  // Where a direction stands on the canvas, and how near it is to the reader (1 near, −1 far).
  place(v) {
    const { size } = this, middle = size / 2, radius = size * REACH;
    if (v.length === 2) return [middle + radius * v[0], middle - radius * v[1], 1];
    const [x, y, z] = v, [a, b] = this.turn;
    const right = Math.cos(a) * x + Math.sin(a) * y, depth = -Math.sin(a) * x + Math.cos(a) * y;
    const up = Math.cos(b) * z + Math.sin(b) * depth, near = Math.sin(b) * z - Math.cos(b) * depth;
    return [middle + radius * right, middle - radius * up, near];
  }

  // The direction under the pointer: the inverse of `place`, on the half facing the reader.
  unplace(px, py) {
    const middle = this.size / 2, radius = this.size * REACH;
    let right = (px - middle) / radius, up = (middle - py) / radius;
    if (this.scene.dim === 2) return right || up ? unit([right, up]) : [1, 0];
    const reach = Math.hypot(right, up);
    if (reach > 1) { right /= reach; up /= reach; }
    const near = Math.sqrt(Math.max(0, 1 - right * right - up * up)), [a, b] = this.turn;
    const z = Math.cos(b) * up + Math.sin(b) * near, depth = Math.sin(b) * up - Math.cos(b) * near;
    return unit([Math.cos(a) * right - Math.sin(a) * depth, Math.sin(a) * right + Math.cos(a) * depth, z]);
  }

  draw() {
    const ratio = window.devicePixelRatio || 1, size = this.canvas.clientWidth || 420;
    if (this.canvas.width !== Math.round(size * ratio)) {
      this.canvas.width = this.canvas.height = Math.round(size * ratio);
    }
    this.size = size;
    const g = this.canvas.getContext("2d"), style = getComputedStyle(this.root);
    this.ink = style.getPropertyValue("--ink").trim() || "#222";
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, size, size);
    this.globe(g, size);
    const { proxies, images, labels, so_weight } = this.scene;
    images.forEach((x, b) => {
      const [px, py, near] = this.place(x);
      g.globalAlpha = near < 0 ? 0.25 : 0.9;
      g.fillStyle = COLORS[labels[b]];
      g.beginPath(); g.arc(px, py, size * 0.009, 0, 7); g.fill();
    });
    proxies.forEach((p, c) => {
      this.arrow(g, p, scaled(this.now.anchorGradient[c], -1), ANCHOR, 1);
      this.arrow(g, p, scaled(this.now.soGradient[c], -so_weight), ORTHOGONALITY, -1);
    });
    const order = proxies.map((p, c) => [c, this.place(p)]).sort((a, b) => a[1][2] - b[1][2]);
    for (const [c, [px, py, near]] of order) this.disc(g, c, px, py, near);
    g.globalAlpha = 1;
  }

  globe(g, size) {
    g.strokeStyle = this.ink; g.globalAlpha = 0.35; g.lineWidth = 1;
    g.beginPath(); g.arc(size / 2, size / 2, size * REACH, 0, 7); g.stroke();
    if (this.scene.dim === 2) return;
    const circles = [];
    for (let k = 0; k < 6; k++) {
      const a = k * Math.PI / 6;
      circles.push((t) => [Math.cos(a) * Math.cos(t), Math.sin(a) * Math.cos(t), Math.sin(t)]);
      const h = -Math.PI / 2 + (k + 0.5) * Math.PI / 6;
      circles.push((t) => [Math.cos(h) * Math.cos(t), Math.cos(h) * Math.sin(t), Math.sin(h)]);
    }
    for (const circle of circles) {
      for (let k = 0; k < 60; k++) {
        const [from, to] = [this.place(circle(k * Math.PI / 30)), this.place(circle((k + 1) * Math.PI / 30))];
        g.globalAlpha = from[2] < 0 ? 0.07 : 0.22;
        g.beginPath(); g.moveTo(from[0], from[1]); g.lineTo(to[0], to[1]); g.stroke();
      }
    }
  }

  // Lengths level off, or one steep gradient would leave the picture; direction is exact.
  arrow(g, at, slope, color, side) {
    const steep = Math.sqrt(dot(slope, slope));
    if (steep < 1e-4) return;
    const long = 0.5 * steep / (steep + 1.5);
    const from = this.place(at), to = this.place(plus(at, scaled(slope, long / steep)));
    const [dx, dy] = [to[0] - from[0], to[1] - from[1]], length = Math.hypot(dx, dy);
    if (length < 1) return;
    const [ux, uy] = [dx / length, dy / length], away = side * 3.5; // side by side, not one on the other
    const rim = this.size * 0.032; // from the edge of the disc, or short arrows hide under it
    const [x0, y0] = [from[0] + ux * rim - uy * away, from[1] + uy * rim + ux * away];
    const [x1, y1] = [x0 + dx, y0 + dy];
    g.globalAlpha = from[2] < 0 ? 0.35 : 1;
    g.strokeStyle = g.fillStyle = color; g.lineWidth = 3.5;
    g.beginPath(); g.moveTo(x0, y0); g.lineTo(x1, y1); g.stroke();
    g.beginPath(); g.moveTo(x1 + ux * 7, y1 + uy * 7);
    g.lineTo(x1 - uy * 6, y1 + ux * 6); g.lineTo(x1 + uy * 6, y1 - ux * 6); g.fill();
  }

  disc(g, c, px, py, near) {
    const radius = this.size * 0.032;
    g.globalAlpha = near < 0 ? 0.45 : 1;
    g.fillStyle = COLORS[c]; g.strokeStyle = this.ink; g.lineWidth = c === this.chosen ? 4 : 1.5;
    g.beginPath(); g.arc(px, py, radius, 0, 7); g.fill(); g.stroke();
    g.fillStyle = "#fff"; g.font = `bold ${Math.round(radius * 1.2)}px sans-serif`;
    g.strokeStyle = "#222"; g.lineWidth = 2.5; g.textAlign = "center"; g.textBaseline = "middle";
    g.strokeText(c + 1, px, py); g.fillText(c + 1, px, py);
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  press(event) {
    const [x, y] = this.at(event), reach = Math.max(24, this.size * 0.05);
    const found = this.scene.proxies
      .map((p, c) => [c, this.place(p)])
      .filter(([, [px, py]]) => Math.hypot(px - x, py - y) < reach)
      .sort((a, b) => b[1][2] - a[1][2] || Math.hypot(a[1][0] - x, a[1][1] - y) - Math.hypot(b[1][0] - x, b[1][1] - y));
    this.held = found.length ? { proxy: found[0][0] } : { turn: [x, y] };
    if (found.length) this.chosen = found[0][0];
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.focus();
    this.draw();
  }

  drag(event) {
    if (!this.held) return;
    const [x, y] = this.at(event);
    if (this.held.proxy !== undefined) {
      this.scene.proxies = this.scene.proxies.map((p, c) => (c === this.held.proxy ? this.unplace(x, y) : p));
      this.update();
    } else if (this.scene.dim === 3) {
      const [x0, y0] = this.held.turn;
      this.turn = [this.turn[0] - (x - x0) / 120, Math.max(-1.5, Math.min(1.5, this.turn[1] + (y - y0) / 120))];
      this.held.turn = [x, y];
      this.draw();
    }
  }

  key(event) {
    const sides = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const number = Number(event.key);
    if (number >= 1 && number <= this.scene.num_classes) this.chosen = number - 1;
    else if (event.key === "Enter") this.step();
    else if (event.key === " ") this.run(!this.running);
    else if (sides[event.key]) this.nudge(...sides[event.key]);
    else return;
    event.preventDefault();
    this.draw();
  }

  nudge(right, up) {
    const p = this.scene.proxies[this.chosen];
    let moved;
    if (p.length === 2) {
      const by = -0.05 * (right || up), [x, y] = p;
      moved = [x * Math.cos(by) - y * Math.sin(by), x * Math.sin(by) + y * Math.cos(by)];
    } else {
      const [px, py] = this.place(p);
      moved = this.unplace(px + right * this.size * 0.02, py - up * this.size * 0.02);
    }
    this.scene.proxies = this.scene.proxies.map((q, c) => (c === this.chosen ? moved : q));
    this.update();
  }

  stop() {
    this.running = false;
    clearTimeout(this.later);
    this.observer.disconnect();
    for (const [name, listener] of Object.entries(this.listeners)) this.model.off?.(`change:${name}`, listener);
  }
}

/** anywidget's hook. */
function render({ model, el }) {
  const playground = new Playground(model, el);
  return () => playground.stop();
}

/** The same without a kernel: settings come from `options`, nobody listens. */
export function mount(el, options = {}) {
  const values = { ...options };
  const model = { get: (name) => values[name], set: (name, value) => { values[name] = value; },
    save_changes() {}, on() {}, off() {} };
  return new Playground(model, el);
}

export default { render };
