// The lab: predict, train, pull the levers, keep a notebook of runs, take it to Python.
//
// Training happens in a worker (numerics.js and worker.js, as text in DATA.worker); this file holds
// the page's state, `lab`, and its controls. Drawing is in lab_views.js, the story in lab_story.js.

const START = DATA.start; // the settings the page opens with, by HeadConfig's names
const { frozen, classes: CLASSES, sizes: SIZES } = DATA.lab;
const NOUN = ["aviary", "cub200"].includes(START.dataset) && DATA.in_python ? "species" : "classes";
const TEST_LABELS = DATA.lab.labels.slice(SIZES.train);
const QUERIES = Array.from(
  { length: CLASSES.test },
  (_, c) => TEST_LABELS.filter((l) => l === c).length,
);
const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const BETTER = 0.005; // by so much more Recall@1 SO "wins" a try: as studies' smallest_effect
const SEEDS = [200, 201, 202, 203, 204]; // fresh ones: no try uses them

const values = (list) => (start) => [...new Set([...list, start])].sort((a, b) => a - b);
const steps = (low, high, by) => (start) =>
  values(
    Array.from({ length: Math.round((high - low) / by) + 1 }, (_, k) =>
      Number((low + k * by).toFixed(4)),
    ),
  )(start);
// Name in HeadConfig, what the reader calls it, its values; those of Proxy Anchor alone are marked.
const LIVE = [
  ["so_weight", "λ, SO", values([0, 1, 3, 10, 30, 50, 100, 200, 300, 1000]), true],
  ["threshold", "b, threshold", steps(-0.5, 0.9, 0.02), true],
  ["scale", "α, scale", steps(2, 64, 2), true],
  ["margin", "δ, margin", steps(0, 0.5, 0.02), true],
  ["head_lr", "head rate", values([5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2])],
  ["proxy_lr", "proxy rate", values([1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5])],
];
const CHOICES = {
  dim: ["D, dimensions", values([2, 3, 16, 64, 128])],
  epochs: ["epochs", values([5, 10, 20, 40, 80, 160])],
  loss: ["loss", () => ["proxy_anchor", "arcface", "triplet"]],
};
const LOSSES = { proxy_anchor: "Proxy Anchor", arcface: "softmax (ArcFace)", triplet: "triplets" };
// On a circle, so many classes stand closer together than ArcFace's margin of 28.6 degrees.
const FITS = ({ loss, dim }) => loss !== "arcface" || dim > 2;
const SWITCHES = { threshold_lr: ["learn b", 0.01], center: ["center proxies", true] };
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
  loss: "What is minimized. λ, b, α and δ belong to Proxy Anchor; the other two are there to compare. On a circle (D = 2) there is no room for ArcFace's margin.",
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
  family: {},
  live: null,
  query: 0,
  exported: "study",
  running: null,
  cancelled: false,
};

// ---- workers ---------------------------------------------------------------------------------

let runCount = 0;

function startWorker() {
  const address = URL.createObjectURL(new Blob([DATA.worker], { type: "text/javascript" }));
  const worker = new Worker(address),
    waiting = new Map();
  worker.onmessage = ({ data }) => {
    const one = waiting.get(data.run);
    if (!one) return;
    if (data.type === "done" || data.type === "error") waiting.delete(data.run);
    if (data.type === "done") one.resolve(data);
    else if (data.type === "error") one.reject(new Error(data.message));
    else one.tell(data);
  };
  worker.postMessage({ type: "load", data: DATA.lab });
  // Resolves to what the worker says when the run is done; `tell` hears everything before.
  const train = (settings, tell, quiet) =>
    new Promise((resolve, reject) => {
      const run = ++runCount;
      waiting.set(run, { resolve, reject, tell });
      worker.postMessage({ type: "start", run, settings, quiet });
    });
  return { train, post: (message) => worker.postMessage(message) };
}

const stage = startWorker(); // whose runs are shown while they train
const helpers = []; // for series of runs that are not shown

// Many runs at a time, none shown; resolves to their results in order, those cancelled left out.
async function series(wanted, said) {
  const number = clamp((navigator.hardwareConcurrency || 2) - 1, 1, 4);
  while (helpers.length < Math.min(number, wanted.length)) helpers.push(startWorker());
  const results = [],
    queue = [...wanted.entries()];
  const work = async (helper) => {
    while (queue.length && !lab.cancelled) {
      const [k, settings] = queue.shift();
      const result = await helper.train(settings, () => {}, true);
      if (!result.stopped) results[k] = remember(settings, result);
      said(results.filter(Boolean).length);
    }
  };
  await Promise.all(helpers.map(work));
  return results;
}

// ---- runs ------------------------------------------------------------------------------------

const key = (settings) =>
  JSON.stringify(
    Object.keys(START)
      .sort()
      .map((name) => settings[name]),
  );
const resolved = (set) => {
  const epochs = set.epochs === "×4" ? 4 * START.epochs : (set.epochs ?? START.epochs);
  return { ...START, ...set, epochs };
};
const find = (settings) =>
  lab.runs.findLast((run) => !run.changed && !run.stopped && key(run.settings) === key(settings));

function remember(settings, { neighbors, proxies, ...result }) {
  const { cosine, embedding_length } = result.means; // plain numbers and lists can be kept
  const plain = { hits: Array.from(result.hits), means: { cosine, embedding_length } };
  const run = { ...result, ...plain, settings, number: (lab.runs.at(-1)?.number ?? 0) + 1 };
  lab.runs.push(run);
  keep();
  showRuns();
  showTries();
  return run;
}

// The browser keeps the notebook of runs, where it lets a page; never those of another lab.
const SHELF = `sobook lab ${[
  ...JSON.stringify([DATA.note, START, frozen, DATA.worker, DATA.lab.features.codes.slice(-2000)]),
].reduce((hash, letter) => (Math.imul(hash, 31) + letter.charCodeAt(0)) | 0, 7)}`;
const KEPT = 300; // runs

function keep() {
  try {
    const { runs, family } = lab;
    localStorage.setItem(SHELF, JSON.stringify({ runs: runs.slice(-KEPT), family }));
  } catch {
    /* a private window, a notebook's frame, or no room: it lasts as long as the page */
  }
}

function recall() {
  try {
    const { runs, family } = JSON.parse(localStorage.getItem(SHELF));
    for (const one of Object.values(family)) one.p ??= NaN; // which JSON cannot hold
    Object.assign(lab, { runs, family });
  } catch {
    /* nothing was kept */
  }
  showRuns();
  if (lab.runs.length) showTries();
}

function clear() {
  Object.assign(lab, { runs: [], family: {} });
  try {
    localStorage.removeItem(SHELF);
  } catch {
    /* nothing was kept */
  }
  showRuns();
  showTries();
  drawSoon();
}

// What differs from where the page started, in words.
function inWords(settings) {
  const names = {
    so_weight: "λ",
    threshold: "b",
    scale: "α",
    margin: "δ",
    dim: "D",
    seed: "seed",
    epochs: "epochs",
  };
  const parts = Object.keys(START)
    .filter((name) => JSON.stringify(settings[name]) !== JSON.stringify(START[name]))
    .map((name) => {
      if (name === "loss") return LOSSES[settings.loss];
      if (name === "threshold_lr") return settings[name] > 0 ? "b learned" : "b fixed";
      if (name === "center") return settings[name] ? "centered" : "not centered";
      return `${names[name] ?? name} ${settings[name]}`;
    });
  return parts.join(", ") || "as the page started";
}

function world(settings) {
  const C = CLASSES.train - heldOut(settings),
    D = settings.dim;
  const floor = Math.max(0, (C * C) / D - C) / (C * (C - 1));
  return {
    noun: NOUN,
    C,
    D,
    floor,
    chance: 1 / Math.sqrt(D),
    frozen: frozen.recall_at_1,
    queries: QUERIES,
    epochs: START.epochs,
    find: (set) => find(resolved(set)),
  };
}

const heldOut = ({ validation_fraction: fraction }) => numerics.heldOut(CLASSES.train, fraction);

async function train() {
  stop();
  await lab.running;
  lab.cancelled = false;
  const step = STORY[lab.step],
    wanted = { ...lab.settings };
  const told = key(wanted) === key(resolved(step.set)),
    mine = (lab.running = work());
  await mine;
  if (lab.running === mine) lab.running = null;
  busy(false);

  async function work() {
    busy(true);
    try {
      let base;
      if (told && step.against) {
        base =
          find(resolved(step.against)) ?? (await show(resolved(step.against), "first without: "));
      }
      const run = lab.cancelled ? null : await show(wanted, "");
      if (told && run && !run.stopped && !run.changed && !(base?.stopped || base?.changed))
        conclude(step, run, base);
    } catch (error) {
      announce(`The run ended early: ${error.message}`);
    }
  }
}

// One run on the board, from its start to its end.
async function show(settings, prefix) {
  const w = world(settings);
  lab.answered = true;
  const live = (lab.live = {
    ...w,
    settings,
    so_weight: settings.so_weight,
    curve: [],
    losses: [],
    epochs: settings.epochs,
    classes: [],
    sampleClasses: [],
    prefix,
    color,
    old: oldCurves(),
  });
  const result = await stage.train(settings, (message) => hear(live, message), false);
  Object.assign(live, {
    proxies: result.proxies ?? live.proxies,
    means: result.means,
    geometry: result.geometry,
  });
  if (result.proxies) live.cosines = numerics.cosines(live.proxies, live.D);
  live.interval = result.interval;
  const run = remember(settings, { ...result, curve: live.curve });
  lab.neighbors = result.neighbors;
  $("progress").value = 1;
  const [low, high] = result.interval.map((value) => fixed(value));
  announce(
    `Recall@1 ${fixed(result.recall_at_1)} on ${CLASSES.test} unseen ${NOUN}, 95 % interval ${low} to ${high}; ` +
      `frozen encoder ${fixed(frozen.recall_at_1)}. RMS cosine ${fixed(result.geometry.rms_cosine)}. ` +
      `${result.stopped ? "Stopped early." : ""}${result.changed ? "Levers moved while it trained." : ""}`,
  );
  draw();
  return run;
}

function hear(live, message) {
  if (message.type === "started") {
    Object.assign(live, { classes: [...message.classes], steps: message.steps });
    const labels = DATA.lab.labels;
    live.sampleClasses = Array.from(message.sample, (row) => labels[row]);
  } else if (message.type === "progress") {
    const { proxies, sample, means, geometry, gradients, parts, threshold } = message;
    Object.assign(live, { proxies, sample, means, geometry, gradients, threshold });
    live.cosines = numerics.cosines(proxies, live.D);
    live.at = (message.step / live.steps) * live.epochs;
    const so = live.so_weight * (parts.soft_orthogonality ?? NaN);
    live.losses.push([live.at, parts.proxy_anchor ?? parts.loss, so]);
    if (!CALM.matches) drawSoon();
  } else if (message.type === "evaluated") {
    live.curve.push([message.epoch, message.recall_at_1]);
    lab.neighbors = message.neighbors;
    announce(
      `${live.prefix}epoch ${message.epoch} of ${live.epochs}: Recall@1 ${fixed(message.recall_at_1)} on unseen ${NOUN}`,
    );
    drawSoon();
  }
}

const oldCurves = () =>
  lab.runs
    .filter((run) => run.curve)
    .slice(-4)
    .map((run) => run.curve);

function announce(text) {
  $("live").textContent = text.charAt(0).toUpperCase() + text.slice(1);
}

function busy(yes) {
  $("stop").disabled = !yes;
  for (const id of ["win", "fresh", "longer"]) $(id).disabled = yes || (id !== "win" && !winner());
}

function stop() {
  lab.cancelled = true;
  for (const worker of [stage, ...helpers]) worker.post({ type: "stop" });
}

// ---- story -----------------------------------------------------------------------------------

function openStep(number, changed = {}) {
  lab.step = clamp(Math.round(number), 0, STORY.length - 1);
  const step = STORY[lab.step];
  Object.assign(lab, { choice: null, guess: { recall: null, rms: null }, answered: false });
  lab.settings = { ...resolved(step.set), ...changed };
  $("title").textContent = DATA.step ? step.name : `${lab.step + 1}. ${step.name}`;
  $("choices").replaceChildren(
    ...step.choices.map((text, k) => {
      const input = element("input", { type: "radio", name: "choice", value: k });
      input.onchange = () => {
        lab.choice = k;
      };
      return element("label", {}, input, text);
    }),
  );
  $("after").hidden = true;
  [...$("steps").children].forEach((node, k) => {
    if (k === lab.step) node.setAttribute("aria-current", "step");
    else node.removeAttribute("aria-current");
  });
  $("back").disabled = lab.step === 0;
  $("next").disabled = lab.step === STORY.length - 1;
  $("next").textContent = $("next").disabled ? "Next →" : `Next: ${STORY[lab.step + 1].name} →`;
  showSettings();
}

function conclude(step, run, base) {
  const w = world(run.settings),
    came = step.came(run, base, w),
    said = [];
  const guesses = [
    ["Recall@1", lab.guess.recall, run.recall_at_1],
    ["RMS cosine", lab.guess.rms, run.geometry.rms_cosine],
  ];
  for (const [name, guess, truth] of guesses) {
    if (guess !== null)
      said.push(`${name}: you said ${fixed(guess)}, it came out ${fixed(truth)}.`);
  }
  if (lab.choice !== null)
    said.unshift(lab.choice === came ? "As you predicted." : "Not what you predicted.");
  const last =
    lab.step === STORY.length - 1 && !DATA.step
      ? ["Now try to fool yourself: “Make SO win”, below."]
      : [];
  const found = element(
    "p",
    {},
    element("b", {}, "Ten seeds in Python, on the aviary: "),
    step.found,
  );
  $("after").replaceChildren(
    ...[said.join(" "), ...step.after(run, base, w)]
      .filter(Boolean)
      .map((text) => element("p", {}, text)),
    found,
    ...last.map((text) => element("p", {}, text)),
  );
  $("after").hidden = false;
  [...$("choices").children].forEach((label, k) => label.classList.toggle("came", k === came));
  $("steps").children[lab.step].classList.add("done");
  lab.concluded = lab.step;
}

// A scale with the reader's handle; `unset` until it is first moved.
function addGauge(id, name, most) {
  const input = $(id).querySelector("input");
  input.max = most;
  input.value = most / 2;
  input.oninput = () => {
    lab.guess[name] = Number(input.value);
    showGauges();
    drawSoon();
  };
}

function showGauges() {
  const live = lab.answered ? lab.live : null,
    w = world(lab.settings),
    recall = live?.curve.at(-1)?.[1];
  const at = (id, part, value) => {
    const box = $(id),
      most = Number(box.querySelector("input").max),
      node = box.querySelector(part);
    node.hidden = value === undefined;
    if (value !== undefined) node.style.left = `${clamp((100 * value) / most, 0, 100)}%`;
  };
  for (const [id, name, truth] of [
    ["gauge-recall", "recall", recall],
    ["gauge-rms", "rms", live?.geometry?.rms_cosine],
  ]) {
    const guess = lab.guess[name],
      box = $(id);
    box.classList.toggle("unset", guess === null);
    const words = [
      truth === undefined ? "" : `● ${fixed(truth)}`,
      guess === null ? "" : `you said ${fixed(guess)}`,
    ];
    box.querySelector("output").textContent =
      words.filter(Boolean).join(" · ") || "drag to predict";
    box
      .querySelector("input")
      .setAttribute("aria-valuetext", guess === null ? "no prediction yet" : fixed(guess));
    at(id, ".now", truth);
  }
  const most = Number($("gauge-recall").querySelector("input").max),
    band = $("gauge-recall").querySelector(".band");
  band.style.left = `${(100 * frozen.interval[0]) / most}%`;
  band.style.width = `${(100 * (frozen.interval[1] - frozen.interval[0])) / most}%`;
  at("gauge-recall", ".frozen", frozen.recall_at_1);
  at("gauge-rms", ".chance", w.chance);
  at("gauge-rms", ".floor", Math.sqrt(w.floor));
  $("rms-words").replaceChildren(
    element("span", { class: "keyed chance" }, `random directions ${fixed(w.chance)}`),
    element("span", { class: "keyed floor" }, `least possible ${fixed(Math.sqrt(w.floor))}`),
  );
}

// ---- levers ----------------------------------------------------------------------------------

function addLevers() {
  for (const [name, title, listed] of LIVE) {
    const list = listed(START[name]);
    const input = element("input", {
      type: "range",
      id: name,
      min: 0,
      max: list.length - 1,
      "aria-label": title,
    });
    input.oninput = () => pull(name, list[Number(input.value)]);
    $("live-levers").append(
      element("label", {}, element("span", {}, title, element("output")), input),
    );
    input.list_ = list;
  }
  for (const [name, [title, listed]] of Object.entries(CHOICES)) {
    const select = element("select", { id: name });
    for (const value of listed(START[name]))
      select.append(element("option", { value }, LOSSES[value] ?? `${value}`));
    select.onchange = () => pull(name, name === "loss" ? select.value : Number(select.value));
    $("next-levers").append(element("label", {}, title, select));
  }
  const seed = element("input", { type: "number", id: "seed", min: 0, max: 9999 });
  seed.onchange = () => pull("seed", clamp(Math.round(Number(seed.value)) || 0, 0, 9999));
  $("next-levers").append(element("label", {}, "seed", seed));
  for (const [name, [title, on]] of Object.entries(SWITCHES)) {
    const box = element("input", { type: "checkbox", id: name });
    box.onchange = () => pull(name, box.checked ? on : on === true ? false : 0);
    $("next-levers").append(element("label", { class: "check" }, box, title));
  }
}

// One sentence on the lever that the reader points at, or last touched.
function explain({ target }) {
  const lever = target.closest?.("#levers label")?.querySelector("input, select");
  if (lever) $("lever-words").textContent = MEANING[lever.id];
}

function pull(name, value) {
  lab.settings = { ...lab.settings, [name]: value };
  if (lab.running && LIVE.some((lever) => lever[0] === name)) {
    stage.post({ type: "set", name, value });
    if (name === "so_weight") lab.live.so_weight = value;
  }
  showSettings();
}

function showSettings() {
  const settings = lab.settings,
    anchor = settings.loss === "proxy_anchor";
  for (const [name, title, , anchorOnly] of LIVE) {
    const input = $(name),
      list = input.list_;
    const nearest = list.reduce(
      (best, value, k) =>
        Math.abs(value - settings[name]) < Math.abs(list[best] - settings[name]) ? k : best,
      0,
    );
    input.value = nearest;
    input.disabled = Boolean(anchorOnly) && !anchor;
    const text = `${settings[name]}`.replace("-", "−");
    input.parentNode.querySelector("output").textContent = text;
    input.setAttribute("aria-valuetext", `${title} ${text}`);
  }
  for (const name of [...Object.keys(CHOICES), "seed"]) $(name).value = settings[name];
  for (const option of $("loss").options)
    option.disabled = !FITS({ loss: option.value, dim: settings.dim });
  for (const option of $("dim").options)
    option.disabled = !FITS({ loss: settings.loss, dim: Number(option.value) });
  for (const name of Object.keys(SWITCHES)) {
    $(name).checked = Boolean(settings[name]);
    $(name).disabled = !anchor;
  }
  $("question").textContent = STORY[lab.step].question(world(settings));
  $("reset").hidden = key(settings) === key(resolved(STORY[lab.step].set));
  writeHash();
  showExport();
  if (!lab.live?.steps || lab.live.D !== settings.dim) {
    if (!lab.running) lab.live = untrained(settings);
  }
  drawSoon();
}

// What the board shows before the first run: random directions.
function untrained(settings) {
  const w = world(settings),
    random = numerics.generator(settings.seed);
  const proxies = Float32Array.from({ length: w.C * w.D }, () => numerics.normal(random));
  const zero = new Float32Array(w.D),
    classes = Array.from({ length: w.C }, (_, c) => c);
  return {
    ...w,
    settings,
    proxies,
    classes,
    color,
    sample: new Float32Array(0),
    sampleClasses: [],
    curve: [],
    losses: [],
    epochs: settings.epochs,
    so_weight: settings.so_weight,
    old: oldCurves(),
    means: { ...numerics.commonMode(proxies, zero, w.D), embedding_length: 0 },
    cosines: numerics.cosines(proxies, w.D),
  };
}

// The address holds the step and what differs from its settings: a link to any state.
function writeHash() {
  const words = new URLSearchParams({ step: lab.step + 1 }),
    preset = resolved(STORY[lab.step].set);
  for (const name of Object.keys(START)) {
    if (lab.settings[name] !== preset[name] && typeof START[name] !== "object")
      words.set(name, lab.settings[name]);
  }
  try {
    history.replaceState(null, "", `#${words}`);
  } catch {
    /* inside a notebook's frame there is no address */
  }
}

function readHash() {
  const words = new URLSearchParams(location.hash.slice(1)),
    told = {};
  for (const [name, text] of words) {
    const limits = [
      ...LIVE.map(([lever, , listed]) => [lever, listed(START[lever])]),
      ...Object.entries(CHOICES).map(([lever, [, listed]]) => [lever, listed(START[lever])]),
    ];
    const list = limits.find(([lever]) => lever === name)?.[1];
    if (name === "loss" && list.includes(text)) told[name] = text;
    else if (name === "center") told[name] = text === "true";
    else if (name === "threshold_lr") told[name] = Number(text) > 0 ? SWITCHES.threshold_lr[1] : 0;
    else if (name === "seed") told[name] = clamp(Math.round(Number(text)) || 0, 0, 9999);
    else if (list && text && Number.isFinite(Number(text)))
      told[name] = clamp(Math.round(Number(text) * 1e6) / 1e6, list[0], list.at(-1));
  }
  if (told.dim) told.dim = Math.round(told.dim);
  if (!FITS({ dim: START.dim, ...told })) delete told.loss;
  if (told.epochs) told.epochs = Math.round(told.epochs);
  const alone = STORY.findIndex(({ key: name }) => name === DATA.step);
  openStep(alone >= 0 ? alone : (Number(words.get("step")) || 1) - 1, told);
}

// ---- board -----------------------------------------------------------------------------------

const groups = { names: [] };
const GROUP = DATA.marks ? "genus" : "group";
const groupOf = (c) => DATA.names.train[c].split(" ").at(-1);
groups.names = [...new Set(DATA.names.train.map((_, c) => groupOf(c)))];
const color = (c) =>
  PALETTE[(groups.names.length > 30 ? c : groups.names.indexOf(groupOf(c))) % PALETTE.length];

let drawing = false;
function drawSoon() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
}

function draw() {
  const live = lab.live;
  if (!live?.proxies) return;
  views.drawSpace(live);
  views.drawHeat(live);
  views.drawAngles(live);
  views.drawCurve({ ...live, frozen, guess: lab.guess.recall });
  views.drawLoss(live);
  showGauges();
  showWords(live);
  showBirds();
  if (live.at !== undefined && lab.running) $("progress").value = live.at / live.epochs;
}

const describe = (id, text) => {
  if ($(id).getAttribute("aria-label") !== text) $(id).setAttribute("aria-label", text);
};

function showWords(live) {
  const { D, C, means, curve, losses } = live,
    shape = numerics.describe(live.proxies, D);
  const what =
    live.settings.loss === "triplet" ? "class means (triplets have no proxies)" : "proxies";
  const kind = D > 3 ? "Around the mean proxy" : D === 3 ? "On the sphere" : "On the circle";
  $("space-title").textContent = kind;
  const cosine =
    means.embedding_length > 0 ? `Cosine of the two means ${fixed(means.cosine, 2)}.` : "";
  const colored = groups.names.length > 30 ? "" : `, in the color of their ${GROUP}`;
  const how =
    D > 3
      ? `■ ${what}, ● images${colored}. North is the mean proxy: the farther north, the more a proxy or an image points that way. East and west only tell classes apart.`
      : `■ ${what}, ● images${colored}. Thin arrows: where Proxy Anchor (orange) and λ·SO (blue) want each proxy.${D === 3 ? " Drag to turn." : ""}`;
  $("space-words").textContent = `${how} ${cosine}`;
  describe(
    "space",
    `${kind}: ${C} proxies and images. ${cosine} Mean embedding ${fixed(means.embedding_length, 2)} long.`,
  );
  describe(
    "heat",
    `heatmap of ${C} by ${C} cosines: mean ${fixed(shape.mean_cosine)}, RMS ${fixed(shape.rms_cosine)}, largest ${fixed(shape.coherence)}`,
  );
  const words =
    `Gray: random directions, and dashed their spread, ±1/√D. RMS cosine ${fixed(shape.rms_cosine)}, mean ${fixed(shape.mean_cosine)}` +
    (shape.welch_bound > 0
      ? `; red: ${C} directions in ${D} dimensions cannot all stay within (Welch bound ${fixed(shape.welch_bound)}).`
      : ".");
  $("angles-words").textContent = words;
  describe("angles", `histogram of the angles between proxies. ${words}`);
  const last = curve.at(-1);
  describe(
    "curve",
    last
      ? `Recall@1 over the epochs: ${fixed(curve[0][1])} at the start, ${fixed(last[1])} at epoch ${last[0]}; frozen encoder ${fixed(frozen.recall_at_1)}`
      : "Recall@1 over the epochs: no run yet",
  );
  const [, anchor, so] = losses.at(-1) ?? [0, NaN, NaN],
    isAnchor = live.settings.loss === "proxy_anchor";
  const parts = losses.length
    ? [` ${fixed(anchor, 2)}`, Number.isFinite(so) ? ` ${fixed(so, 2)}` : ""]
    : ["", ""];
  $("loss-words").replaceChildren(
    element("span", { class: "keyed pa" }, `${LOSSES[live.settings.loss]}${parts[0]}`),
    ...(isAnchor ? [element("span", { class: "keyed so" }, `λ·SO${parts[1]}`)] : []),
    live.settings.threshold_lr > 0 && live.threshold !== undefined
      ? `b = ${fixed(live.threshold, 2)}`
      : "",
  );
  describe(
    "loss-chart",
    losses.length
      ? `loss: ${LOSSES[live.settings.loss]} ${fixed(anchor, 2)}${Number.isFinite(so) ? `, λ·SO ${fixed(so, 2)}` : ""}`
      : "loss: no run yet",
  );
}

// Field marks of a class of the aviary in words, those that are nothing special left out.
function marksOf(c) {
  const { names, values } = DATA.marks;
  const usual = (name, value) =>
    ["none", "plain", "dark", 0].includes(value) || (name === "bill length" && value === 1);
  return names.flatMap((name, k) =>
    usual(name, values[c][k]) ? [] : [`${name} ${inMark(name, values[c][k])}`],
  );
}

const inMark = (name, value) =>
  name === "bill length" ? ["short", "usual", "long"][value] : `${value}`;

// In which marks two classes differ.
function apart(c, other) {
  const { names, values, genera } = DATA.marks;
  const differing = names.filter((_, k) => values[c][k] !== values[other][k]);
  return `${genera[c] === genera[other] ? "same genus" : "another genus"}, other ${differing.join(", ")}`;
}

// What separates a query from the species wrongly retrieved for it, one line each.
function mistakes(q, retrieved) {
  const own = TEST_LABELS[q],
    wrong = new Set(retrieved.map((i) => TEST_LABELS[i]).filter((c) => c !== own));
  return [...wrong]
    .slice(0, 3)
    .map((c) => element("p", { class: "mistake" }, `✗ ${DATA.names.test[c]}: ${apart(own, c)}`));
}

// A test image; as an answer to the query it is framed and marked.
function bird(i, query) {
  const name = DATA.names.test[TEST_LABELS[i]],
    asked = query !== undefined;
  const relevant = asked && TEST_LABELS[i] === TEST_LABELS[query];
  const verdict = asked ? (relevant ? "relevant" : "irrelevant") : "query";
  const look = { class: `bird ${verdict}`, "aria-label": `${name}, ${verdict}`, title: name };
  const mark = asked ? (relevant ? "✓" : "✗") : "",
    ask = () => askFor(i);
  if (!DATA.pictures)
    return button(`${mark} ${name}`, ask, { ...look, class: `${look.class} text` });
  const { columns, rows } = DATA.pictures,
    at = (k, of) => (of > 1 ? (100 * k) / (of - 1) : 0);
  const node = button(mark, ask, look);
  node.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  node.style.backgroundPosition = `${at(i % columns, columns)}% ${at(Math.floor(i / columns), rows)}%`;
  return node;
}

function askFor(i) {
  lab.query = i;
  lab.shown = null;
  showBirds();
}

function showBirds() {
  const now = lab.neighbors,
    q = lab.query,
    head = now ? Array.from(now.slice(6 * q, 6 * q + 6)) : [];
  const shown = JSON.stringify([q, head]);
  if (lab.shown === shown || DATA.step) return; // new elements only where something changed, or focus would be lost
  lab.shown = shown;
  const own = TEST_LABELS[q],
    marks = element("p", {}, DATA.marks ? marksOf(own).join(", ") : "");
  $("pictures").replaceChildren(
    element("p", {}, `Query: ${DATA.names.test[own]}`),
    element("div", { class: "query" }, element("div", { class: "row" }, bird(q)), marks),
    element("p", {}, "Nearest, by the frozen encoder"),
    element("div", { class: "row" }, ...DATA.nearest[q].map((i) => bird(i, q))),
    ...(DATA.marks ? mistakes(q, DATA.nearest[q]) : []),
    element("p", {}, now ? "Nearest, by the head" : "Nearest, by the head: train first"),
    element("div", { class: "row" }, ...head.map((i) => bird(i, q))),
    ...(DATA.marks ? mistakes(q, head) : []),
  );
}

// ---- notebook of runs, forking paths ----------------------------------------------------------

function fill(table, head, rows) {
  table.replaceChildren(
    element(
      "thead",
      {},
      element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text))),
    ),
    element(
      "tbody",
      {},
      ...rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell)))),
    ),
  );
}

function showRuns() {
  const rows = lab.runs
    .slice(-60)
    .reverse()
    .map((run) => {
      const note = run.stopped ? " (stopped)" : run.changed ? " (levers moved)" : "";
      const again = button(
        `${run.number}. ${inWords(run.settings)}${note}`,
        () => restore(run.settings),
        { class: "link", title: "take these settings" },
      );
      const validation = run.validation_recall_at_1;
      return [
        again,
        fixed(run.recall_at_1),
        Number.isFinite(validation) ? fixed(validation) : "–",
        fixed(run.geometry.rms_cosine),
        fixed(run.geometry.mean_cosine),
      ];
    });
  $("runs").hidden = $("clear").hidden = !rows.length;
  fill($("runs"), ["Settings", "Recall@1", "Validation", "RMS cosine", "Mean cosine"], rows);
  if (!rows.length) {
    $("notebook-words").textContent = "Every run you start is written down here.";
    return;
  }
  const best = lab.runs.reduce(
    (top, run) => (run.recall_at_1 > (top?.recall_at_1 ?? 0) ? run : top),
    null,
  );
  $("notebook-words").textContent =
    `${lab.runs.length} ${lab.runs.length > 1 ? "runs" : "run"}; the best Recall@1 is that of number ${best.number}. ` +
    "Validation is on training classes held out; choose by it, since the unseen classes are for the last word.";
}

function restore(settings) {
  lab.settings = { ...settings };
  showSettings();
}

// Every pair of runs that differ in λ alone, one of them without SO: a try to make SO win.
function tries() {
  const sound = lab.runs.filter(
    (run) => !run.changed && !run.stopped && run.settings.loss === "proxy_anchor" && !run.confirms,
  );
  const bases = new Map(
    sound.filter((run) => run.settings.so_weight === 0).map((run) => [key(run.settings), run]),
  );
  const pairs = new Map();
  for (const run of sound) {
    const base = run.settings.so_weight > 0 && bases.get(key({ ...run.settings, so_weight: 0 }));
    if (base) pairs.set(key(run.settings), { run, base });
  }
  return [...pairs.values()].map((pair) => {
    pair.run.compared ??= statistics.compareClasses(pair.base.hits, pair.run.hits, QUERIES);
    return { ...pair, ...pair.run.compared };
  });
}

const winner = () =>
  tries()
    .filter((one) => one.difference >= BETTER)
    .sort((a, b) => b.difference - a.difference)[0];

function showTries() {
  const all = tries(),
    best = winner() ?? [...all].sort((a, b) => b.difference - a.difference)[0];
  const rows = [
    ["best try", best],
    ["fresh seeds", lab.family.fresh],
    ["four times longer", lab.family.longer],
  ].filter(([, one]) => one);
  const family = [...all.filter((one) => one !== best), ...rows.map(([, one]) => one)];
  const corrected = statistics.holm(family.map((one) => one.p));
  lab.left = rows.map(([name, one]) => {
    const p = corrected[family.indexOf(one)];
    return { name, ...one, corrected: p, verdict: statistics.verdict(one, p) };
  });
  $("tries").hidden = !all.length;
  fill(
    $("tries"),
    ["", "SO − without", "p", "corrected", "shown"],
    lab.left.map((one) => [
      `${one.name === "best try" ? `best of ${all.length} ${all.length > 1 ? "tries" : "try"}, λ ${one.run.settings.so_weight}` : one.name}, ` +
        `over ${one.n} ${one.over === "seeds" ? "seeds" : NOUN}`,
      `${signed(one.difference)} [${signed(one.low)}, ${signed(one.high)}]`,
      one.p >= 0 ? fixed(one.p) : "–",
      one.corrected >= 0 ? fixed(one.corrected) : "–",
      one.verdict,
    ]),
  );
  const won = Boolean(winner());
  $("fresh").disabled = $("longer").disabled = !won || Boolean(lab.running);
  $("fork-words").textContent = whatIsLeft(all, won);
}

// The last word on a win: chosen by the comparisons there are.
function whatIsLeft(all, won) {
  if (!all.length) return "";
  const [first, ...confirmed] = lab.left;
  const count = `${all.length} ${all.length > 1 ? "tries" : "try"}`;
  if (!won) return `${count}, and SO has not won by ${BETTER} yet. Keep trying.`;
  if (!confirmed.length) {
    return (
      `SO won by ${signed(first.difference)} after ${count}: p = ${fixed(first.p)} alone, ${fixed(first.corrected)} corrected for all tries. ` +
      "Does it hold on fresh seeds, and after four times as many epochs?"
    );
  }
  const parts = confirmed.map((one) => `${one.name} ${signed(one.difference)} (${one.verdict})`);
  const last = confirmed.at(-1),
    below = last.recall <= frozen.recall_at_1;
  const left =
    last.verdict === "higher"
      ? "A gain is left."
      : last.verdict === "lower"
        ? "It has turned into a loss."
        : "No difference is shown; nothing of the win is left to report.";
  return (
    `The win was ${signed(first.difference)}; ${parts.join("; ")}. ${left} The p values are corrected, by Holm, for all ${all.length + confirmed.length} comparisons made here.` +
    (below
      ? " These runs are not above the frozen encoder, so the comparison says little either way."
      : "")
  );
}

async function fork(work) {
  stop();
  await lab.running;
  lab.cancelled = false;
  const mine = (lab.running = work().catch((error) =>
    announce(`The runs ended early: ${error.message}`),
  ));
  busy(true);
  await mine;
  if (lab.running === mine) lab.running = null;
  busy(false);
  showTries();
  const best = lab.left.at(-1);
  if (best)
    announce(
      `Recall@1 with SO minus without, ${best.name}: ${signed(best.difference)}, ${best.verdict}.`,
    );
}

// Tries until one is won. What each takes could be defended in a paper, which is the trouble.
async function makeWin() {
  const from = tries().length,
    settings = { ...lab.settings, loss: "proxy_anchor", loss_options: {} };
  lab.family = {};
  for (let k = from; k < from + 20 && !lab.cancelled; k++) {
    const random = numerics.generator(97 * k + 5),
      draw = (list) => list[Math.floor(random() * list.length)];
    const seed = 1 + (k % 60),
      so_weight = draw([1, 3, 10, 30, 100, 300]),
      scale = draw([8, 16, 32, 64]);
    const dim = draw([16, 32, 64, 128]),
      epochs = Math.ceil(draw([0.25, 0.5, 1]) * lab.settings.epochs);
    $("fork-words").textContent =
      `Try ${k + 1}: λ ${so_weight}, α ${scale}, D ${dim}, ${epochs} epochs, seed ${seed} …`;
    const pair = [0, so_weight].map((weight) => ({
      ...settings,
      seed,
      scale,
      dim,
      epochs,
      so_weight: weight,
    }));
    await series(
      pair.filter((one) => !find(one)),
      () => {},
    );
    const newest = tries().at(-1);
    if (newest?.difference >= BETTER) break;
  }
}

// The winner's settings, with and without SO, on five seeds that no try has used.
async function confirm(name, times) {
  const { settings } = winner().run,
    wanted = [];
  for (const seed of SEEDS) {
    for (const so_weight of [0, settings.so_weight])
      wanted.push({ ...settings, seed, so_weight, epochs: times * settings.epochs });
  }
  const say = (done) => {
    $("fork-words").textContent = `${name}: ${done} of ${wanted.length} runs …`;
  };
  say(0);
  const results = await series(wanted, say);
  if (results.filter(Boolean).length < wanted.length) return;
  for (const run of results) run.confirms = true;
  keep();
  const of = (which) => results.filter((_, k) => k % 2 === which).map((run) => run.recall_at_1);
  const mean = (list) => list.reduce((a, b) => a + b) / list.length;
  lab.family[name] = {
    ...statistics.compareSeeds(of(0), of(1)),
    recall: Math.max(mean(of(0)), mean(of(1))),
  };
  keep();
}

// ---- export ----------------------------------------------------------------------------------

const asPython = (value) =>
  value === null
    ? "None"
    : typeof value === "boolean"
      ? value
        ? "True"
        : "False"
      : JSON.stringify(value);
function asToml(value) {
  if (value === null) return '"none"';
  if (value && typeof value === "object")
    return `{ ${Object.entries(value)
      .map(([name, one]) => `${name} = ${asToml(one)}`)
      .join(", ")} }`;
  return JSON.stringify(value);
}

// Settings that differ from those of the package, which are left out.
const differing = (names) =>
  Object.keys(DATA.defaults).filter(
    (name) =>
      JSON.stringify(lab.settings[name]) !== JSON.stringify(DATA.defaults[name]) &&
      (!names || names.includes(name)),
  );

const EXPORTS = {
  study: [
    "study (TOML)",
    "lab.toml",
    () => {
      const so = lab.settings.so_weight,
        anchor = lab.settings.loss === "proxy_anchor" && so > 0;
      const varied = ["seed", ...(anchor ? ["so_weight"] : [])];
      const lines = differing()
        .filter((name) => !varied.includes(name))
        .map((name) => `${name} = ${asToml(lab.settings[name])}`);
      const seeds = Array.from({ length: 5 }, (_, k) => lab.settings.seed + k).join(", ");
      return [
        "# sobook study lab.toml",
        'title = "From the lab"',
        'trainer = "head"',
        ...(anchor ? ["baseline = { so_weight = 0 }"] : []),
        "",
        "[fixed]",
        ...lines,
        "",
        "[grid]",
        ...(anchor ? [`so_weight = [0, ${so}]`] : []),
        `seed = [${seeds}]`,
        "",
      ].join("\n");
    },
  ],
  head: [
    "head alone (Python)",
    "lab_head.py",
    () =>
      [
        "from sobook.training.heads import HeadConfig, fit_head",
        "",
        "config = HeadConfig(",
        ...differing().map((name) => `    ${name}=${asPython(lab.settings[name])},`),
        ")",
        "print(fit_head(config))",
        "",
      ].join("\n"),
  ],
  train: [
    "fine-tuning (Python)",
    "lab_train.py",
    () => {
      const shared = [
        "dataset",
        "root",
        "options",
        "allow_partial",
        "encoder",
        "weights",
        "image_size",
        "token",
        "dim",
        "margin",
        "scale",
        "threshold",
        "threshold_lr",
        "so_weight",
        "validation_fraction",
        "seed",
      ];
      const only =
        lab.settings.loss !== "proxy_anchor" || lab.settings.center
          ? ["# Plain Proxy Anchor: the loss or the centering chosen in the lab is for heads only."]
          : [];
      return [
        "# Fine-tunes the backbone as well: another experiment, with epochs and rates of its own.",
        ...only,
        "import sobook",
        "",
        "config = sobook.TrainConfig(",
        ...differing(shared).map((name) => `    ${name}=${asPython(lab.settings[name])},`),
        ")",
        "run = sobook.fit(config)",
        "",
      ].join("\n");
    },
  ],
};

function showExport() {
  const [, file, write] = EXPORTS[lab.exported],
    note = "# The features of this page came from a file; name a data set instead.\n";
  const text = (DATA.in_python ? "" : note) + write();
  $("code").textContent = text;
  for (const node of $("kinds").children)
    node.setAttribute("aria-pressed", node.id === `export-${lab.exported}`);
  $("download").href = `data:text/plain;charset=utf-8,${encodeURIComponent(text)}`;
  $("download").download = file;
  $("download").hidden = false;
  $("download").textContent = `Download ${file}`;
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("code").textContent);
    $("copy").textContent = "Copied";
    setTimeout(() => {
      $("copy").textContent = "Copy";
    }, 1500);
  } catch {
    // no right to: select it, so that the keyboard can
    getSelection().selectAllChildren($("code"));
  }
}

// In a notebook, one step alone: its question, its levers and its views.
function standAlone({ levers, views: shown }) {
  document.body.classList.add("alone");
  for (const node of document.querySelectorAll("#levers label")) {
    node.hidden = !levers.includes(node.querySelector("input, select").id);
  }
  for (const set of document.querySelectorAll("fieldset"))
    set.hidden = !set.querySelector("label:not([hidden])");
  for (const figure of document.querySelectorAll("figure")) {
    figure.hidden = !shown.includes(figure.querySelector("canvas")?.id);
  }
  $("views").append($("after")); // where there is room
}

// ---- start -----------------------------------------------------------------------------------

function turnSphere() {
  const canvas = $("space");
  let held = null;
  const turn = (dx, dy) => {
    const [a, b] = views.turn.angles;
    views.turn.angles = [a - dx, clamp(b + dy, -1.5, 1.5)];
    drawSoon();
  };
  canvas.onpointerdown = (event) => {
    held = pointer(event, canvas);
    canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => {
    if (!held || lab.live.D === 2) return;
    const [x, y] = pointer(event, canvas);
    turn((x - held[0]) / 120, (y - held[1]) / 120);
    held = [x, y];
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    held = null;
  };
  canvas.onkeydown = ({ key: pressed }) => {
    const by = {
      ArrowLeft: [-0.1, 0],
      ArrowRight: [0.1, 0],
      ArrowUp: [0, -0.1],
      ArrowDown: [0, 0.1],
    }[pressed];
    if (by && lab.live.D > 2) turn(...by);
  };
}

$("lead").textContent =
  `Frozen features of ${(SIZES.train + SIZES.test).toLocaleString("en")} images. Here, in your browser, a head learns from them, and with it one proxy ` +
  `(a vector that stands for its class) for each of ${world(START).C} training classes. Then images of ${CLASSES.test} ${NOUN} that no run has trained on ` +
  `search each other; Recall@1 is how often the nearest one is of the same ${NOUN === "species" ? "species" : "class"}. Predict, press Train, watch.`;
for (const node of document.querySelectorAll(".noun")) node.textContent = NOUN;
$("frozen-words").textContent =
  `frozen encoder, before any training: ${fixed(frozen.recall_at_1)}, 95 % interval ${frozen.interval.map((value) => fixed(value)).join(" to ")}`;
$("note").textContent = DATA.note;
if (DATA.pictures)
  document.documentElement.style.setProperty("--sheet", `url(${DATA.pictures.sheet})`);
STORY.forEach(({ name }, k) =>
  $("steps").append(
    button(`${k + 1}`, () => openStep(k), { "aria-label": `${k + 1}. ${name}`, title: name }),
  ),
);
for (const [name, [title]] of Object.entries(EXPORTS)) {
  $("kinds").append(
    button(
      title,
      () => {
        lab.exported = name;
        showExport();
      },
      { id: `export-${name}` },
    ),
  );
}
addLevers();
for (const kind of ["pointerover", "focusin"]) $("levers").addEventListener(kind, explain);
addGauge("gauge-recall", "recall", Math.min(1, Math.ceil(16 * frozen.recall_at_1) / 10));
addGauge("gauge-rms", "rms", 1);
$("train").onclick = train;
$("stop").onclick = stop;
$("back").onclick = () => openStep(lab.step - 1);
$("next").onclick = () => openStep(lab.step + 1);
$("another").onclick = () => askFor(Math.floor(Math.random() * SIZES.test));
$("win").onclick = () => fork(makeWin);
$("fresh").onclick = () => fork(() => confirm("fresh", 1));
$("longer").onclick = () => fork(() => confirm("longer", 4));
if (DATA.step) standAlone(STORY.find(({ key: name }) => name === DATA.step));
$("copy").onclick = copy;
$("clear").onclick = clear;
$("reset").onclick = () => restore(resolved(STORY[lab.step].set));
turnSphere();
recall();
readHash();
addEventListener("hashchange", readHash);
redrawWith(drawSoon, $("views"));
announce(`No run yet. Recall@1 of the frozen encoder is ${fixed(frozen.recall_at_1)}.`);
window.lab = lab;
