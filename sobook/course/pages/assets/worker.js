// The lab's worker: trains on what the page sends, and answers with numbers to draw.
//
// Comes after numerics.js in one script. To the worker: load, start, set, stop; from it: ready,
// started, progress, evaluated, done, error. Work is cut into short turns, so that a slider moved
// while it trains is heard between two steps.

function serveLab(scope) {
  "use strict";
  const NEIGHBORS = 6,
    SAMPLE = 200; // kept for each test image; training images that are drawn
  const FRAME = 20,
    TURN = 12; // milliseconds: between two reports, and until messages are heard
  const LIVE = [
    "scale",
    "margin",
    "threshold",
    "threshold_lr",
    "so_weight",
    "center",
    "head_lr",
    "proxy_lr",
    "weight_decay",
    "clip_norm",
    "loss_options",
  ]; // may change while it trains
  const turns = new MessageChannel();
  let data,
    current = null,
    waiting = false;

  const post = (type, message = {}) => scope.postMessage({ type, ...message });

  function load({ features, labels, sizes, classes, class_order }) {
    const decoded = numerics.decode(features),
      F = features.dim;
    data = { inputs: numerics.layerNorm(decoded, F), F, labels, sizes, classes, class_order };
    post("ready");
  }

  // The training rows of a run, its validation rows, and which class each proxy belongs to.
  function split({ validation_fraction, seed }) {
    const { labels, sizes, classes, class_order } = data;
    const count = numerics.heldOut(classes.train, validation_fraction);
    const held = new Set(class_order[seed % class_order.length].slice(0, count));
    const all = (n) => [...Array(n).keys()],
      isHeld = (row) => held.has(labels[row]);
    return {
      rows: all(sizes.train).filter((row) => !isHeld(row)),
      validation: all(sizes.train).filter(isHeld),
      classes: Int32Array.from(all(classes.train).filter((c) => !held.has(c))),
    };
  }

  // All of a run; yields whenever a turn may end.
  function* train(run) {
    const { settings, quiet } = run,
      { inputs, F } = data;
    const { rows, validation, classes } = split(settings),
      place = new Map();
    classes.forEach((c, k) => place.set(c, k));
    const labels = data.labels.slice(0, data.sizes.train).map((c) => place.get(c) ?? -1);
    const own = rows.map((row) => labels[row]),
      chance = numerics.generator(8 * settings.seed + 3);
    const plan = () =>
      numerics.batchPlan(chance, own, settings.batch_size, settings.images_per_class);
    let batches = plan(),
      shown = -Infinity;
    const per = batches.length,
      steps = per * settings.epochs,
      C = classes.length;
    const trainer = (run.trainer = new numerics.Trainer(settings, { inputs, labels, F, C, steps }));
    const few = Math.min(SAMPLE, rows.length),
      apart = rows.length / few;
    const sample = Int32Array.from({ length: few }, (_, i) => rows[Math.floor(i * apart)]);
    Object.assign(run, { rows, validation, classes, labels, sample });
    post("started", { run: run.name, classes, sample, steps });

    if (!quiet) yield* evaluate(run, 0);
    for (let step = 0; step < steps && !run.stopped; step++) {
      if (step && step % per === 0) batches = plan();
      const batch = batches[step % per].map((k) => rows[k]);
      run.last = trainer.step(step, batch);
      const epoch = (step + 1) / per;
      run.epoch = epoch;
      run.evaluated = false;
      if (!quiet && performance.now() - shown >= FRAME) {
        shown = performance.now();
        report(run, step);
      }
      if (!quiet && epoch % 2 === 0 && step + 1 < steps) yield* evaluate(run, epoch);
      yield;
    }
    if (!run.evaluated) yield* evaluate(run, run.epoch ?? 0);
    if (!quiet) report(run, Math.round((run.epoch ?? 0) * per) - 1);
    const { parts, threshold, geometry, means, proxies_are } = state(run, rows);
    post("done", {
      run: run.name,
      settings: trainer.settings,
      ...run.result,
      parts,
      threshold,
      geometry,
      means,
      proxies_are,
      stopped: run.stopped,
      changed: run.changed,
    });
  }

  // What the proxies look like beside the embeddings of some training rows.
  function state(run, rows) {
    const { trainer, labels, classes } = run,
      { D, F } = trainer;
    const embeddings = trainer.embed(numerics.gather(data.inputs, F, rows));
    const isTriplet = trainer.settings.loss === "triplet";
    const some = Array.from(rows, (row) => labels[row]);
    const proxies = isTriplet
      ? numerics.classMeans(embeddings, some, classes.length, D)
      : trainer.seenProxies().seen;
    return {
      parts: run.last?.parts ?? null,
      threshold: trainer.threshold.value[0],
      proxies,
      proxies_are: isTriplet ? "means" : "proxies",
      geometry: numerics.describe(proxies, D),
      means: numerics.commonMode(proxies, embeddings, D),
      embeddings,
    };
  }

  function report(run, step) {
    const { embeddings, ...rest } = state(run, run.sample),
      { trainer, epoch, settings } = run;
    const gradients = trainer.D <= 3 ? trainer.gradients : undefined;
    post("progress", {
      run: run.name,
      step,
      epoch,
      epochs: settings.epochs,
      sample: embeddings,
      gradients,
      ...rest,
    });
  }

  // Recall@1 on the test classes and on the validation classes.
  function* evaluate(run, epoch) {
    const { sizes, classes, labels, inputs, F } = data,
      { trainer } = run;
    const first = sizes.train,
      targets = labels.slice(first);
    // In float32, as `evaluate` gets them in Python.
    const embed = (matrix) =>
      numerics.unitRows(Float32Array.from(trainer.embed(matrix)), trainer.D).unit;
    const test = embed(inputs.subarray(first * F));
    const neighbors = yield* numerics.nearestByTurns(test, trainer.D, NEIGHBORS);
    const { recall_at_1, hits, queries } = numerics.recall(
      neighbors,
      NEIGHBORS,
      targets,
      classes.test,
    );
    let validation_recall_at_1 = null;
    if (run.validation.length) {
      const rows = embed(numerics.gather(inputs, F, run.validation));
      const own = run.validation.map((row) => labels[row]);
      const nearest = numerics.nearest(rows, trainer.D, 1);
      ({ recall_at_1: validation_recall_at_1 } = numerics.recall(nearest, 1, own, classes.train));
    }
    const interval = numerics.classInterval(hits, queries);
    run.result = { epoch, recall_at_1, validation_recall_at_1, interval, hits, neighbors };
    run.evaluated = true;
    if (!run.quiet) post("evaluated", { run: run.name, ...run.result });
  }

  function begin({ run: name, settings, quiet = false }) {
    stop();
    while (current) advance(Infinity); // the old run reports first
    current = { name, settings: { ...settings }, quiet, stopped: false, changed: false };
    current.work = train(current);
    wake();
  }

  function stop() {
    if (current) current.stopped = true;
  }

  function change({ name, value }) {
    if (!current?.trainer || !LIVE.includes(name)) return;
    current.trainer.set(name, value);
    current.changed = true;
  }

  // Work on the current run until a moment, or to its end.
  function advance(until) {
    const run = current;
    try {
      while (performance.now() < until) {
        if (!run.work.next().done) continue;
        current = null;
        return;
      }
    } catch (error) {
      current = null;
      post("error", { run: run.name, message: error.message });
    }
  }

  function wake() {
    if (!waiting) turns.port2.postMessage(null);
    waiting = true;
  }

  turns.port1.onmessage = () => {
    waiting = false;
    if (current) advance(performance.now() + TURN);
    if (current) wake();
  };
  const actions = { load: ({ data: packed }) => load(packed), start: begin, set: change, stop };
  scope.onmessage = ({ data: message }) => actions[message.type](message);
}

if (typeof WorkerGlobalScope !== "undefined") serveLab(self);
