// The arithmetic of the pages: losses, geometry, retrieval, and a trainer of heads on frozen
// features. No DOM: it runs in a page, in a worker and in tests alike, which compare it with
// sobook/losses.py, training/loop.py, geometry.py and retrieval.py. Start with `Trainer.step`.
//
// Matrices are typed arrays, row by row; a call names the length D of a row, and the number of
// rows follows. Parameters are float64: on the circle float32 loses gradients to cancellation.
// Notation: N images, B of them in a batch, F features, C classes, D dimensions, X embeddings
// (B, D), P proxies (C, D); losses take both with rows of unit length.

const numerics = (() => {
  "use strict";

  // ---- matrices ------------------------------------------------------------------------------

  // a (m, k) times the transpose of b (n, k), as (m, n). Sixteen sums at a time stay in registers;
  // each is taken in order and in double precision, so equal rows give equal sums.
  function product(a, b, k, out = new a.constructor((a.length / k) * (b.length / k))) {
    const m = a.length / k;
    const n = b.length / k;
    const fullRows = m - (m % 4);
    const fullColumns = n - (n % 4);
    for (let i = 0; i < fullRows; i += 4) {
      for (let j = 0; j < fullColumns; j += 4) productTile(a, b, k, out, n, i, j);
      for (let j = fullColumns; j < n; j++) productColumn(a, b, k, out, n, i, i + 4, j);
    }
    for (let j = 0; j < n; j++) productColumn(a, b, k, out, n, fullRows, m, j);
    return out;
  }

  // biome-ignore format: a tile of 4 × 4 sums reads as a table
  function productTile(a, b, k, out, n, i, j) {
    const a0 = i * k, a1 = a0 + k, a2 = a1 + k, a3 = a2 + k;
    const b0 = j * k, b1 = b0 + k, b2 = b1 + k, b3 = b2 + k;
    let s00 = 0, s01 = 0, s02 = 0, s03 = 0;
    let s10 = 0, s11 = 0, s12 = 0, s13 = 0;
    let s20 = 0, s21 = 0, s22 = 0, s23 = 0;
    let s30 = 0, s31 = 0, s32 = 0, s33 = 0;
    for (let l = 0; l < k; l++) {
      const x0 = a[a0 + l], x1 = a[a1 + l], x2 = a[a2 + l], x3 = a[a3 + l];
      const y0 = b[b0 + l], y1 = b[b1 + l], y2 = b[b2 + l], y3 = b[b3 + l];
      s00 += x0 * y0; s01 += x0 * y1; s02 += x0 * y2; s03 += x0 * y3;
      s10 += x1 * y0; s11 += x1 * y1; s12 += x1 * y2; s13 += x1 * y3;
      s20 += x2 * y0; s21 += x2 * y1; s22 += x2 * y2; s23 += x2 * y3;
      s30 += x3 * y0; s31 += x3 * y1; s32 += x3 * y2; s33 += x3 * y3;
    }
    const o0 = i * n + j, o1 = o0 + n, o2 = o1 + n, o3 = o2 + n;
    out[o0] = s00; out[o0 + 1] = s01; out[o0 + 2] = s02; out[o0 + 3] = s03;
    out[o1] = s10; out[o1 + 1] = s11; out[o1 + 2] = s12; out[o1 + 3] = s13;
    out[o2] = s20; out[o2 + 1] = s21; out[o2 + 2] = s22; out[o2 + 3] = s23;
    out[o3] = s30; out[o3 + 1] = s31; out[o3 + 2] = s32; out[o3 + 3] = s33;
  }

  function productColumn(a, b, k, out, n, first, last, j) {
    for (let i = first; i < last; i++) {
      let sum = 0;
      for (let l = 0; l < k; l++) sum += a[i * k + l] * b[j * k + l];
      out[i * n + j] = sum;
    }
  }

  function transposed(a, columns) {
    const rows = a.length / columns;
    const out = new a.constructor(a.length);
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) out[j * rows + i] = a[i * columns + j];
    }
    return out;
  }

  // Sums of rows (k, D) with weights (m, k): (m, D).
  const weighted = (weights, rows, D) => product(weights, transposed(rows, D), rows.length / D);

  // The chosen rows, one after the other.
  function gather(matrix, columns, rows) {
    const out = new matrix.constructor(rows.length * columns);
    for (let i = 0; i < rows.length; i++) {
      out.set(matrix.subarray(rows[i] * columns, (rows[i] + 1) * columns), i * columns);
    }
    return out;
  }

  function meanRow(rows, D) {
    const mean = new Float64Array(D);
    for (let i = 0; i < rows.length; i++) mean[i % D] += (rows[i] * D) / rows.length;
    return mean;
  }

  // Rows minus their mean.
  function centered(rows, D) {
    const mean = meanRow(rows, D);
    return rows.map((value, i) => value - mean[i % D]);
  }

  const norm = (vector) => Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));

  // Rows scaled to unit length, and their lengths.
  function unitRows(rows, D) {
    const unit = new rows.constructor(rows.length);
    const lengths = new Float64Array(rows.length / D);
    for (let i = 0, at = 0; i < lengths.length; i++, at += D) {
      let sum = 0;
      for (let d = at; d < at + D; d++) sum += rows[d] * rows[d];
      lengths[i] = Math.sqrt(sum);
      const length = Math.max(lengths[i], 1e-12);
      for (let d = at; d < at + D; d++) unit[d] = rows[d] / length;
    }
    return { unit, lengths };
  }

  // In place: what of a gradient turns unit rows (the rest would only change their lengths), and,
  // divided by the lengths, the gradient of the rows that `unitRows` got.
  function tangent(gradient, unit, D, lengths = null) {
    for (let i = 0, at = 0; at < unit.length; i++, at += D) {
      let along = 0;
      for (let d = at; d < at + D; d++) along += gradient[d] * unit[d];
      const length = lengths ? Math.max(lengths[i], 1e-12) : 1;
      for (let d = at; d < at + D; d++) gradient[d] = (gradient[d] - along * unit[d]) / length;
    }
    return gradient;
  }

  // ---- chance --------------------------------------------------------------------------------

  // A small seeded generator (mulberry32) of numbers in [0, 1): the same for everybody.
  function generator(seed) {
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  const normal = (random) =>
    Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const normals = (random, n) => Float64Array.from({ length: n }, () => normal(random));

  // The whole numbers below n in random order.
  function shuffled(random, n) {
    const order = Int32Array.from({ length: n }, (_, i) => i);
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  // The rows in batches of an epoch, at random; those left over, too few for a batch, wait.
  function batchPlan(random, rows, B) {
    if (B > rows.length) {
      throw new Error(`batch_size is ${B}, but there are only ${rows.length} training images.`);
    }
    const order = shuffled(random, rows.length).map((k) => rows[k]);
    const count = Math.floor(rows.length / B);
    return Array.from({ length: count }, (_, i) => order.slice(i * B, (i + 1) * B));
  }

  // (D, F) with orthonormal rows (columns where D > F), as nn.init.orthogonal_.
  function orthogonal(random, D, F) {
    const length = Math.max(D, F);
    const q = new Float64Array(D * F);
    for (let i = 0; i < Math.min(D, F); i++) {
      const row = q.subarray(i * length, (i + 1) * length);
      row.set(normals(random, length));
      for (let j = 0; j < i; j++) {
        const other = q.subarray(j * length, (j + 1) * length);
        const along = row.reduce((sum, value, l) => sum + value * other[l], 0);
        for (let l = 0; l < length; l++) row[l] -= along * other[l];
      }
      row.set(unitRows(row, length).unit);
    }
    return D > F ? transposed(q, length) : q;
  }

  // ---- losses --------------------------------------------------------------------------------
  // Each gives its value and the gradients of unit-length X and P, not yet tangent to the sphere.

  // Proxy Anchor (Kim et al., CVPR 2020), as sobook.ProxyAnchor; with the gradient of b.
  function proxyAnchor(X, labels, P, D, { margin, scale, threshold }) {
    const [B, C] = [X.length / D, P.length / D];
    const cosines = product(P, X, D); // (C, B)
    const slopes = new X.constructor(C * B); // exponents, then terms, then d loss / d cosine
    let [value, threshold_gradient] = [0, 0];
    // log(1 + Σ exp z) over the images of class c, which are pulled, or over all others.
    const addTerm = (c, pulled, count) => {
      const at = c * B;
      let top = 0; // the exponent of the 1
      for (let b = 0; b < B; b++) {
        if ((labels[b] === c) !== pulled) continue;
        const s = cosines[at + b] - threshold;
        slopes[at + b] = scale * (pulled ? margin - s : margin + s);
        top = Math.max(top, slopes[at + b]);
      }
      let sum = Math.exp(-top);
      for (let b = 0; b < B; b++) {
        if ((labels[b] === c) === pulled) sum += slopes[at + b] = Math.exp(slopes[at + b] - top);
      }
      value += (top + Math.log(sum)) / count;
      const by = (pulled ? -scale : scale) / (count * sum);
      for (let b = 0; b < B; b++) {
        if ((labels[b] === c) === pulled) threshold_gradient -= slopes[at + b] *= by;
      }
    };
    const present = new Set(labels).size;
    for (let c = 0; c < C; c++) {
      addTerm(c, true, present);
      addTerm(c, false, C);
    }
    const embeddings = weighted(transposed(slopes, B), P, D);
    return { value, embeddings, proxies: weighted(slopes, X, D), threshold: threshold_gradient };
  }

  // As sobook.soft_orthogonality, with the reduction "mean".
  function softOrthogonality(P, D) {
    const C = P.length / D;
    const pairs = C * (C - 1);
    const gram = product(P, P, D);
    for (let c = 0; c < C; c++) gram[c * C + c] -= 1;
    const proxies = weighted(gram, P, D).map((value) => (4 / pairs) * value);
    return { value: gram.reduce((sum, value) => sum + value * value, 0) / pairs, proxies };
  }

  // ---- training ------------------------------------------------------------------------------

  // As nn.LayerNorm without parameters. Of frozen features once, instead of at every step.
  function layerNorm(features, F) {
    const out = new Float64Array(features.length);
    for (let at = 0; at < features.length; at += F) {
      let [mean, variance] = [0, 0];
      for (let f = at; f < at + F; f++) mean += features[f] / F;
      for (let f = at; f < at + F; f++) variance += (features[f] - mean) ** 2 / F;
      const by = 1 / Math.sqrt(variance + 1e-5);
      for (let f = at; f < at + F; f++) out[f] = (features[f] - mean) * by;
    }
    return out;
  }

  // What learns, and how it takes a step: sobook's Trainer with a head, Proxy Anchor and SO.
  //
  // `settings` has the names and the meaning of HeadConfig, and may change between steps. `inputs`
  // (N, F) have passed `layerNorm`; `labels` are 0 … C − 1; `steps` is the length of the schedule;
  // `start` may hold weight (D, F), bias (D), proxies (C, D).
  class Trainer {
    constructor(settings, { inputs, labels, F, C, steps, start = {} }) {
      Object.assign(this, { settings: { ...settings }, inputs, labels, F, steps, D: settings.dim });
      const random = generator(8 * settings.seed + 1);
      const zeros = new Float64Array(this.D);
      const weight = start.weight ?? orthogonal(random, this.D, F);
      const proxies =
        start.proxies ?? normals(random, C * this.D).map((value) => Math.sqrt(2 / C) * value);
      this.weight = parameter("weight", weight, "head_lr", true);
      this.bias = parameter("bias", start.bias ?? zeros, "head_lr", false);
      this.proxies = parameter("proxies", proxies, "proxy_lr", true);
      this.threshold = parameter("threshold", [settings.threshold], "threshold_lr", false);
    }

    // Change a setting between two steps.
    set(name, value) {
      this.settings[name] = value;
      if (name === "threshold") this.threshold.value[0] = value;
    }

    get learned() {
      const all = [this.weight, this.bias, this.proxies];
      return this.settings.threshold_lr > 0 ? [...all, this.threshold] : all;
    }

    // (n, D) outputs of the linear layer for n inputs.
    linear(inputs) {
      const out = product(inputs, this.weight.value, this.F);
      for (let i = 0; i < out.length; i++) out[i] += this.bias.value[i % this.D];
      return out;
    }

    embed(inputs) {
      return unitRows(this.linear(inputs), this.D).unit;
    }

    // Proxies as the loss sees them: where settings.center is on, unit rows minus their mean.
    seenProxies() {
      const outer = unitRows(this.proxies.value, this.D);
      if (!this.settings.center) return { seen: this.proxies.value, ...outer };
      const seen = centered(outer.unit, this.D);
      return { seen, ...unitRows(seen, this.D), outer };
    }

    // One step on the given rows: loss, gradients, clipping, AdamW. Returns the parts of the loss
    // and the norm of the gradient before clipping.
    step(step, rows) {
      const parts = this.differentiate(rows);
      for (const [name, value] of Object.entries(parts)) check(name, value, step);
      let squares = 0;
      for (const { gradient } of this.learned) squares += norm(gradient) ** 2;
      const gradient_norm = check("the gradient", Math.sqrt(squares), step);
      const clip = Math.min(1, this.settings.clip_norm / (gradient_norm + 1e-6));
      const factor = 0.5 * (1 + Math.cos((Math.PI * step) / this.steps)); // the cosine schedule
      for (const learned of this.learned) {
        const decay = learned.decays ? this.settings.weight_decay : 0;
        adamW(learned, factor * this.settings[learned.rate], decay, clip);
      }
      return { parts, gradient_norm };
    }

    // The parts of the loss on a batch. Leaves the gradient of each parameter in it, and in
    // `gradients` what each part asks of the unit-length proxies.
    differentiate(rows) {
      const { D, F, settings } = this;
      const inputs = gather(this.inputs, F, rows);
      const labels = rows.map((row) => this.labels[row]);
      const { unit: X, lengths } = unitRows(this.linear(inputs), D);
      const proxies = this.seenProxies();
      const P = proxies.unit;
      const threshold = this.threshold.value[0];
      const anchor = proxyAnchor(X, labels, P, D, { ...settings, threshold });
      const so = softOrthogonality(P, D);
      this.gradients = {
        proxy_anchor: tangent(anchor.proxies.slice(), P, D),
        soft_orthogonality: tangent(so.proxies.slice(), P, D),
      };
      const both = anchor.proxies.map((value, i) => value + settings.so_weight * so.proxies[i]);
      this.proxies.gradient.set(backThroughProxies(both, proxies, D));
      this.threshold.gradient[0] = anchor.threshold;
      const slopes = transposed(tangent(anchor.embeddings, X, D, lengths), D); // (D, B)
      product(slopes, transposed(inputs, F), rows.length, this.weight.gradient);
      product(slopes, new Float64Array(rows.length).fill(1), rows.length, this.bias.gradient);
      return {
        proxy_anchor: anchor.value,
        soft_orthogonality: so.value,
        loss: anchor.value + settings.so_weight * so.value,
      };
    }
  }

  function parameter(name, start, rate, decays) {
    const value = Float64Array.from(start);
    const [gradient, mean, square] = [0, 1, 2].map(() => new Float64Array(value.length));
    return { name, value, rate, decays, steps: 0, gradient, mean, square };
  }

  // From the gradient of unit proxies to that of the parameter.
  function backThroughProxies(gradient, { unit, lengths, outer }, D) {
    tangent(gradient, unit, D, lengths);
    return outer ? tangent(centered(gradient, D), outer.unit, D, outer.lengths) : gradient;
  }

  // AdamW as torch.optim.AdamW: the decay is apart from the gradient, β = (.9, .999), ε = 10⁻⁸.
  function adamW(parameter, rate, decay, clip) {
    const { value, gradient, mean, square } = parameter;
    parameter.steps += 1;
    const byMean = rate / (1 - 0.9 ** parameter.steps);
    const bySquare = 1 / Math.sqrt(1 - 0.999 ** parameter.steps);
    for (let i = 0; i < value.length; i++) {
      const g = (gradient[i] *= clip);
      mean[i] += 0.1 * (g - mean[i]);
      square[i] = 0.999 * square[i] + 0.001 * g * g;
      const step = (byMean * mean[i]) / (Math.sqrt(square[i]) * bySquare + 1e-8);
      value[i] = value[i] * (1 - rate * decay) - step;
    }
  }

  function check(name, value, step) {
    if (Number.isFinite(value)) return value;
    const remedy = "lower the learning rates (head_lr, proxy_lr)";
    throw new Error(`${name} became ${value} at step ${step}: ${remedy}.`);
  }

  // ---- features ------------------------------------------------------------------------------

  const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

  // Features that were quantized by dimension: low + step · code, (N, F).
  function decode({ dim: F, low, step, codes }) {
    const [lows, steps] = [low, step].map((text) => new Float32Array(bytesOf(text).buffer));
    return Float32Array.from(bytesOf(codes), (code, i) => lows[i % F] + steps[i % F] * code);
  }

  // ---- retrieval -----------------------------------------------------------------------------

  // The k nearest other rows of each row, nearest first, in ties by index: (N, k). As
  // retrieval.nearest_neighbors. Every pair is looked at once, and rows meet the others in the
  // order of their index. `pause` is awaited between blocks, for who has to do something else as well.
  async function nearest(unit, D, k, pause = () => {}) {
    const [N, block] = [unit.length / D, 32];
    const neighbors = new Int32Array(N * k).fill(-1);
    const best = new Float32Array(N * k).fill(-Infinity);
    const consider = (i, j, cosine) => {
      const first = i * k;
      let place = first + k - 1;
      if (!(cosine > best[place])) return;
      for (; place > first && cosine > best[place - 1]; place--) {
        best[place] = best[place - 1];
        neighbors[place] = neighbors[place - 1];
      }
      best[place] = cosine;
      neighbors[place] = j;
    };
    for (let start = 0; start < N; start += block) {
      const [end, width] = [Math.min(start + block, N), N - start];
      const cosines = product(unit.subarray(start * D, end * D), unit.subarray(start * D), D);
      for (let i = start; i < end; i++) {
        const at = (i - start) * width - start;
        for (let j = i + 1; j < N; j++) {
          consider(i, j, cosines[at + j]);
          consider(j, i, cosines[at + j]);
        }
      }
      await pause();
    }
    return neighbors;
  }

  // Recall@1 from neighbors (N, k): queries and hits of each of T classes. As retrieval.evaluate,
  // an image that is alone in its class is no query.
  function recall(neighbors, k, labels, T) {
    const [size, queries, hits] = [0, 1, 2].map(() => new Int32Array(T));
    for (const label of labels) size[label] += 1;
    labels.forEach((label, i) => {
      if (size[label] < 2) return;
      queries[label] += 1;
      if (labels[neighbors[i * k]] === label) hits[label] += 1;
    });
    const [hit, asked] = [hits, queries].map((counts) => counts.reduce((a, b) => a + b, 0));
    return { recall_at_1: asked ? hit / asked : null, hits, queries };
  }

  // 95 % percentile bootstrap of hits per query, drawing whole classes: statistics.class_interval.
  function classInterval(hits, queries, resamples = 2000) {
    const random = generator(5);
    const means = new Float64Array(resamples);
    const classes = [...queries.keys()].filter((c) => queries[c]);
    for (let r = 0; r < resamples; r++) {
      let [hit, asked] = [0, 0];
      for (let i = 0; i < classes.length; i++) {
        const c = classes[Math.floor(random() * classes.length)];
        hit += hits[c];
        asked += queries[c];
      }
      means[r] = hit / asked;
    }
    means.sort();
    const quantile = (share) => {
      const at = share * (resamples - 1);
      const below = Math.floor(at);
      return means[below] + (at - below) * (means[Math.ceil(at)] - means[below]);
    };
    return [quantile(0.025), quantile(0.975)];
  }

  // ---- geometry ------------------------------------------------------------------------------

  // (C, C) cosines of rows of any length.
  function cosines(rows, D) {
    const { unit } = unitRows(rows, D);
    return product(unit, unit, D);
  }

  // Some of what sobook.describe says of proxies, and the floor of SO "mean".
  function describe(proxies, D) {
    const C = proxies.length / D;
    const pairs = C * (C - 1);
    const all = cosines(proxies, D);
    let [sum, squares, coherence] = [0, 0, 0];
    for (let i = 0; i < C; i++) {
      for (let j = 0; j < i; j++) {
        const cosine = all[i * C + j];
        sum += 2 * cosine;
        squares += 2 * cosine * cosine;
        coherence = Math.max(coherence, Math.abs(cosine));
      }
    }
    return {
      mean_cosine: sum / pairs,
      rms_cosine: Math.sqrt(squares / pairs),
      coherence,
      welch_bound: Math.sqrt(Math.max(0, C - D) / (D * (C - 1))),
      floor: Math.max(0, (C * C) / D - C) / pairs,
    };
  }

  // The axes of the two cones: the mean of the unit-length proxies, and of the embeddings.
  function commonMode(proxies, embeddings, D) {
    const proxy = meanRow(unitRows(proxies, D).unit, D);
    const embedding = meanRow(embeddings, D);
    const embedding_length = norm(embedding);
    const along = proxy.reduce((sum, value, d) => sum + value * embedding[d], 0);
    const cosine = along / Math.max(norm(proxy) * embedding_length, 1e-12);
    return { proxy, embedding, cosine, embedding_length };
  }

  const degrees = (cosine) => (Math.acos(Math.max(-1, Math.min(1, cosine))) * 180) / Math.PI;

  // Of cosines: fraction per degree of their angles, in bins of so many degrees.
  function angleHistogram(values, width) {
    const counts = new Float32Array(180 / width);
    for (const value of values) {
      counts[Math.min(counts.length - 1, Math.floor(degrees(value) / width))] += 1;
    }
    return counts.map((count) => count / (values.length * width));
  }

  // Density, per degree, of the angle between two random directions.
  function randomAngleDensity(angle, D) {
    let ratio = 1 / Math.sqrt(Math.PI); // Γ(d/2) / Γ((d − 1)/2) for d = 2
    for (let d = 2; d < D; d++) ratio = (d - 1) / 2 / ratio;
    const sine = Math.sin((angle * Math.PI) / 180);
    return ((ratio / Math.sqrt(Math.PI)) * sine ** (D - 2) * Math.PI) / 180;
  }

  // biome-ignore format: a list of names
  return {
    unitRows, tangent, gather, generator, normals, batchPlan, proxyAnchor, softOrthogonality,
    layerNorm, Trainer, decode, nearest, recall, classInterval, cosines, describe,
    commonMode, degrees, angleHistogram, randomAngleDensity,
  };
})();
