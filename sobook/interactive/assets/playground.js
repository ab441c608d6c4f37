// The playground: proxies on a circle or a sphere, dragged by hand or moved by descent.
//
// First the arithmetic, tested against sobook/losses.py; then the drawing.
// Notation: C classes, D = 2 or 3 dimensions, B images.

// ---- arithmetic ------------------------------------------------------------------------------

const dot = (a, b) => a.reduce((sum, value, k) => sum + value * b[k], 0);
const scaled = (a, by) => a.map((value) => value * by);
const plus = (a, b) => a.map((value, k) => value + b[k]);
const unit = (a) => scaled(a, 1 / Math.sqrt(dot(a, a)));
// What of a gradient turns a unit vector; the rest would only change its length.
const tangent = (gradient, at) => plus(gradient, scaled(at, -dot(gradient, at)));

// log(1 + Σ exp z) and the weight of each term in its derivative, without overflow.
function logOnePlusSumExp(z) {
  const top = Math.max(0, ...z);
  const terms = z.map((value) => Math.exp(value - top));
  const total = terms.reduce((a, b) => a + b, Math.exp(-top));
  return { value: top + Math.log(total), weights: terms.map((term) => term / total) };
}

// Proxy Anchor (Kim et al., CVPR 2020): value, and its gradients for unit proxies and images.
function proxyAnchor(proxies, images, labels, margin, scale) {
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
        gradient[c] = plus(gradient[c], scaled(X[b], slope * sum.weights[k]));
        imageGradient[b] = plus(imageGradient[b], scaled(p, slope * sum.weights[k]));
      });
    }
  });
  return {
    value,
    gradient: gradient.map((g, c) => tangent(g, P[c])),
    imageGradient: imageGradient.map((g, b) => tangent(g, X[b])),
  };
}

// Soft orthogonality, "mean": the mean squared cosine of two different proxies.
function softOrthogonality(proxies) {
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

// Both terms, their sum, and what sobook.geometry says of the proxies.
function evaluate(scene) {
  const { proxies, images, labels, margin, scale, so_weight } = scene;
  const anchor = proxyAnchor(proxies, images, labels, margin, scale);
  const so = softOrthogonality(proxies), C = proxies.length, D = proxies[0].length;
  const P = proxies.map(unit);
  const cosines = P.flatMap((p, i) => P.slice(0, i).map((q) => Math.abs(dot(p, q))));
  return {
    proxy_anchor: anchor.value,
    soft_orthogonality: so.value,
    loss: anchor.value + so_weight * so.value,
    floor: Math.max(0, C * C / D - C) / (C * (C - 1)),
    coherence: Math.max(...cosines),
    welch_bound: C > D ? Math.sqrt((C - D) / (D * (C - 1))) : 0,
    anchorGradient: anchor.gradient,
    soGradient: so.gradient,
    imageGradient: anchor.imageGradient,
  };
}

// One step of gradient descent; every vector goes back to unit length.
function step(scene) {
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

// Proxies at random, and a few images around a random center for each class.
function newScene(classes, dim, seed = 0, each = 5) {
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

const ANCHOR = "#D55E00", ORTHOGONALITY = "#0072B2"; // PA and SO, as in every figure of the book
const REACH = 0.4; // radius of the circle, in sides of the canvas
const SLIDERS = [
  ["num_classes", "classes", 3, 8, 1],
  ["so_weight", "λ (weight of SO)", 0, 200, 1],
  ["margin", "margin δ", 0, 0.5, 0.01],
  ["scale", "scale α", 1, 64, 1],
  ["rate", "step size", 0.0005, 0.02, 0.0005],
];

class Playground {
  constructor(settings) {
    const { seed, ...scene } = settings;
    this.scene = { rate: 0.004, images_move: false, ...scene };
    this.seed = seed;
    this.turn = [0.5, 0.4]; // how the sphere is turned: around, and towards the reader
    this.chosen = 0;
    this.canvas = $("board");
    this.addControls();
    this.listen();
    this.restart();
    redrawWith(() => this.draw(), this.canvas);
  }

  addControls() {
    this.sliders = {};
    for (const [name, title, min, max, by] of SLIDERS) {
      const attributes = { type: "range", name, min, max, step: by, "aria-label": title };
      const input = element("input", attributes), output = element("output");
      input.oninput = () => this.change(name, Number(input.value));
      this.sliders[name] = { input, output };
      $("controls").append(element("label", {}, element("span", {}, title), input, output));
    }
    const moves = element("input", { type: "checkbox", name: "images_move" });
    moves.onchange = () => this.change("images_move", moves.checked);
    $("controls").append(element("label", { class: "check" }, moves, "images move too"));
    const redraw = () => { this.seed += 1; this.restart(); };
    const reshape = () => this.change("dim", this.scene.dim === 2 ? 3 : 2);
    this.runner = button("Run", () => this.run(!this.running), { name: "run" });
    this.shape = button("", reshape, { name: "shape" });
    const step = button("Step", () => this.step(), { name: "step" });
    $("buttons").append(step, this.runner, button("New draw", redraw, { name: "draw" }), this.shape);
  }

  listen() {
    this.canvas.onpointerdown = (event) => this.press(event);
    this.canvas.onpointermove = (event) => this.drag(event);
    this.canvas.onpointerup = this.canvas.onpointercancel = () => { this.held = null; };
    this.canvas.onkeydown = (event) => this.key(event);
  }

  restart() {
    Object.assign(this.scene, newScene(this.scene.num_classes, this.scene.dim, this.seed));
    this.chosen = Math.min(this.chosen, this.scene.num_classes - 1);
    this.update();
  }

  change(name, value) {
    this.scene[name] = value;
    if (name === "num_classes" || name === "dim") this.restart();
    else this.update();
  }

  setProxy(c, proxy) {
    this.scene.proxies = this.scene.proxies.map((p, k) => (k === c ? proxy : p));
    this.update();
  }

  step() {
    this.scene = step(this.scene);
    this.update();
  }

  run(on) {
    this.running = on;
    this.runner.textContent = on ? "Stop" : "Run";
    const tick = () => {
      if (!this.running) return;
      this.step();
      requestAnimationFrame(tick);
    };
    if (on) requestAnimationFrame(tick);
  }

  // Everything follows from the scene: numbers, arrows and controls.
  update() {
    const now = this.now = evaluate(this.scene);
    const rows = {
      "Proxy Anchor": now.proxy_anchor,
      "SO (mean)": now.soft_orthogonality,
      "floor of SO": now.floor,
      "loss = PA + λ·SO": now.loss,
      "coherence": now.coherence,
      "Welch bound": now.welch_bound,
    };
    $("numbers").replaceChildren(...Object.entries(rows).map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value.toFixed(4)))));
    for (const [name, { input, output }] of Object.entries(this.sliders)) {
      input.value = output.textContent = this.scene[name];
    }
    this.shape.textContent = this.scene.dim === 2 ? "To the sphere" : "To the circle";
    this.draw();
  }

  // Where a direction stands on the canvas, and how near it is to the reader (1 near, −1 far).
  place(v) {
    const middle = this.size / 2, radius = this.size * REACH;
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
    const reach = Math.max(1, Math.hypot(right, up));
    [right, up] = [right / reach, up / reach];
    const near = Math.sqrt(Math.max(0, 1 - right * right - up * up)), [a, b] = this.turn;
    const z = Math.cos(b) * up + Math.sin(b) * near, depth = Math.sin(b) * up - Math.cos(b) * near;
    const x = Math.cos(a) * right - Math.sin(a) * depth;
    return unit([x, Math.sin(a) * right + Math.cos(a) * depth, z]);
  }

  draw() {
    const [g, size] = context(this.canvas);
    this.size = size;
    this.ink = cssColor("--ink");
    this.drawGlobe(g);
    const { proxies, images, labels, so_weight } = this.scene;
    images.forEach((x, b) => {
      const [px, py, near] = this.place(x);
      g.globalAlpha = near < 0 ? 0.25 : 0.9;
      g.fillStyle = PALETTE[labels[b]];
      circle(g, [px, py], size * 0.009);
      g.fill();
    });
    proxies.forEach((p, c) => {
      this.drawArrow(g, p, scaled(this.now.anchorGradient[c], -1), ANCHOR, 1);
      this.drawArrow(g, p, scaled(this.now.soGradient[c], -so_weight), ORTHOGONALITY, -1);
    });
    const places = proxies.map((p, c) => [c, ...this.place(p)]);
    for (const [c, px, py, near] of places.sort((a, b) => a[3] - b[3])) {
      this.drawDisc(g, c, px, py, near);
    }
    g.globalAlpha = 1;
  }

  drawGlobe(g) {
    g.strokeStyle = this.ink;
    g.globalAlpha = 0.35;
    g.lineWidth = 1;
    circle(g, [this.size / 2, this.size / 2], this.size * REACH);
    g.stroke();
    if (this.scene.dim === 2) return;
    for (let k = 0; k < 6; k++) {
      const a = k * Math.PI / 6, h = -Math.PI / 2 + (k + 0.5) * Math.PI / 6;
      this.drawRing(g, (t) => [Math.cos(a) * Math.cos(t), Math.sin(a) * Math.cos(t), Math.sin(t)]);
      this.drawRing(g, (t) => [Math.cos(h) * Math.cos(t), Math.cos(h) * Math.sin(t), Math.sin(h)]);
    }
  }

  drawRing(g, point) {
    for (let k = 0; k < 60; k++) {
      const [x0, y0, near] = this.place(point(k * Math.PI / 30));
      const [x1, y1] = this.place(point((k + 1) * Math.PI / 30));
      g.globalAlpha = near < 0 ? 0.07 : 0.22;
      line(g, [x0, y0], [x1, y1]);
    }
  }

  // Lengths level off, or one steep gradient would leave the picture; direction is exact.
  drawArrow(g, at, slope, color, side) {
    const steepness = Math.sqrt(dot(slope, slope));
    if (steepness < 1e-4) return;
    const from = this.place(at), long = 0.5 / (steepness + 1.5);
    const to = this.place(plus(at, scaled(slope, long)));
    const [dx, dy] = [to[0] - from[0], to[1] - from[1]], length = Math.hypot(dx, dy);
    if (length < 1) return;
    const [ux, uy] = [dx / length, dy / length], away = side * 3.5; // side by side, not one on the other
    const rim = this.size * 0.032; // from the edge of the disc, or short arrows hide under it
    const [x0, y0] = [from[0] + ux * rim - uy * away, from[1] + uy * rim + ux * away];
    const [x1, y1] = [x0 + dx, y0 + dy];
    g.globalAlpha = from[2] < 0 ? 0.35 : 1;
    g.strokeStyle = g.fillStyle = color;
    g.lineWidth = 3.5;
    line(g, [x0, y0], [x1, y1]);
    g.beginPath();
    g.moveTo(x1 + ux * 7, y1 + uy * 7);
    g.lineTo(x1 - uy * 6, y1 + ux * 6);
    g.lineTo(x1 + uy * 6, y1 - ux * 6);
    g.fill();
  }

  drawDisc(g, c, px, py, near) {
    const radius = this.size * 0.032;
    g.globalAlpha = near < 0 ? 0.45 : 1;
    g.fillStyle = PALETTE[c];
    g.strokeStyle = this.ink;
    g.lineWidth = c === this.chosen ? 4 : 1.5;
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

  press(event) {
    const [x, y] = pointer(event, this.canvas), reach = Math.max(24, this.size * 0.05);
    const places = this.scene.proxies.map((p) => this.place(p));
    const gaps = places.map(([px, py]) => Math.hypot(px - x, py - y));
    const c = gaps.indexOf(Math.min(...gaps)), hit = gaps[c] < reach;
    this.held = hit ? { proxy: c } : { turn: [x, y] };
    if (hit) this.chosen = c;
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.focus();
    this.draw();
  }

  drag(event) {
    if (!this.held) return;
    const [x, y] = pointer(event, this.canvas);
    if (this.held.proxy !== undefined) {
      this.setProxy(this.held.proxy, this.unplace(x, y));
    } else if (this.scene.dim === 3) {
      const [x0, y0] = this.held.turn, [a, b] = this.turn;
      this.turn = [a - (x - x0) / 120, clamp(b + (y - y0) / 120, -1.5, 1.5)];
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
    if (p.length === 2) {
      const by = -0.05 * (right || up), [x, y] = p;
      const turned = [x * Math.cos(by) - y * Math.sin(by), x * Math.sin(by) + y * Math.cos(by)];
      this.setProxy(this.chosen, turned);
    } else {
      const [px, py] = this.place(p), by = this.size * 0.02;
      this.setProxy(this.chosen, this.unplace(px + right * by, py - up * by));
    }
  }
}

window.playground = { evaluate, step, newScene, board: new Playground(DATA) };
