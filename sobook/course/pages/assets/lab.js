// The lab: predict, train, pull the levers, keep a notebook of runs, take it to Python.
//
// Training happens in a worker (numerics.js and worker.js, as text in DATA.worker); this file holds
// the page's state, `lab`, and its controls. Drawing is in lab_views.js, the story in lab_story.js.

const START = DATA.start; // the settings the page opens with, by HeadConfig's names
const { frozen, classes: CLASSES, sizes: SIZES } = DATA.lab;
const NOUN = ["aviary", "cub200"].includes(START.dataset) && DATA.in_python ? "species" : "classes";
const TEST_LABELS = DATA.lab.labels.slice(SIZES.train);
const QUERIES = Array(CLASSES.test).fill(0); // of each test class
for (const label of TEST_LABELS) QUERIES[label] += 1;
const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const BETTER = 0.005; // by so much more Recall@1 SO "wins" a try: as studies' smallest_effect
const SEEDS = [200, 201, 202, 203, 204]; // fresh ones: no try uses them
const KEPT = 300; // runs that the browser remembers

const range = (low, high, by) =>
  Array.from({ length: Math.round((high - low) / by) + 1 }, (_, k) => +(low + k * by).toFixed(4));
// Each lever: its name in HeadConfig, its title, its values; SLIDERS act also while it trains.
const SLIDERS = [
  ["so_weight", "λ, SO", [0, 1, 3, 10, 30, 50, 100, 200, 300, 1000]],
  ["threshold", "b, threshold", range(-0.5, 0.9, 0.02)],
  ["scale", "α, scale", range(2, 64, 2)],
  ["margin", "δ, margin", range(0, 0.5, 0.02)],
  ["head_lr", "head rate", [5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2]],
  ["proxy_lr", "proxy rate", [1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5]],
];
const CHOICES = [
  ["dim", "D, dimensions", [2, 3, 16, 64, 128]],
  ["epochs", "epochs", [5, 10, 20, 40, 80, 160]],
];
const SWITCHES = [
  ["threshold_lr", "learn b", [0, 0.01]],
  ["center", "center proxies", [false, true]],
];
const MEANING = {
  so_weight:
    "λ: weight of soft orthogonality (SO). λ times the mean squared cosine of two proxies is added to the loss, so that proxies are pushed towards right angles.",
  threshold: "b: what Proxy Anchor compares each cosine with; as published, 0.",
  scale:
    "α: how sharply the loss looks at the hardest images. The larger α, the fewer images count.",
  margin: "δ: how far beyond b a cosine has to be before its image counts little.",
  head_lr: "Learning rate of the head. It falls to 0 by the end of a run.",
  proxy_lr: "Learning rate of the proxies. It falls to 0 by the end of a run.",
  dim: "D: how many numbers make an embedding or a proxy. With 2 or 3 you see them as they are.",
  epochs: "How often a run goes through all training images.",
  seed: "What decides the start, the batches and the classes held out. Another seed is another run of the same method.",
  threshold_lr: "b learns with the rest, from where its slider stands.",
  center: "Inside the loss, the mean proxy is subtracted from all proxies.",
};

const lab = {
  settings: { ...START },
  step: 0,
  guess: { recall: null, rms: null },
  choice: null,
  runs: [],
  family: {}, // the comparisons that confirm a win
  live: null, // what the board shows
  query: 0,
  running: null,
  cancelled: false,
};

// ---- workers ---------------------------------------------------------------------------------

let runCount = 0;

function startWorker() {
  const address = URL.createObjectURL(new Blob([DATA.worker], { type: "text/javascript" }));
  const worker = new Worker(address);
  const waiting = new Map();
  worker.onmessage = ({ data }) => {
    const run = waiting.get(data.run);
    if (data.type === "done") run.resolve(data);
    else if (data.type === "error") run.reject(new Error(data.message));
    else run?.hear(data);
  };
  worker.postMessage({ type: "load", data: DATA.lab });
  // Resolves to what the worker says when the run is done; `hear` gets everything before.
  const train = (settings, quiet, hear) =>
    new Promise((resolve, reject) => {
      runCount += 1;
      waiting.set(runCount, { resolve, reject, hear });
      worker.postMessage({ type: "start", run: runCount, settings, quiet });
    });
  return { train, post: (message) => worker.postMessage(message) };
}

const stage = startWorker(); // whose runs are shown while they train
const helpers = []; // for series of runs that are not shown

// Many runs at a time, none shown; resolves to their results in order, those cancelled left out.
async function series(wanted, progress = () => {}) {
  const number = clamp((navigator.hardwareConcurrency || 2) - 1, 1, 4);
  while (helpers.length < Math.min(number, wanted.length)) helpers.push(startWorker());
  const results = [];
  const queue = wanted.entries(); // from which all helpers take
  const work = async (helper) => {
    for (const [k, settings] of queue) {
      if (lab.cancelled) return;
      const result = await helper.train(settings, true, () => {});
      if (!result.stopped) results[k] = remember(settings, result);
      progress(results.filter(Boolean).length);
    }
  };
  await Promise.all(helpers.map(work));
  return results;
}

function stop() {
  lab.cancelled = true;
  for (const worker of [stage, ...helpers]) worker.post({ type: "stop" });
}

// Do some work after whatever is running has been stopped.
async function afterStop(work) {
  stop();
  await lab.running;
  lab.cancelled = false;
  const failed = (error) => announce(`The run ended early: ${error.message}`);
  const mine = work().catch(failed);
  lab.running = mine;
  showBusy();
  await mine;
  if (lab.running === mine) lab.running = null;
  showBusy();
}

function showBusy() {
  const busy = Boolean(lab.running);
  $("stop").disabled = !busy;
  $("win").disabled = busy;
  $("fresh").disabled = $("longer").disabled = busy || !winner();
}

// ---- runs ------------------------------------------------------------------------------------

const key = (settings) => JSON.stringify(Object.keys(START).map((name) => settings[name]));
const resolved = ({ longer = 1, ...set }) => ({ ...START, ...set, epochs: longer * START.epochs });
const find = (settings) =>
  lab.runs.findLast((run) => !run.changed && !run.stopped && key(run.settings) === key(settings));

// Write a run down: plain numbers and lists, which can be kept.
function remember(settings, result) {
  const { recall_at_1, validation_recall_at_1, interval, geometry, stopped, changed } = result;
  const numbers = { recall_at_1, validation_recall_at_1, interval, geometry, stopped, changed };
  const { means, hits, curve = null } = result;
  const { cosine, embedding_length } = means;
  const number = (lab.runs.at(-1)?.number ?? 0) + 1;
  const more = { means: { cosine, embedding_length }, hits: [...hits], curve };
  const run = { number, settings, ...numbers, ...more };
  lab.runs.push(run);
  keep();
  showNotebook();
  return run;
}

// The browser keeps the notebook of runs, where it lets a page; never those of another lab.
const identity = [DATA.note, START, frozen, DATA.worker, DATA.lab.features.codes.slice(-2000)];
const hash = (total, letter) => (Math.imul(total, 31) + letter.charCodeAt(0)) | 0;
const SHELF = `sobook lab ${[...JSON.stringify(identity)].reduce(hash, 7)}`;

// A private window or a notebook's frame has no storage, or no room: runs last as long as the page.
function withStorage(act) {
  try {
    return act(localStorage);
  } catch {
    return null;
  }
}

function keep() {
  const { runs, family } = lab;
  const text = JSON.stringify({ runs: runs.slice(-KEPT), family });
  withStorage((storage) => storage.setItem(SHELF, text));
}

function loadRuns() {
  const kept = withStorage((storage) => JSON.parse(storage.getItem(SHELF)));
  for (const comparison of Object.values(kept?.family ?? {})) comparison.p ??= NaN; // not in JSON
  Object.assign(lab, kept);
  showNotebook();
}

function clear() {
  Object.assign(lab, { runs: [], family: {} });
  withStorage((storage) => storage.removeItem(SHELF));
  showNotebook();
  drawSoon();
}

// What differs from where the page started, in words.
function inWords(settings) {
  const letters = { so_weight: "λ", threshold: "b", scale: "α", margin: "δ", dim: "D" };
  const parts = Object.keys(START)
    .filter((name) => JSON.stringify(settings[name]) !== JSON.stringify(START[name]))
    .map((name) => {
      if (name === "threshold_lr") return settings[name] > 0 ? "b learned" : "b fixed";
      if (name === "center") return settings[name] ? "centered" : "not centered";
      return `${letters[name] ?? name} ${settings[name]}`;
    });
  return parts.join(", ") || "as the page started";
}

// What the story knows besides the runs.
function world(settings) {
  const C = CLASSES.train - DATA.lab.held_out;
  const D = settings.dim;
  return {
    noun: NOUN,
    C,
    D,
    floor: Math.max(0, (C * C) / D - C) / (C * (C - 1)),
    chance: 1 / Math.sqrt(D),
    frozen: frozen.recall_at_1,
    queries: QUERIES,
    epochs: START.epochs,
    find: (set) => find(resolved(set)),
  };
}

// What the board shows of a run before its first step: random directions.
function board(settings) {
  const { C, D } = world(settings);
  const random = numerics.generator(settings.seed);
  const proxies = Float32Array.from(numerics.normals(random, C * D));
  return {
    settings: { ...settings },
    C,
    D,
    proxies,
    cosines: numerics.cosines(proxies, D),
    means: { ...numerics.commonMode(proxies, new Float32Array(D), D), embedding_length: 0 },
    classes: [...Array(C).keys()],
    embeddings: new Float32Array(0),
    sampleClasses: [],
    curve: [],
    losses: [],
    epochs: settings.epochs,
    old: lab.runs.flatMap((run) => (run.curve ? [run.curve] : [])).slice(-4),
  };
}

// Train as the levers say; where that answers the step's question, say what came out.
async function train() {
  const step = STORY[lab.step];
  const wanted = { ...lab.settings };
  const asked = key(wanted) === key(resolved(step.set));
  const sound = (run) => run && !run.stopped && !run.changed;
  let base;
  if (asked && step.against) {
    const against = resolved(step.against);
    base = find(against) ?? (await show(against, "first without: "));
  }
  const run = lab.cancelled ? null : await show(wanted, "");
  if (asked && sound(run) && (!base || sound(base))) conclude(step, run, base);
}

// A run on the board, from its start to its end.
async function show(settings, prefix) {
  const live = board(settings);
  Object.assign(lab, { live, answered: true });
  const result = await stage.train(settings, false, (message) => hear(live, message, prefix));
  Object.assign(live, { interval: result.interval, means: result.means });
  const run = remember(settings, { ...result, curve: live.curve });
  $("progress").value = 1;
  const [low, high] = result.interval.map((value) => fixed(value));
  announce(
    `Recall@1 ${fixed(result.recall_at_1)} on ${CLASSES.test} unseen ${NOUN}, 95 % interval ${low} to ${high}; frozen encoder ${fixed(frozen.recall_at_1)}. RMS cosine ${fixed(result.geometry.rms_cosine)}. ${result.stopped ? "Stopped early." : ""}${result.changed ? "Levers moved while it trained." : ""}`,
  );
  draw();
  return run;
}

function hear(live, { type, run, ...message }, prefix) {
  if (type === "started") {
    const sampleClasses = message.sample.map((row) => DATA.lab.labels[row]);
    Object.assign(live, { classes: message.classes, steps: message.steps, sampleClasses });
  } else if (type === "progress") {
    Object.assign(live, message, { cosines: numerics.cosines(message.proxies, live.D) });
    const { proxy_anchor, soft_orthogonality } = message.parts ?? {};
    const so = live.settings.so_weight * soft_orthogonality;
    if (message.parts) live.losses.push([message.epoch, proxy_anchor, so]);
    if (!CALM.matches) drawSoon();
  } else if (type === "evaluated") {
    const recall = message.recall_at_1;
    live.curve.push([message.epoch, recall]);
    lab.neighbors = message.neighbors;
    announce(
      `${prefix}epoch ${message.epoch} of ${live.epochs}: Recall@1 ${fixed(recall)} on unseen ${NOUN}`,
    );
    drawSoon();
  }
}

function announce(text) {
  $("live").textContent = text.charAt(0).toUpperCase() + text.slice(1);
}

// ---- story -----------------------------------------------------------------------------------

function openStep(number) {
  const step = STORY[number];
  const last = number === STORY.length - 1;
  const guess = { recall: null, rms: null };
  Object.assign(lab, { step: number, choice: null, guess, answered: false });
  lab.settings = resolved(step.set);
  $("title").textContent = DATA.step ? step.name : `${number + 1}. ${step.name}`;
  const radio = (k) => element("input", { type: "radio", name: "choice", value: k });
  const choices = step.choices.map((text, k) => element("label", {}, radio(k), text));
  $("choices").replaceChildren(...choices);
  $("after").hidden = true;
  for (const node of $("steps").children) node.ariaCurrent = null;
  $("steps").children[number].ariaCurrent = "step";
  $("back").disabled = number === 0;
  $("next").disabled = last;
  $("next").textContent = last ? "Next →" : `Next: ${STORY[number + 1].name} →`;
  showSettings();
}

function conclude(step, run, base) {
  const now = world(run.settings);
  const came = step.came(run, base, now);
  const verdicts = [];
  if (lab.choice !== null)
    verdicts.push(lab.choice === came ? "As you predicted." : "Not what you predicted.");
  const compare = (name, guess, truth) => {
    if (guess !== null)
      verdicts.push(`${name}: you said ${fixed(guess)}, it came out ${fixed(truth)}.`);
  };
  compare("Recall@1", lab.guess.recall, run.recall_at_1);
  compare("RMS cosine", lab.guess.rms, run.geometry.rms_cosine);
  const paragraph = (...content) => element("p", {}, ...content);
  const words = [verdicts.join(" "), ...step.after(run, base, now, came)].filter(Boolean);
  const where = element("b", {}, "Ten seeds in Python, on the aviary: ");
  $("after").replaceChildren(...words.map((text) => paragraph(text)), paragraph(where, step.found));
  if (lab.step === STORY.length - 1 && !DATA.step)
    $("after").append(paragraph("Now try to fool yourself: “Make SO win”, below."));
  $("after").hidden = false;
  [...$("choices").children].forEach((label, k) => label.classList.toggle("came", k === came));
  $("steps").children[lab.step].classList.add("done");
  lab.concluded = lab.step;
}

// A scale with the reader's handle; `unset` until it is first moved.
function addGauge(name, most) {
  const input = $(`gauge-${name}`).querySelector("input");
  input.max = most;
  input.value = most / 2;
  input.oninput = () => {
    lab.guess[name] = Number(input.value);
    drawSoon();
  };
}

function showGauge(name, truth, ticks) {
  const box = $(`gauge-${name}`);
  const input = box.querySelector("input");
  const guess = lab.guess[name];
  const words = [];
  if (truth !== undefined) words.push(`● ${fixed(truth)}`);
  if (guess !== null) words.push(`you said ${fixed(guess)}`);
  box.classList.toggle("unset", guess === null);
  box.querySelector("output").textContent = words.join(" · ") || "drag to predict";
  input.setAttribute("aria-valuetext", guess === null ? "no prediction yet" : fixed(guess));
  for (const [tick, value] of Object.entries({ ...ticks, now: truth })) {
    const node = box.querySelector(`.track .${tick}`);
    node.hidden = value === undefined;
    node.style.left = `${clamp((100 * (value ?? 0)) / input.max, 0, 100)}%`;
  }
}

function showGauges() {
  const live = lab.answered ? lab.live : null;
  const { chance, floor } = world(lab.settings);
  const [low, high] = frozen.interval;
  const least = Math.sqrt(floor);
  showGauge("recall", live?.curve.at(-1)?.[1], { frozen: frozen.recall_at_1, band: low });
  const [band, input] = $("gauge-recall").querySelectorAll(".band, input");
  band.style.width = `${(100 * (high - low)) / input.max}%`;
  showGauge("rms", live?.geometry?.rms_cosine, { chance, floor: least });
  $("rms-words").replaceChildren(
    element("span", { class: "keyed chance" }, `random directions ${fixed(chance)}`),
    element("span", { class: "keyed floor" }, `least possible ${fixed(least)}`),
  );
}

// ---- levers ----------------------------------------------------------------------------------

const sorted = (list, extra) => [...new Set([...list, extra])].sort((a, b) => a - b);

function addLevers() {
  const add = (group, name, ...parts) => {
    const label = element("label", {}, ...parts);
    for (const kind of ["pointerover", "focusin"])
      label.addEventListener(kind, () => $("lever-words").replaceChildren(MEANING[name]));
    $(group).append(label);
  };
  for (const lever of SLIDERS) {
    const [id, title, usual] = lever;
    const list = sorted(usual, START[id]);
    lever[2] = list;
    const limits = { id, type: "range", min: 0, max: list.length - 1, "aria-label": title };
    const input = element("input", limits);
    input.oninput = () => pull(id, list[input.value]);
    add("live-levers", id, element("span", {}, title, element("output")), input);
  }
  for (const [id, title, list] of CHOICES) {
    const options = sorted(list, START[id]).map((value) => element("option", { value }, value));
    const select = element("select", { id }, ...options);
    select.onchange = () => pull(id, Number(select.value));
    add("next-levers", id, title, select);
  }
  const seed = element("input", { id: "seed", type: "number", min: 0, max: 9999 });
  seed.onchange = () => pull("seed", clamp(Math.round(Number(seed.value)) || 0, 0, 9999));
  add("next-levers", "seed", "seed", seed);
  for (const [id, title, values] of SWITCHES) {
    const box = element("input", { id, type: "checkbox" });
    box.onchange = () => pull(id, values[Number(box.checked)]);
    add("next-levers", id, box, title);
  }
}

function pull(name, value) {
  lab.settings = { ...lab.settings, [name]: value };
  if (lab.running && SLIDERS.some((lever) => lever[0] === name)) {
    stage.post({ type: "set", name, value });
    lab.live.settings[name] = value;
  }
  showSettings();
}

function showSettings() {
  const { settings } = lab;
  for (const [name, title, list] of SLIDERS) {
    const gaps = list.map((value) => Math.abs(value - settings[name]));
    const text = `${settings[name]}`.replace("-", "−");
    $(name).value = gaps.indexOf(Math.min(...gaps));
    $(name).parentNode.querySelector("output").textContent = text;
    $(name).setAttribute("aria-valuetext", `${title} ${text}`);
  }
  for (const name of ["dim", "epochs", "seed"]) $(name).value = settings[name];
  for (const [name] of SWITCHES) $(name).checked = Boolean(settings[name]);
  $("question").textContent = STORY[lab.step].question(world(settings));
  $("reset").hidden = key(settings) === key(resolved(STORY[lab.step].set));
  showStudy();
  if (!lab.running && (!lab.live?.steps || lab.live.D !== settings.dim)) lab.live = board(settings);
  drawSoon();
}

function restore(settings) {
  lab.settings = settings;
  showSettings();
}

// ---- notebook of runs, forking paths ----------------------------------------------------------

function showNotebook() {
  const { runs } = lab;
  const rows = runs.slice(-60).map((run) => {
    const note = run.stopped ? " (stopped)" : run.changed ? " (levers moved)" : "";
    const words = `${run.number}. ${inWords(run.settings)}${note}`;
    const look = { class: "link", title: "take these settings" };
    return [
      button(words, () => restore(run.settings), look),
      fixed(run.recall_at_1),
      Number.isFinite(run.validation_recall_at_1) ? fixed(run.validation_recall_at_1) : "–",
      fixed(run.geometry.rms_cosine),
      fixed(run.geometry.mean_cosine),
    ];
  });
  const head = ["Settings", "Recall@1", "Validation", "RMS cosine", "Mean cosine"];
  fillTable($("runs"), head, rows.reverse());
  $("runs").hidden = $("clear").hidden = !runs.length;
  const top = Math.max(...runs.map((run) => run.recall_at_1));
  const first = runs.find((run) => run.recall_at_1 === top);
  $("notebook-words").textContent = first
    ? `${runs.length} ${runs.length > 1 ? "runs" : "run"}; the best Recall@1 is that of number ${first.number}. Validation is on training classes held out; choose by it, since the unseen classes are for the last word.`
    : "Every run you start is written down here.";
  showTries();
}

// Every pair of runs that differ in λ alone, one of them without SO: a try to make SO win.
function tries() {
  const sound = lab.runs.filter((run) => !run.changed && !run.stopped && !run.confirms);
  const latest = new Map(sound.map((run) => [key(run.settings), run]));
  return [...latest.values()].flatMap((run) => {
    const base = latest.get(key({ ...run.settings, so_weight: 0 }));
    if (!base || base === run) return [];
    run.compared ??= statistics.compareClasses(base.hits, run.hits, QUERIES);
    return [{ run, base, ...run.compared }];
  });
}

const best = () => tries().sort((a, b) => b.difference - a.difference)[0];
const winner = () => (best()?.difference >= BETTER ? best() : undefined);
const count = (number, noun, plural) => `${number} ${number > 1 ? plural : noun}`;

function showTries() {
  const all = tries();
  const top = best();
  const rows = [
    ["best try", top],
    ["fresh seeds", lab.family.fresh],
    ["four times longer", lab.family.longer],
  ].filter(([, comparison]) => comparison);
  const family = [...all.filter(({ run }) => run !== top.run), ...rows.map((row) => row[1])];
  const corrected = statistics.holm(family.map(({ p }) => p)).slice(-rows.length);
  lab.left = rows.map(([name, comparison], k) => {
    const verdict = statistics.verdict(comparison, corrected[k]);
    return { ...comparison, name, corrected: corrected[k], verdict };
  });
  const p = (value) => (value >= 0 ? fixed(value) : "–");
  const words = ({ name, run }) =>
    run ? `best of ${count(all.length, "try", "tries")}, λ ${run.settings.so_weight}` : name;
  const cells = lab.left.map((row) => [
    `${words(row)}, over ${row.n} ${row.over === "seeds" ? "seeds" : NOUN}`,
    `${signed(row.difference)} [${signed(row.low)}, ${signed(row.high)}]`,
    p(row.p),
    p(row.corrected),
    row.verdict,
  ]);
  fillTable($("tries"), ["", "SO − without", "p", "corrected", "shown"], cells);
  $("tries").hidden = !all.length;
  $("fork-words").textContent = all.length ? whatIsLeft(all.length) : "";
  showBusy();
}

// The last word on a win: chosen by the comparisons there are.
function whatIsLeft(number) {
  const [first, ...confirmed] = lab.left;
  const after = count(number, "try", "tries");
  if (!winner()) return `${after}, and SO has not won by ${BETTER} yet. Keep trying.`;
  if (!confirmed.length) {
    return `SO won by ${signed(first.difference)} after ${after}: p = ${fixed(first.p)} alone, ${fixed(first.corrected)} corrected for all tries. Does it hold on fresh seeds, and after four times as many epochs?`;
  }
  const parts = confirmed.map((row) => `${row.name} ${signed(row.difference)} (${row.verdict})`);
  const last = confirmed.at(-1);
  const left = {
    higher: "A gain is left.",
    lower: "It has turned into a loss.",
    "no difference shown": "No difference is shown; nothing of the win is left to report.",
  }[last.verdict];
  const below = last.recall <= frozen.recall_at_1;
  return `The win was ${signed(first.difference)}; ${parts.join("; ")}. ${left} The p values are corrected, by Holm, for all ${number + confirmed.length} comparisons made here.${below ? " These runs are not above the frozen encoder, so the comparison says little either way." : ""}`;
}

async function fork(work) {
  await afterStop(work);
  showTries();
  const last = lab.left.at(-1);
  if (last)
    announce(
      `Recall@1 with SO minus without, ${last.name}: ${signed(last.difference)}, ${last.verdict}.`,
    );
}

// Tries until a win. What each takes could be defended in a paper, which is the trouble.
async function makeWin() {
  const from = tries().length;
  const { epochs: usual, ...settings } = lab.settings;
  lab.family = {};
  for (let k = from; k < from + 20 && !lab.cancelled; k++) {
    const random = numerics.generator(97 * k + 5);
    const draw = (list) => list[Math.floor(random() * list.length)];
    const so_weight = draw([1, 3, 10, 30, 100, 300]);
    const scale = draw([8, 16, 32, 64]);
    const dim = draw([16, 32, 64, 128]);
    const epochs = Math.ceil(draw([0.25, 0.5, 1]) * usual);
    const seed = 1 + (k % 60);
    $("fork-words").textContent =
      `Try ${k + 1}: λ ${so_weight}, α ${scale}, D ${dim}, ${epochs} epochs, seed ${seed} …`;
    const method = { ...settings, seed, scale, dim, epochs };
    const pair = [0, so_weight].map((weight) => ({ ...method, so_weight: weight }));
    await series(pair.filter((wanted) => !find(wanted)));
    if (tries().at(-1)?.difference >= BETTER) break;
  }
}

// The winner's settings, with and without SO, on five seeds that no try has used.
async function confirm(name, times) {
  const { settings } = winner().run;
  const epochs = times * settings.epochs;
  const both = (seed) =>
    [0, settings.so_weight].map((so_weight) => ({ ...settings, seed, so_weight, epochs }));
  const wanted = SEEDS.flatMap(both);
  const progress = (done) => {
    $("fork-words").textContent = `${name}: ${done} of ${wanted.length} runs …`;
  };
  progress(0);
  const results = await series(wanted, progress);
  if (results.filter(Boolean).length < wanted.length) return;
  for (const run of results) run.confirms = true;
  const [without, withSO] = [0, 1].map((which) =>
    results.filter((_, k) => k % 2 === which).map((run) => run.recall_at_1),
  );
  const mean = (list) => list.reduce((a, b) => a + b) / list.length;
  const recall = Math.max(mean(without), mean(withSO));
  lab.family[name] = { ...statistics.compareSeeds(without, withSO), recall };
  keep();
}

// ---- to Python -------------------------------------------------------------------------------

function asToml(value) {
  if (value === null) return '"none"';
  if (typeof value !== "object") return JSON.stringify(value);
  const entries = Object.entries(value).map(([name, part]) => `${name} = ${asToml(part)}`);
  return `{ ${entries.join(", ")} }`;
}

// The settings as a study, with and without SO, over five seeds; defaults are left out.
function studyFile() {
  const { settings } = lab;
  const varied = settings.so_weight > 0 ? ["seed", "so_weight"] : ["seed"];
  const usual = (name) => JSON.stringify(settings[name]) === JSON.stringify(DATA.defaults[name]);
  const names = Object.keys(DATA.defaults).filter((name) => !varied.includes(name) && !usual(name));
  const only = (line) => (settings.so_weight > 0 ? [line] : []);
  return [
    ...(DATA.in_python ? [] : ["# The features of this page came from a file; name a data set."]),
    "# sobook study lab.toml",
    'title = "From the lab"',
    'trainer = "head"',
    ...only("baseline = { so_weight = 0 }"),
    "",
    "[fixed]",
    ...names.map((name) => `${name} = ${asToml(settings[name])}`),
    "",
    "[grid]",
    ...only(`so_weight = [0, ${settings.so_weight}]`),
    `seed = [${[0, 1, 2, 3, 4].map((k) => settings.seed + k).join(", ")}]`,
    "",
  ].join("\n");
}

function showStudy() {
  const text = studyFile();
  $("code").textContent = text;
  $("download").href = `data:text/plain;charset=utf-8,${encodeURIComponent(text)}`;
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("code").textContent);
    $("copy").textContent = "Copied";
    setTimeout(() => $("copy").replaceChildren("Copy"), 1500);
  } catch {
    getSelection().selectAllChildren($("code")); // no right to: the keyboard can copy it
  }
}

// ---- start -----------------------------------------------------------------------------------

// In a notebook, a step alone: its question, its levers and its views.
function standAlone({ levers, views: shown }) {
  document.body.classList.add("alone");
  for (const node of document.querySelectorAll("#levers label"))
    node.hidden = !levers.includes(node.querySelector("input, select").id);
  for (const set of document.querySelectorAll("fieldset"))
    set.hidden = !set.querySelector("label:not([hidden])");
  for (const figure of document.querySelectorAll("figure"))
    figure.hidden = !shown.includes(figure.querySelector("canvas")?.id);
  $("views").append($("after")); // where there is room
}

function fillPage() {
  const total = (SIZES.train + SIZES.test).toLocaleString("en");
  const interval = frozen.interval.map((value) => fixed(value)).join(" to ");
  $("lead").textContent =
    `Frozen features of ${total} images. Here, in your browser, a head learns from them, and with it one proxy (a vector that stands for its class) for each of ${world(START).C} training classes. Then images of ${CLASSES.test} ${NOUN} that no run has trained on search each other; Recall@1 is how often the nearest one is of the same ${NOUN === "species" ? "species" : "class"}. Predict, press Train, watch.`;
  $("frozen-words").textContent =
    `frozen encoder, before any training: ${fixed(frozen.recall_at_1)}, 95 % interval ${interval}`;
  $("note").textContent = DATA.note;
  if (DATA.pictures)
    document.documentElement.style.setProperty("--sheet", `url(${DATA.pictures.sheet})`);
  STORY.forEach(({ name }, k) => {
    const title = { "aria-label": `${k + 1}. ${name}`, title: name };
    $("steps").append(button(`${k + 1}`, () => openStep(k), title));
  });
  addLevers();
  addGauge("recall", Math.min(1, Math.ceil(16 * frozen.recall_at_1) / 10));
  addGauge("rms", 1);
}

function listen() {
  const actions = {
    train: () => afterStop(train),
    stop,
    back: () => openStep(lab.step - 1),
    next: () => openStep(lab.step + 1),
    another: () => askFor(Math.floor(Math.random() * SIZES.test)),
    win: () => fork(makeWin),
    fresh: () => fork(() => confirm("fresh", 1)),
    longer: () => fork(() => confirm("longer", 4)),
    copy,
    clear,
    reset: () => restore(resolved(STORY[lab.step].set)),
  };
  for (const [id, action] of Object.entries(actions)) $(id).onclick = action;
  $("choices").onchange = ({ target }) => {
    lab.choice = Number(target.value);
  };
  listenToSphere();
  redrawWith(drawSoon, $("views"));
}

const alone = STORY.findIndex((step) => step.key === DATA.step);
fillPage();
if (alone >= 0) standAlone(STORY[alone]);
listen();
loadRuns();
openStep(Math.max(0, alone));
announce(`No run yet. Recall@1 of the frozen encoder is ${fixed(frozen.recall_at_1)}.`);
