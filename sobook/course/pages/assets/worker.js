// The lab's worker: trains on what the page sends, and answers with numbers to draw.
//
// Comes after numerics.js in one script. To the worker: load, start, set, stop; from it: ready,
// started, progress, evaluated, done, error. Training pauses often, so that a slider moved while it
// trains is heard between two steps.

const NEIGHBORS = 6; // kept for each test image
const SAMPLE = 200; // training images that are drawn
const FRAME = 20; // milliseconds between two reports
const TURN = 12; // milliseconds until messages are heard
const turns = new MessageChannel();
let data;
let current; // the last run that was asked for
let work = Promise.resolve(); // runs train one after the other
let turnEnds = 0;

const post = (type, message = {}) => postMessage({ type, ...message });

function load({ features, ...rest }) {
  const inputs = numerics.layerNorm(numerics.decode(features), features.dim);
  data = { ...rest, inputs, F: features.dim };
  post("ready");
}

// The training rows of a run, its validation rows, and which class each proxy belongs to.
function split({ seed }) {
  const { labels, sizes, classes, class_order, held_out } = data;
  const held = new Set(class_order[seed % class_order.length].slice(0, held_out));
  const rows = [...Array(sizes.train).keys()];
  return {
    rows: rows.filter((row) => !held.has(labels[row])),
    validation: rows.filter((row) => held.has(labels[row])),
    classes: [...Array(classes.train).keys()].filter((c) => !held.has(c)),
  };
}

// Let messages be heard once the turn is over.
async function pause() {
  if (performance.now() < turnEnds) return;
  await new Promise((heard) => {
    turns.port1.onmessage = heard;
    turns.port2.postMessage(null);
  });
  turnEnds = performance.now() + TURN;
}

async function train(run) {
  const { settings, quiet } = run;
  const { rows, validation, classes } = split(settings);
  const labels = data.labels.slice(0, data.sizes.train).map((c) => classes.indexOf(c));
  const random = numerics.generator(8 * settings.seed + 3);
  const plan = () => numerics.batchPlan(random, rows, settings.batch_size);
  let batches = plan();
  let reported = -Infinity;
  const per = batches.length;
  const steps = per * settings.epochs;
  const setting = { inputs: data.inputs, labels, F: data.F, C: classes.length, steps };
  const trainer = new numerics.Trainer(settings, setting);
  const few = Math.min(SAMPLE, rows.length);
  const sample = Array.from({ length: few }, (_, i) => rows[Math.floor((i * rows.length) / few)]);
  Object.assign(run, { trainer, validation, epoch: 0 });
  post("started", { run: run.name, classes, sample, steps });

  if (!quiet) await evaluate(run);
  for (let step = 0; step < steps && !run.stopped; step++) {
    if (step && step % per === 0) batches = plan();
    const { parts } = trainer.step(step, batches[step % per]);
    Object.assign(run, { parts, epoch: (step + 1) / per, evaluated: false });
    if (!quiet && performance.now() - reported >= FRAME) {
      reported = performance.now();
      report(run, sample);
    }
    if (!quiet && run.epoch % 2 === 0 && step + 1 < steps) await evaluate(run);
    await pause();
  }
  if (!run.evaluated) await evaluate(run);
  if (!quiet) report(run, sample);
  const { stopped, changed } = run;
  const { embeddings, gradients, ...state } = stateOf(run, rows);
  post("done", { ...state, settings: trainer.settings, ...run.result, stopped, changed });
}

// What the proxies look like beside the embeddings of some training rows.
function stateOf({ name, trainer, parts, epoch }, rows) {
  const embeddings = trainer.embed(numerics.gather(data.inputs, data.F, rows));
  const { seen: proxies } = trainer.seenProxies();
  return {
    run: name,
    epoch,
    parts,
    threshold: trainer.threshold.value[0],
    proxies,
    embeddings,
    gradients: trainer.D <= 3 ? trainer.gradients : undefined,
    geometry: numerics.describe(proxies, trainer.D),
    means: numerics.commonMode(proxies, embeddings, trainer.D),
  };
}

const report = (run, sample) => post("progress", stateOf(run, sample));

// Recall@1 on the test classes and on the validation classes.
async function evaluate(run) {
  const { sizes, classes, labels, inputs, F } = data;
  const { D } = run.trainer;
  // In float32, as `evaluate` gets them in Python.
  const embed = (matrix) => numerics.unitRows(Float32Array.from(run.trainer.embed(matrix)), D).unit;
  const test = embed(inputs.subarray(sizes.train * F));
  const neighbors = await numerics.nearest(test, D, NEIGHBORS, pause);
  const targets = labels.slice(sizes.train);
  const result = numerics.recall(neighbors, NEIGHBORS, targets, classes.test);
  const interval = numerics.classInterval(result.hits, result.queries);
  let validation_recall_at_1 = null;
  if (run.validation.length) {
    const rows = embed(numerics.gather(inputs, F, run.validation));
    const nearest = await numerics.nearest(rows, D, 1, pause);
    const held = run.validation.map((row) => labels[row]);
    validation_recall_at_1 = numerics.recall(nearest, 1, held, classes.train).recall_at_1;
  }
  run.result = { ...result, epoch: run.epoch, interval, neighbors, validation_recall_at_1 };
  run.evaluated = true;
  if (!run.quiet) post("evaluated", { run: run.name, ...run.result });
}

// The run before is stopped, and reports first.
function begin({ run: name, settings, quiet = false }) {
  stop();
  const run = { name, settings, quiet, stopped: false, changed: false };
  current = run;
  const failed = (error) => post("error", { run: name, message: error.message });
  work = work.then(() => train(run)).catch(failed);
}

function stop() {
  if (current) current.stopped = true;
}

function change({ name, value }) {
  if (!current?.trainer) return;
  current.trainer.set(name, value);
  current.changed = true;
}

const actions = { load: ({ data: packed }) => load(packed), start: begin, set: change, stop };
self.onmessage = ({ data: message }) => actions[message.type](message);
