// The lab's board: everything drawn on a canvas, the words below, and the pictures retrieved.
//
// `draw` shows `lab.live`, the last state of the worker, anew. Notation: C proxies, D dimensions.

let angles = [0.6, 0.35]; // from which the sphere is seen

const fontOf = (canvas) =>
  `${parseFloat(getComputedStyle(canvas).fontSize) * 0.8}px system-ui, sans-serif`;
const inner = (a, b) => a.reduce((total, value, d) => total + value * b[d], 0);

const groupOf = (c) => DATA.names.train[c].split(" ").at(-1);
const groups = [...new Set(DATA.names.train.map((_, c) => groupOf(c)))];
const color = (c) =>
  PALETTE[(groups.length > 30 ? c : groups.indexOf(groupOf(c))) % PALETTE.length];

const drawSoon = inNextFrame(draw);

function draw() {
  const { live } = lab;
  drawSpace(live);
  drawHeat(live);
  drawAngles(live);
  drawCurve(live, lab.guess.recall);
  drawLoss(live);
  showGauges();
  showWords(live);
  showPictures();
  if (live.epoch !== undefined && lab.running) $("progress").value = live.epoch / live.epochs;
}

// ---- space: the circle, the sphere, or two cones in any dimension ----------------------------

// In more than three dimensions a direction stands on the sphere as high as its angle with the
// mean proxy, which points up; where it stands around that axis only tells the classes apart.
function onCone(v, axis, turn) {
  const up = clamp(inner(v, axis), -1, 1);
  return [...[Math.cos(turn), Math.sin(turn)].map((x) => x * Math.sqrt(1 - up * up)), up];
}

function drawSpace(state) {
  const { D, means, classes, sampleClasses } = state;
  const [g, size] = context($("space"));
  const at = (v) => {
    const [right, up, near] = project(v, angles);
    return [size * (0.5 + 0.43 * right), size * (0.5 - 0.43 * up), near];
  };
  const axis = numerics.unitRows(means.proxy, D).unit;
  const proxies = rowsOf(numerics.unitRows(state.proxies, D).unit, D);
  const images = rowsOf(state.embeddings, D);
  const place = (v, c, shift) =>
    at(D > 3 ? onCone(v, axis, (2 * Math.PI * (c + shift)) / CLASSES.train) : v);
  g.strokeStyle = cssColor("--quiet");
  g.globalAlpha = 0.7;
  g.lineWidth = 1;
  circle(g, [size / 2, size / 2], 0.43 * size);
  g.stroke();
  if (D > 2) drawGlobe(g, at);
  if (D > 3) drawCones(g, at, axis, { "--pa": proxies, "--so": images });
  images.forEach((v, i) => {
    const [x, y, near] = place(v, sampleClasses[i], (i % 7) / 7 - 0.4);
    g.globalAlpha = near < 0 ? 0.2 : 0.7;
    disc(g, [x, y], size * 0.009, color(sampleClasses[i]));
  });
  if (D <= 3 && state.gradients) drawSlopes(g, at, state, proxies, size);
  g.lineWidth = 1.2;
  g.strokeStyle = cssColor("--ink");
  proxies.forEach((v, i) => {
    const [x, y, near] = place(v, classes[i], 0);
    const side = size * 0.024;
    g.globalAlpha = near < 0 ? 0.35 : 1;
    g.fillStyle = color(classes[i]);
    g.beginPath();
    g.rect(x - side / 2, y - side / 2, side, side);
    g.fill();
    g.stroke();
  });
  g.globalAlpha = 1;
  drawMeans(g, state, (v) => place(v, 0, 0), size);
}

// The circles on which proxies and images stand on average.
function drawCones(g, at, axis, kinds) {
  for (const [name, rows] of Object.entries(kinds)) {
    if (!rows.length) continue;
    const angleOf = (v) => Math.asin(clamp(inner(v, axis), -1, 1));
    const mean = rows.reduce((total, v) => total + angleOf(v) / rows.length, 0);
    g.strokeStyle = cssColor(name);
    g.lineWidth = 2.5;
    drawRing(g, at, parallel(mean), 0.9);
  }
}

function drawMeans(g, { means, D }, at, size) {
  const middle = size / 2;
  let taken = -99; // height of the label before
  g.font = `600 ${fontOf($("space"))}`;
  g.textBaseline = "middle";
  const drawMean = (name, mean, length, key) => {
    const [x, y] = at(numerics.unitRows(mean, D).unit).map((v) => middle + length * (v - middle));
    if (length < 0.04 || Math.hypot(x - middle, y - middle) < 6) return;
    g.strokeStyle = g.fillStyle = cssColor(key);
    arrow(g, [middle, middle], [x, y], 4);
    g.strokeStyle = cssColor("--paper");
    g.fillStyle = cssColor("--ink");
    g.lineWidth = 4;
    const text = `mean of the ${name}`;
    const left = clamp(x + 10, 2, size - g.measureText(text).width - 4);
    taken = Math.abs(y - taken) < 18 ? taken + 18 : y;
    g.strokeText(text, left, taken);
    g.fillText(text, left, taken);
  };
  drawMean("proxies", means.proxy, Math.sqrt(inner(means.proxy, means.proxy)), "--pa");
  drawMean("images", means.embedding, means.embedding_length, "--so");
}

// Where each loss would move the proxies; lengths level off, directions are exact.
function drawSlopes(g, at, { gradients, settings, D }, proxies, size) {
  const drawKind = (name, key, weight) => {
    g.strokeStyle = g.fillStyle = cssColor(key);
    rowsOf(gradients[name], D).forEach((row, i) => {
      const slope = row.map((value) => weight * value);
      const steepness = Math.sqrt(inner(slope, slope));
      if (steepness < 1e-4) return;
      const reach = 0.35 / (steepness + 0.3);
      const [x, y, near] = at(proxies[i]);
      const end = at(proxies[i].map((value, d) => value + reach * slope[d]));
      g.globalAlpha = near < 0 ? 0.2 : 0.85;
      if (Math.hypot(end[0] - x, end[1] - y) > 3) arrow(g, [x, y], end, size * 0.005);
    });
  };
  drawKind("proxy_anchor", "--pa", -1);
  drawKind("soft_orthogonality", "--so", -settings.so_weight);
  g.globalAlpha = 1;
}

function listenToSphere() {
  const turn = (_, change) => {
    if (lab.live.D > 2) angles = turned(angles, change);
    drawSoon();
  };
  onDrag($("space"), () => {}, turn);
  $("space").onkeydown = (event) => {
    const by = arrowKey(event);
    if (by) turn(null, [12 * by[0], 12 * by[1]]);
  };
}

// ---- proxies: heatmap and angles ---------------------------------------------------------------

function drawHeat({ cosines, C, D }) {
  const [g, size] = context($("heat"));
  const limit = D <= 3 ? 1 : 0.6;
  drawLegend($("ramp"), limit);
  drawCosines(g, cosines, C, limit, 0, size);
}

function drawAngles({ cosines, C, D }) {
  const [g, w, h] = context($("angles"));
  const bottom = h - 24;
  const bin = D <= 3 ? 6 : 3;
  const [low, high] = D <= 8 ? [0, 180] : [30, 150];
  const pairs = cosines.filter((_, k) => k % C < Math.floor(k / C));
  const heights = numerics.angleHistogram(pairs, bin);
  const density = (angle) => numerics.randomAngleDensity(clamp(angle, 1, 179), D);
  const chance = Array.from({ length: 177 }, (_, k) => density(k + 2));
  const top = Math.max(1.6 * Math.max(...chance), Math.min(0.25, 1.05 * Math.max(...heights)));
  const x = (angle) => 6 + ((w - 12) * (angle - low)) / (high - low);
  const y = (value) => bottom - (bottom - 22) * Math.min(1.02, value / top);
  g.font = fontOf($("angles"));
  drawChance(g, { x, y, low, high, bottom, density, step: high - low > 120 ? 45 : 30 });
  g.fillStyle = cssColor("--so");
  g.globalAlpha = 0.75;
  heights.forEach((height, k) => {
    const width = x(bin) - x(0) - 1;
    if (height > 0) g.fillRect(x(k * bin) + 0.5, y(height), width, bottom - y(height));
  });
  g.globalAlpha = 1;
  g.setLineDash([4, 4]);
  g.lineWidth = 1.5;
  const spread = (cosine, key, from) => {
    g.strokeStyle = cssColor(key);
    for (const side of [-cosine, cosine].map((value) => x(numerics.degrees(value))))
      line(g, [side, from], [side, bottom]);
  };
  spread(1 / Math.sqrt(D), "--ink", 18);
  if (C > D) spread(Math.sqrt((C - D) / (D * (C - 1))), "--bad", 30); // the Welch bound
  g.setLineDash([]);
  g.fillStyle = cssColor("--ink");
  g.textAlign = "center";
  g.fillText("±1/√D", x(90), 12);
}

// ---- curves ------------------------------------------------------------------------------------

// Axes of a small chart; returns where a point stands.
function chart(canvas, right, [low, high], digits) {
  const [g, w, h] = context(canvas);
  const left = 2.9 * parseFloat(fontOf(canvas));
  const at = ([epoch, value]) => [
    left + ((w - left - 12) * epoch) / (right || 1),
    h - 24 - ((h - 36) * (value - low)) / (high - low || 1),
  ];
  g.font = fontOf(canvas);
  g.fillStyle = cssColor("--quiet");
  g.strokeStyle = "#8884";
  g.textBaseline = "middle";
  g.textAlign = "right";
  for (let k = 0; k <= 3; k++) {
    const value = low + ((high - low) * k) / 3;
    const [x, y] = at([0, value]);
    line(g, [x, y], at([right, value]));
    g.fillText(value.toFixed(digits), x - 6, y);
  }
  g.textBaseline = "alphabetic";
  g.fillText(`${right} epochs`, w - 2, h - 6);
  g.textAlign = "left";
  g.fillText(0, left, h - 6);
  const curve = (points, key, width, dash = []) => {
    g.strokeStyle = g.fillStyle = key.startsWith("--") ? cssColor(key) : key;
    g.lineWidth = width;
    g.setLineDash(dash);
    line(g, ...points.map(at));
    g.setLineDash([]);
  };
  return { g, at, curve };
}

// `old`: curves of earlier runs; `guess`: the reader's prediction, or null.
function drawCurve({ curve: points, interval, epochs, old }, guess) {
  const earlier = old.flat();
  const values = [...points, ...earlier].map(([, recall]) => recall);
  values.push(frozen.recall_at_1, ...frozen.interval, ...(interval ?? []));
  if (guess !== null) values.push(guess);
  const low = Math.max(0, Math.min(...values) - 0.02);
  const high = Math.min(1, Math.max(...values) + 0.02);
  const most = Math.max(epochs, ...earlier.map(([epoch]) => epoch));
  const { g, at, curve } = chart($("curve"), most, [low, high], 2);
  const level = (value) => [
    [0, value],
    [most, value],
  ];
  const [corner, across] = [at([0, frozen.interval[1]]), at([most, frozen.interval[0]])];
  g.fillStyle = cssColor("--frozen");
  g.globalAlpha = 0.22;
  g.fillRect(...corner, across[0] - corner[0], across[1] - corner[1]);
  g.globalAlpha = 1;
  curve(level(frozen.recall_at_1), "--frozen", 3, [7, 4]);
  for (const run of old) curve(run, "#8888", 1.8);
  curve(points, "--so", 3);
  if (points.length) {
    const [epoch] = points.at(-1);
    disc(g, at(points.at(-1)), 4.5, cssColor("--so"));
    const ends = (interval ?? []).map((recall) => [epoch, recall]);
    curve(ends, "--so", 2);
  }
  if (guess !== null) curve(level(guess), "--ink", 2, [2, 4]);
}

function drawLoss({ losses, epochs, settings }) {
  const top = Math.max(1, ...losses.flatMap(([, anchor, so]) => [anchor, so]));
  const { curve } = chart($("loss-chart"), epochs, [0, top], top < 10 ? 1 : 0);
  const part = (k) => losses.map((row) => [row[0], row[k]]);
  curve(part(1), "--pa", 2.5);
  curve(part(2), "--so", 2.5, settings.so_weight > 0 ? [] : [4, 4]);
}

// ---- words -------------------------------------------------------------------------------------

// Below the canvases, and for who does not see them.
function showWords({ D, C, means, curve, losses, proxies, settings, threshold }) {
  const shape = numerics.describe(proxies, D);
  const [rms, mean] = [fixed(shape.rms_cosine), fixed(shape.mean_cosine)];
  const kind = D > 3 ? "Around the mean proxy" : D === 3 ? "On the sphere" : "On the circle";
  const length = means.embedding_length;
  const cosine = length > 0 ? `Cosine of the two means ${fixed(means.cosine, 2)}.` : "";
  const group = DATA.marks ? "genus" : "group";
  const colored = groups.length > 30 ? "" : `, in the color of their ${group}`;
  const how =
    D > 3
      ? "North is the mean proxy: the farther north, the more a proxy or an image points that way. East and west only tell classes apart."
      : `Thin arrows: where Proxy Anchor (orange) and λ·SO (blue) want each proxy.${D === 3 ? " Drag to turn." : ""}`;
  $("space-title").textContent = kind;
  $("space-words").textContent = `■ proxies, ● images${colored}. ${how} ${cosine}`;
  const sizes = `${C} proxies and images. ${cosine} Mean embedding ${fixed(length, 2)} long.`;
  $("space").ariaLabel = `${kind}: ${sizes}`;
  const largest = `largest ${fixed(shape.coherence)}`;
  $("heat").ariaLabel = `heatmap of ${C} by ${C} cosines: mean ${mean}, RMS ${rms}, ${largest}`;
  const bound = `; red: ${C} directions in ${D} dimensions cannot all stay within (Welch bound ${fixed(shape.welch_bound)})`;
  const words = `Gray: random directions, and dashed their spread, ±1/√D. RMS cosine ${rms}, mean ${mean}${shape.welch_bound > 0 ? bound : ""}.`;
  $("angles-words").textContent = words;
  $("angles").ariaLabel = `histogram of the angles between proxies. ${words}`;
  const [first, last] = [curve[0], curve.at(-1)];
  const course = last
    ? `${fixed(first[1])} at the start, ${fixed(last[1])} at epoch ${last[0]}; frozen encoder ${fixed(frozen.recall_at_1)}`
    : "no run yet";
  $("curve").ariaLabel = `Recall@1 over the epochs: ${course}`;
  const [anchor, so] = (losses.at(-1) ?? []).slice(1).map((value) => ` ${fixed(value, 2)}`);
  const learned = settings.threshold_lr > 0 && threshold !== undefined;
  $("loss-words").replaceChildren(
    element("span", { class: "keyed pa" }, `Proxy Anchor${anchor ?? ""}`),
    element("span", { class: "keyed so" }, `λ·SO${so ?? ""}`),
    learned ? `b = ${fixed(threshold, 2)}` : "",
  );
  $("loss-chart").ariaLabel = `loss: ${anchor ? `Proxy Anchor${anchor}, λ·SO${so}` : "no run yet"}`;
}

// ---- pictures ----------------------------------------------------------------------------------

// Field marks of a class of the aviary in words, those that are nothing special left out.
function marksOf(c) {
  const { names, values } = DATA.marks;
  const bills = ["short", "usual", "long"];
  const marks = names.flatMap((name, k) => {
    const value = name === "bill length" ? bills[values[c][k]] : values[c][k];
    return ["none", "plain", "dark", 0, "usual"].includes(value) ? [] : [`${name} ${value}`];
  });
  return marks.join(", ");
}

// What separates a query from the species wrongly retrieved for it, one line each.
function mistakes(query, retrieved) {
  if (!DATA.marks) return [];
  const { names, values, genera } = DATA.marks;
  const own = TEST_LABELS[query];
  const wrong = new Set(retrieved.map((i) => TEST_LABELS[i]).filter((c) => c !== own));
  return [...wrong].slice(0, 3).map((c) => {
    const differing = names.filter((_, k) => values[c][k] !== values[own][k]).join(", ");
    const genus = genera[c] === genera[own] ? "same genus" : "another genus";
    const text = `✗ ${DATA.names.test[c]}: ${genus}, other ${differing}`;
    return element("p", { class: "mistake" }, text);
  });
}

// A test image; as an answer to the query it is framed and marked.
function bird(i, query) {
  const name = DATA.names.test[TEST_LABELS[i]];
  const relevant = TEST_LABELS[i] === TEST_LABELS[query];
  const verdict = query === undefined ? "query" : relevant ? "relevant" : "irrelevant";
  const mark = { query: "", relevant: "✓", irrelevant: "✗" }[verdict];
  const look = { class: `bird ${verdict}`, "aria-label": `${name}, ${verdict}`, title: name };
  const node = button(mark, () => askFor(i), look);
  if (DATA.pictures) {
    const { columns, rows } = DATA.pictures;
    const at = (k, count) => (count > 1 ? (100 * k) / (count - 1) : 0);
    const row = Math.floor(i / columns);
    node.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
    node.style.backgroundPosition = `${at(i % columns, columns)}% ${at(row, rows)}%`;
  } else {
    node.classList.add("text");
    node.append(` ${name}`);
  }
  return node;
}

function askFor(i) {
  lab.query = i;
  showPictures();
}

function showPictures() {
  const { neighbors, query } = lab;
  const nearest = neighbors ? Array.from(neighbors.slice(6 * query, 6 * query + 6)) : [];
  const shown = JSON.stringify([query, nearest]);
  if (lab.shown === shown || DATA.step) return; // new elements would lose the focus
  lab.shown = shown;
  const own = TEST_LABELS[query];
  const paragraph = (text) => element("p", {}, text);
  const row = (...birds) => element("div", { class: "row" }, ...birds);
  const marks = paragraph(DATA.marks ? marksOf(own) : "");
  const answers = (title, images) => [
    paragraph(title),
    row(...images.map((i) => bird(i, query))),
    ...mistakes(query, images),
  ];
  $("pictures").replaceChildren(
    paragraph(`Query: ${DATA.names.test[own]}`),
    element("div", { class: "query" }, row(bird(query)), marks),
    ...answers("Nearest, by the frozen encoder", DATA.nearest[query]),
    ...answers(`Nearest, by the head${neighbors ? "" : ": train first"}`, nearest),
  );
}
