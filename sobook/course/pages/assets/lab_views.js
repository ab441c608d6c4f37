// The lab's board: everything drawn on a canvas. Each view gets the last state of the worker and
// draws it anew. Notation: C proxies, D dimensions.

const views = (() => {
  // RdBu_r, as in figures.proxy_heatmaps.
  const RAMP = [
    "#053061",
    "#2166ac",
    "#4393c3",
    "#92c5de",
    "#d1e5f0",
    "#f7f7f7",
    "#fddbc7",
    "#f4a582",
    "#d6604d",
    "#b2182b",
    "#67001f",
  ];
  const turn = { angles: [0.6, 0.35] }; // of the sphere
  const cells = element("canvas").getContext("2d");
  let colors;

  const fontOf = (canvas) =>
    `${parseFloat(getComputedStyle(canvas).fontSize) * 0.8}px system-ui, sans-serif`;
  const rowOf = (rows, i, D) => rows.subarray(i * D, (i + 1) * D);
  const inner = (a, b) => a.reduce((total, value, d) => total + value * b[d], 0);

  function heatColors() {
    const g = $("ramp").getContext("2d"),
      ramp = g.createLinearGradient(0, 0, 200, 0);
    RAMP.forEach((color, k) => ramp.addColorStop(k / (RAMP.length - 1), color));
    g.fillStyle = ramp;
    g.fillRect(0, 0, 200, 1);
    return new Uint32Array(g.getImageData(0, 0, 200, 1).data.buffer);
  }

  // ---- space: the circle, the sphere, or two cones in any dimension ----------------------------

  // Where a direction stands, in units of the radius, and how near it is (1 near, −1 far).
  function place(v) {
    if (v.length === 2) return [v[0], v[1], 1];
    const [x, y, z] = v,
      [a, b] = turn.angles;
    const right = Math.cos(a) * x + Math.sin(a) * y,
      depth = -Math.sin(a) * x + Math.cos(a) * y;
    return [right, Math.cos(b) * z + Math.sin(b) * depth, Math.sin(b) * z - Math.cos(b) * depth];
  }

  // In more than three dimensions a direction stands on the sphere as high as its angle with the
  // mean proxy, which points up, says; where it stands around that axis only tells the classes apart.
  const onCone = (axis, C) => (v, c, shift) => {
    const up = clamp(inner(v, axis), -1, 1),
      out = Math.sqrt(1 - up * up);
    const around = (2 * Math.PI * (c + shift)) / C;
    return place([out * Math.cos(around), out * Math.sin(around), up]);
  };

  function drawSpace(state) {
    const [g, size] = context($("space")),
      D = state.D,
      radius = 0.43 * size;
    const at = ([x, y, near]) => [size / 2 + radius * x, size / 2 - radius * y, near];
    const { unit } = numerics.unitRows(state.proxies, D);
    const axis = numerics.unitRows(state.means.proxy, D).unit;
    const where = D > 3 ? onCone(axis, CLASSES.train) : place;
    g.strokeStyle = cssColor("--quiet");
    g.globalAlpha = 0.7;
    g.lineWidth = 1;
    circle(g, [size / 2, size / 2], radius);
    g.stroke();
    if (D > 2) drawGrid(g, at);
    if (D > 3) drawCones(g, state, unit, axis, at);
    state.sampleClasses.forEach((c, i) => {
      const [x, y, near] = at(where(rowOf(state.sample, i, D), c, (i % 7) / 7 - 0.4));
      g.globalAlpha = near < 0 ? 0.2 : 0.7;
      g.fillStyle = state.color(c);
      circle(g, [x, y], size * 0.009);
      g.fill();
    });
    if (D <= 3 && state.gradients) drawGradients(g, state, unit, (v) => at(place(v)), size);
    g.lineWidth = 1.2;
    state.classes.forEach((c, i) => {
      const [x, y, near] = at(where(rowOf(unit, i, D), c, 0));
      g.globalAlpha = near < 0 ? 0.35 : 1;
      g.fillStyle = state.color(c);
      g.strokeStyle = cssColor("--ink");
      const side = size * 0.024;
      g.beginPath();
      g.rect(x - side / 2, y - side / 2, side, side);
      g.fill();
      g.stroke();
    });
    g.globalAlpha = 1;
    drawAxes(g, state, (v) => at(where(v, 0, 0)), size);
  }

  // The circles on which proxies and images stand on average.
  function drawCones(g, state, unit, axis, at) {
    const kinds = [
      [unit, state.classes.length, "--pa"],
      [state.sample, state.sampleClasses.length, "--so"],
    ];
    for (const [rows, number, color] of kinds) {
      let angle = 0;
      for (let i = 0; i < number; i++)
        angle += Math.acos(clamp(inner(rowOf(rows, i, state.D), axis), -1, 1)) / number;
      g.strokeStyle = cssColor(color);
      g.lineWidth = 2.5;
      if (number)
        drawRing(
          g,
          at,
          (t) => [Math.sin(angle) * Math.cos(t), Math.sin(angle) * Math.sin(t), Math.cos(angle)],
          0.9,
        );
    }
    g.strokeStyle = cssColor("--quiet");
  }

  function drawAxes(g, { means, D }, at, size) {
    const length = Math.sqrt(inner(means.proxy, means.proxy)),
      middle = [size / 2, size / 2];
    const arrows = [
      ["proxies", means.proxy, length, "--pa"],
      ["images", means.embedding, means.embedding_length, "--so"],
    ];
    g.font = `600 ${fontOf($("space"))}`;
    g.textBaseline = "middle";
    let taken = -99; // height of the label before
    for (const [name, mean, long, color] of arrows) {
      const [u, v] = at(numerics.unitRows(mean, D).unit);
      const x = middle[0] + long * (u - middle[0]),
        y = middle[1] + long * (v - middle[1]);
      if (long < 0.04 || Math.hypot(x - middle[0], y - middle[1]) < 6) continue;
      g.strokeStyle = g.fillStyle = cssColor(color);
      arrow(g, middle, [x, y], 4);
      g.strokeStyle = cssColor("--paper");
      g.fillStyle = cssColor("--ink");
      g.lineWidth = 4;
      g.textAlign = "left";
      const text = `mean of the ${name}`,
        left = clamp(x + 10, 2, size - g.measureText(text).width - 4);
      const height = Math.abs(y - taken) < 18 ? taken + 18 : y;
      taken = height;
      g.strokeText(text, left, height);
      g.fillText(text, left, height);
    }
  }

  function arrow(g, from, to, width) {
    const angle = Math.atan2(to[1] - from[1], to[0] - from[0]);
    const head = Math.min(3 * width, Math.hypot(to[0] - from[0], to[1] - from[1]));
    if (head < 1) return;
    g.lineWidth = width;
    line(g, from, [to[0] - head * Math.cos(angle) * 0.8, to[1] - head * Math.sin(angle) * 0.8]);
    g.save();
    g.translate(...to);
    g.rotate(angle);
    g.fill(new Path2D(`M 0 0 l ${-head} ${0.55 * head} v ${-1.1 * head} z`));
    g.restore();
  }

  // Where each loss would move the proxies; lengths level off, directions are exact.
  function drawGradients(g, state, unit, at, size) {
    const kinds = [
      ["proxy_anchor", "--pa", -1],
      ["soft_orthogonality", "--so", -state.so_weight],
    ];
    state.classes.forEach((_, i) => {
      const p = rowOf(unit, i, state.D),
        from = at(p);
      for (const [name, color, weight] of kinds) {
        const slope = rowOf(state.gradients[name], i, state.D).map((value) => weight * value);
        const steepness = Math.sqrt(inner(slope, slope));
        if (steepness < 1e-4) continue;
        const to = at(p.map((value, d) => value + (0.35 * slope[d]) / (steepness + 0.3)));
        g.globalAlpha = from[2] < 0 ? 0.2 : 0.85;
        g.strokeStyle = g.fillStyle = cssColor(color);
        if (Math.hypot(to[0] - from[0], to[1] - from[1]) > 3)
          arrow(g, from.slice(0, 2), to.slice(0, 2), size * 0.005);
      }
    });
    g.globalAlpha = 1;
  }

  function drawRing(g, at, point, alpha) {
    for (let k = 0; k < 48; k++) {
      const [x, y, near] = at(place(point((k * Math.PI) / 24)));
      const [u, v] = at(place(point(((k + 1) * Math.PI) / 24)));
      g.globalAlpha = near < 0 ? 0.3 * alpha : alpha;
      line(g, [x, y], [u, v]);
    }
  }

  function drawGrid(g, at) {
    for (let k = 0; k < 6; k++) {
      const a = (k * Math.PI) / 6,
        h = -Math.PI / 2 + ((k + 0.5) * Math.PI) / 6;
      drawRing(
        g,
        at,
        (t) => [Math.cos(a) * Math.cos(t), Math.sin(a) * Math.cos(t), Math.sin(t)],
        0.25,
      );
      drawRing(
        g,
        at,
        (t) => [Math.cos(h) * Math.cos(t), Math.cos(h) * Math.sin(t), Math.sin(h)],
        0.25,
      );
    }
  }

  // ---- proxies: heatmap and angles ---------------------------------------------------------------

  const heatLimit = (D) => (D <= 3 ? 1 : 0.6);

  function drawHeat({ cosines, C, D }) {
    colors ??= heatColors();
    const [g, size] = context($("heat")),
      limit = heatLimit(D);
    cells.canvas.width = cells.canvas.height = C;
    const picture = cells.createImageData(C, C),
      pixels = new Uint32Array(picture.data.buffer);
    cosines.forEach((value, k) => {
      pixels[k] = colors[clamp(Math.round(99.5 * (1 + value / limit)), 0, 199)];
    });
    for (let c = 0; c < C; c++) pixels[c * C + c] = 0xff969696; // the diagonal, gray
    cells.putImageData(picture, 0, 0);
    g.imageSmoothingEnabled = false;
    g.drawImage(cells.canvas, 0, 0, size, size);
    $("least").textContent = `−${limit}`;
    $("most").textContent = `+${limit}`;
  }

  function drawAngles({ cosines, C, D }) {
    const [g, w, h] = context($("angles")),
      bottom = h - 24,
      bin = D <= 3 ? 6 : 3;
    const [low, high] = D <= 8 ? [0, 180] : [30, 150];
    const pairs = [];
    for (let i = 0; i < C; i++) for (let j = 0; j < i; j++) pairs.push(cosines[i * C + j]);
    const heights = numerics.angleHistogram(pairs, bin);
    const chance = Array.from({ length: 181 }, (_, angle) => numerics.randomAngleDensity(angle, D));
    const top = Math.max(
      1.6 * Math.max(...chance.slice(2, 179)),
      Math.min(0.25, 1.05 * Math.max(...heights)),
    );
    const x = (angle) => 6 + ((w - 12) * (angle - low)) / (high - low);
    const y = (density) => bottom - (bottom - 22) * Math.min(1.02, density / top);
    g.fillStyle = "#88888855";
    g.beginPath();
    g.moveTo(x(low), bottom);
    for (let angle = Math.max(low, 1); angle < Math.min(high, 180); angle++)
      g.lineTo(x(angle), y(chance[angle]));
    g.lineTo(x(high), bottom);
    g.fill();
    g.fillStyle = cssColor("--so");
    g.globalAlpha = 0.75;
    heights.forEach((height, k) => {
      if (height > 0)
        g.fillRect(x(k * bin) + 0.5, y(height), x(bin) - x(0) - 1, bottom - y(height));
    });
    g.globalAlpha = 1;
    g.font = fontOf($("angles"));
    g.textAlign = "center";
    g.setLineDash([4, 4]);
    g.lineWidth = 1.5;
    g.fillStyle = g.strokeStyle = cssColor("--ink");
    const spread = 1 / Math.sqrt(D),
      welch = Math.sqrt(Math.max(0, C - D) / (D * (C - 1)));
    for (const cosine of [-spread, spread])
      line(g, [x(numerics.degrees(cosine)), 18], [x(numerics.degrees(cosine)), bottom]);
    g.fillText("±1/√D", x(90), 12);
    if (welch > 0) {
      g.strokeStyle = cssColor("--bad");
      for (const cosine of [-welch, welch])
        line(g, [x(numerics.degrees(cosine)), 30], [x(numerics.degrees(cosine)), bottom]);
    }
    g.setLineDash([]);
    const by = high - low > 120 ? 45 : 30;
    for (let d = Math.ceil(low / by) * by; d <= high; d += by) {
      g.textAlign = d === low ? "left" : d === high ? "right" : "center";
      g.fillText(`${d}°`, x(d), h - 6);
    }
  }

  // ---- curves ------------------------------------------------------------------------------------

  // Axes of a small chart; returns where a value stands.
  function chart(canvas, [left, right], [low, high], digits) {
    const [g, w, h] = context(canvas),
      font = fontOf(canvas),
      margin = 2.9 * parseFloat(font);
    const x = (value) => margin + ((w - margin - 12) * (value - left)) / (right - left || 1);
    const y = (value) => h - 24 - ((h - 36) * (value - low)) / (high - low || 1);
    g.font = font;
    g.fillStyle = cssColor("--quiet");
    g.strokeStyle = "#8884";
    g.lineWidth = 1;
    g.textBaseline = "middle";
    g.textAlign = "right";
    for (let k = 0; k <= 3; k++) {
      const value = low + ((high - low) * k) / 3;
      line(g, [margin, y(value)], [w - 12, y(value)]);
      g.fillText(value.toFixed(digits), margin - 6, y(value));
    }
    g.textBaseline = "alphabetic";
    g.textAlign = "left";
    g.fillText(left, x(left), h - 6);
    g.textAlign = "right";
    g.fillText(`${right} epochs`, x(right) + 10, h - 6);
    return { g, x, y, w, h, margin };
  }

  function path(g, points, x, y) {
    g.beginPath();
    for (const [a, b] of points) g.lineTo(x(a), y(b));
    g.stroke();
  }

  // `old`: curves of earlier runs; `guess`: the reader's prediction, if there is one.
  function drawCurve({ curve, interval, epochs, frozen, old, guess }) {
    const values = [
      ...curve.map(([, recall]) => recall),
      frozen.recall_at_1,
      ...frozen.interval,
      ...(interval ?? []),
      ...old.flat().map(([, recall]) => recall),
      ...(guess === null ? [] : [guess]),
    ];
    const range = [
      Math.max(0, Math.min(...values) - 0.02),
      Math.min(1, Math.max(...values) + 0.02),
    ];
    const most = Math.max(epochs, ...old.flat().map(([epoch]) => epoch));
    const { g, x, y, w, margin } = chart($("curve"), [0, most], range, 2);
    const [low, high] = frozen.interval;
    g.fillStyle = cssColor("--frozen");
    g.globalAlpha = 0.22;
    g.fillRect(margin, y(high), w - 12 - margin, y(low) - y(high));
    g.globalAlpha = 1;
    g.strokeStyle = cssColor("--frozen");
    g.lineWidth = 3;
    g.setLineDash([7, 4]);
    line(g, [margin, y(frozen.recall_at_1)], [w - 12, y(frozen.recall_at_1)]);
    g.setLineDash([]);
    g.strokeStyle = "#8888";
    g.lineWidth = 1.8;
    for (const points of old) path(g, points, x, y);
    g.strokeStyle = g.fillStyle = cssColor("--so");
    g.lineWidth = 3;
    path(g, curve, x, y);
    if (curve.length) {
      const [epoch, recall] = curve[curve.length - 1];
      circle(g, [x(epoch), y(recall)], 4.5);
      g.fill();
      g.lineWidth = 2;
      if (interval) line(g, [x(epoch), y(interval[0])], [x(epoch), y(interval[1])]);
    }
    if (guess !== null) {
      g.strokeStyle = cssColor("--ink");
      g.lineWidth = 2;
      g.setLineDash([2, 4]);
      line(g, [margin, y(guess)], [w - 12, y(guess)]);
      g.setLineDash([]);
    }
  }

  function drawLoss({ losses, epochs, so_weight }) {
    const values = losses.flatMap(([, anchor, so]) => [anchor, so]).filter(Number.isFinite);
    const top = Math.max(1, ...values),
      digits = top < 10 ? 1 : 0;
    const { g, x, y } = chart($("loss-chart"), [0, epochs], [0, top], digits);
    g.lineWidth = 2.5;
    g.strokeStyle = cssColor("--pa");
    path(
      g,
      losses.map(([epoch, anchor]) => [epoch, anchor]),
      x,
      y,
    );
    g.strokeStyle = cssColor("--so");
    g.setLineDash(so_weight > 0 ? [] : [4, 4]);
    const so = losses.filter((one) => Number.isFinite(one[2]));
    path(
      g,
      so.map((one) => [one[0], one[2]]),
      x,
      y,
    );
    g.setLineDash([]);
  }

  return { drawSpace, drawHeat, drawAngles, drawCurve, drawLoss, turn };
})();
