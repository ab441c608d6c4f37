"""The pages' arithmetic in a browser, against the package's own in PyTorch.

Same start and same batches: loss parts, gradients and parameters of 100 steps are held against
`sobook.training.loop.Trainer`, with the heads and losses of `sobook.training.heads`, in float64 and
in float32. ``pytest -m slow -s`` prints the deviations.
Deviations are relative to the largest number of an array. Notation: N images, F features,
C classes, D dimensions.
"""

import base64
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sobook import geometry
from sobook.course.pages import playground
from sobook.course.pages.page import read_asset
from sobook.data.loader import batch_plan
from sobook.figures.proxies import random_angle_density
from sobook.retrieval import evaluate, nearest_neighbors
from sobook.training import heads
from sobook.training.heads import HeadConfig
from sobook.training.loop import Trainer, loss_rates
from sobook.training.processes import Processes

STEPS = 100
CLASSES, EACH, FEATURES = 12, 20, 24

# What each differs in from Proxy Anchor with λ = 10 in 16 dimensions. Those of QUICK together use
# every loss and option once; the others are run nightly.
QUICK = {
    "anchor": {},
    "D = 2": {"dim": 2},
    "learned threshold, centered": {"threshold_lr": 0.01, "threshold": 0.1, "center": True},
    "arcface": {"loss": "arcface", "loss_options": {"margin": 20.0, "scale": 16.0}},
    "triplet": {"loss": "triplet", "loss_options": {"margin": 0.2}, "images_per_class": 4},
    "clipped, constant, decay, C > D": {
        "clip_norm": 0.5,
        "schedule": "constant",
        "weight_decay": 0.05,
        "dim": 8,
    },
}
SLOW = {
    "λ = 0": {"so_weight": 0.0},
    "λ = 300": {"so_weight": 300.0},
    "SO as a sum": {"so_reduction": "sum", "so_weight": 0.05},
    "threshold .4": {"threshold": 0.4},
    "learned threshold": {"threshold_lr": 0.01},
    "centered": {"center": True},
    "scale 8, margin .3": {"scale": 8.0, "margin": 0.3},
    "scale 64": {"scale": 64.0},
    "4 images per class": {"images_per_class": 4},
    "D = 3": {"dim": 3},
    "D = 64 > F": {"dim": 64},
    "D = 128 > F": {"dim": 128},
    "NormFace": {"loss": "arcface", "loss_options": {"margin": 0.0, "scale": 16.0}},
    "arcface, its defaults": {"loss": "arcface"},
    "arcface, beyond 180 degrees": {"loss": "arcface", "loss_options": {"margin": 100.0}},
    "arcface, D = 16, as is": {"loss": "arcface", "loss_options": {"margin": 5.0, "scale": 8.0}},
    "triplet, its defaults": {"loss": "triplet", "images_per_class": 4},
    "triplet, random batches": {"loss": "triplet", "loss_options": {"margin": 0.3}},
    "constant": {"schedule": "constant"},
    "weight decay": {"weight_decay": 0.1},
    "clipped": {"clip_norm": 0.1},
    "slow": {"head_lr": 1e-4, "proxy_lr": 1e-3},
}


@pytest.fixture
def lab(visit):
    """A page with the arithmetic and nothing else; calls a function of JavaScript there."""
    head = "<!doctype html><html><head><link rel='icon' href='data:,'></head><body>"
    page = visit(f"{head}<script>{read_asset('numerics.js')}</script>")
    return page.evaluate


def toy(seed: int = 0, each: int = EACH) -> tuple[np.ndarray, np.ndarray]:
    """(N, F) float32 features of classes that overlap, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), each)
    centers = rng.normal(size=(CLASSES, FEATURES)) + 2 * rng.normal(size=FEATURES)
    features = centers[labels] + rng.normal(size=(len(labels), FEATURES))
    return features.astype(np.float32), labels


def torch_run(config: HeadConfig, features, labels, batches, double: bool = False):
    """The start, and all that the steps compute, by the package."""
    torch.manual_seed(config.seed)
    model = heads._UnitHead(FEATURES, config.dim)
    loss = heads._make_loss(config, CLASSES, config.dim)
    rates = [(model.parameters(), config.head_lr), *loss_rates(loss, config)]
    processes = Processes(torch.device("cpu"))
    trainer = Trainer(model, loss, rates, config, steps=len(batches), processes=processes)
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels)
    parameters = {"weight": model.head[1].weight, "bias": model.head[1].bias}
    if config.loss == "arcface":
        parameters["proxies"] = loss.W
    elif config.loss == "proxy_anchor":
        parameters["proxies"] = dict(loss.named_parameters())[
            "parametrizations.proxies.original" if config.center else "proxies"
        ]
        if config.threshold_lr:
            parameters["threshold"] = loss.threshold
    start = {name: rows(name, value, config) for name, value in parameters.items()}
    if double:
        model.double(), loss.double()
        inputs = inputs.double()
    seen = {}
    for step, batch in enumerate(batches):
        parts = trainer.step(step, inputs[batch], targets[batch])
        new = {**parts, **{name: rows(name, p, config) for name, p in parameters.items()}}
        new |= {f"{name} gradient": rows(name, p.grad, config) for name, p in parameters.items()}
        for name, value in new.items():
            seen.setdefault(name, []).append(value)
    with torch.inference_mode():
        seen["embeddings"] = [model(inputs).flatten().tolist()]
    return start, seen


def rows(name: str, value: torch.Tensor, config: HeadConfig) -> list[float]:
    """A parameter as JavaScript holds it; ArcFace's proxies are the columns of a (D, C) matrix."""
    value = value.detach().clone()
    return (value.T if name == "proxies" and config.loss == "arcface" else value).flatten().tolist()


IN_THE_BROWSER = """({ settings, features, labels, batches, start, F, C }) => {
  const inputs = numerics.layerNorm(Float32Array.from(features), F), seen = {};
  const trainer = new numerics.Trainer(
    settings, { inputs, labels, F, C, steps: batches.length, start });
  batches.forEach((rows, step) => {
    const { parts, gradient_norm } = trainer.step(step, rows), now = { ...parts, gradient_norm };
    for (const { name, value, gradient } of trainer.learned) {
      now[name] = [...value];
      now[`${name} gradient`] = [...gradient];
    }
    for (const [name, value] of Object.entries(now)) (seen[name] ??= []).push(value);
  });
  seen.embeddings = [[...trainer.embed(inputs)]];
  return seen;
}"""


def deviations(lab, settings: dict, seed: int = 0) -> tuple[dict, dict, dict]:
    """Of each number: browser from PyTorch in float64, and in float32; and these two apart."""
    config = HeadConfig(
        **{"so_weight": 10.0, "dim": 16, "batch_size": 40, "seed": seed, **settings}
    )
    features, labels = toy(seed)
    plan = [
        batch_plan(np.random.default_rng([seed, epoch]), labels, 40, config.images_per_class)
        for epoch in range(math.ceil(STEPS * 40 / len(labels)))
    ]
    batches = np.concatenate(plan)[:STEPS]
    start, expected = torch_run(config, features, labels, batches)
    _, exact = torch_run(config, features, labels, batches, double=True)
    what = {
        "settings": config.to_dict(),
        "features": features.flatten().tolist(),
        "labels": labels.tolist(),
        "batches": batches.tolist(),
        "start": start,
        "F": FEATURES,
        "C": CLASSES,
    }
    seen = lab(IN_THE_BROWSER, what)
    assert seen.keys() == expected.keys()
    pairs = ((seen, exact), (seen, expected), (expected, exact))
    return tuple({name: deviation(a[name], b[name]) for name in exact} for a, b in pairs)


def deviation(own: list, expected: list) -> float:
    """Largest over the steps, relative to the largest number of an array at that step.

    A single number, such as a threshold and its gradient, may pass through zero: it is relative to
    its largest value.
    """
    mine, theirs = (np.array(values).reshape(len(values), -1) for values in (own, expected))
    assert mine.shape == theirs.shape
    size = np.abs(theirs).max(axis=None if theirs.shape[1] == 1 else 1)
    return float((np.abs(mine - theirs).max(axis=1) / size).max())


def check_parity(lab, settings: dict, seed: int = 0) -> None:
    """Equal to PyTorch in float64; from its float32 no further than that is from float64.

    In two or three dimensions float32 loses gradients to cancellation: they are what is left when
    the part along a unit vector has been taken away, which is nearly all of them.
    """
    exact, usual, rounding = deviations(lab, settings, seed)
    print(f"{max(exact.values()):.0e} from float64, {max(usual.values()):.0e} from float32")
    assert {"loss", "weight", "weight gradient", "bias", "embeddings"} <= exact.keys()
    assert {name: exact[name] for name in exact if exact[name] > 1e-6} == {}
    allowed = {name: 1e-6 + 1.1 * rounding[name] for name in usual}
    assert {name: usual[name] for name in usual if usual[name] > allowed[name]} == {}
    if settings.get("dim", 16) > 3:
        assert max(usual.values()) < 1e-4


@pytest.mark.parametrize("name", QUICK)
def test_100_steps_as_in_pytorch(lab, name):
    check_parity(lab, QUICK[name])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_100_steps_as_in_pytorch_for_every_loss_and_option(lab, name, seed):
    check_parity(lab, (QUICK | SLOW)[name], seed)


# ---- what it computes of embeddings and proxies --------------------------------------------------

SEARCH = """({ rows, D, labels, T, k }) => {
  const { unit } = numerics.unitRows(Float32Array.from(rows), D);
  const neighbors = numerics.nearest(unit, D, k);
  const { recall_at_1, hits, queries } = numerics.recall(neighbors, k, labels, T);
  return { neighbors: [...neighbors], recall_at_1, hits: [...hits], queries: [...queries],
    interval: numerics.classInterval(hits, queries) };
}"""


def searched(lab, rows: np.ndarray, labels: np.ndarray, k: int = 4) -> dict:
    what = {"rows": rows.flatten().tolist(), "D": rows.shape[1], "labels": labels.tolist()}
    return lab(SEARCH, {**what, "T": int(labels.max()) + 1, "k": k})


@pytest.mark.parametrize("dim", [3, 16, 64, 128])
def test_recall_is_that_of_evaluate(lab, dim):
    """Equal to the last query; on a circle (D = 2) near-ties in float32 would decide."""
    rng = np.random.default_rng(dim)
    labels = np.repeat(np.arange(30), 15 if dim > 3 else 60)
    rows = rng.normal(size=(30, dim))[labels] + rng.normal(size=(len(labels), dim))
    rows = rows.astype(np.float32)
    expected, seen = evaluate(rows, labels, ks=(1,)), searched(lab, rows, labels)
    assert seen["recall_at_1"] == expected.recall[1]
    queries, hits = expected.by_class(1)
    assert seen["hits"] == hits.tolist() and seen["queries"] == queries.tolist()
    assert_allclose(seen["interval"], expected.interval(1), atol=0.01)
    assert seen["neighbors"] == nearest_neighbors(rows, 4)[1].flatten().tolist()


def test_duplicates_and_ties_count_in_the_order_of_their_index(lab):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 16)).astype(np.float32)[rng.integers(0, 60, 200)]  # many twice
    labels = rng.integers(0, 3, 200)
    labels[7:13] = range(4, 10)  # alone in their classes: no queries
    seen, expected = searched(lab, rows, labels), evaluate(rows, labels, ks=(1,))
    assert seen["recall_at_1"] == expected.recall[1] and seen["queries"][9] == 0
    assert_allclose(seen["interval"], expected.interval(1), atol=0.02)
    assert seen["neighbors"] == nearest_neighbors(rows, 4)[1].flatten().tolist()


@pytest.mark.parametrize("classes, dim", [(12, 2), (12, 3), (7, 16), (40, 16)])
def test_geometry_is_that_of_describe(lab, classes, dim):
    rng = np.random.default_rng(classes)
    proxies = (rng.normal(size=(classes, dim)) + 0.4).astype(np.float32)
    embeddings = rng.normal(size=(50, dim)).astype(np.float32)
    seen = lab(
        """({ P, X, D }) => { const [proxies, rows] = [P, X].map((a) => Float32Array.from(a));
        const { proxy, embedding, ...means } = numerics.commonMode(proxies, rows, D);
        return { ...numerics.describe(proxies, D), ...means, proxy: [...proxy],
          cosines: [...numerics.cosines(proxies, D)],
          histogram: [...numerics.angleHistogram(numerics.cosines(proxies, D), 2)] }; }""",
        {"P": proxies.flatten().tolist(), "X": embeddings.flatten().tolist(), "D": dim},
    )
    shape = geometry.describe(proxies)
    for name in ("rms_cosine", "mean_cosine", "coherence", "welch_bound", "chance_cosine"):
        assert seen[name] == pytest.approx(getattr(shape, name), abs=1e-6)
    assert seen["floor"] == pytest.approx(shape.orthogonality_floor / classes / (classes - 1))
    assert_allclose(seen["cosines"], shape.cosines.flatten(), atol=1e-6)
    columns = heads.common_mode_columns(torch.from_numpy(proxies), torch.from_numpy(embeddings))
    assert seen["embedding_length"] == pytest.approx(columns["embedding_mean_length"], abs=1e-6)
    cosine = columns["cosine_of_mean_proxy_and_mean_embedding"]
    assert seen["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert_allclose(seen["proxy"], geometry.unit_rows(proxies).mean(0), atol=1e-6)
    assert sum(seen["histogram"]) == pytest.approx(0.5)


def test_angles_of_random_directions(lab):
    for dim in (2, 3, 16, 128):
        angles = np.array([1.0, 45, 80, 90, 135])
        seen = lab(
            f"(angles) => angles.map((a) => numerics.randomAngleDensity(a, {dim}))", angles.tolist()
        )
        assert_allclose(seen, random_angle_density(angles, dim), rtol=1e-9, atol=1e-300)


# ---- start, batches, features --------------------------------------------------------------------


@pytest.mark.parametrize("dim, features", [(16, 24), (24, 24), (64, 24), (2, 24)])
def test_a_head_starts_orthogonal_and_proxies_as_in_the_package(lab, dim, features):
    seen = lab(
        """({ D, F }) => ["proxy_anchor", "arcface"].map((loss) => {
        const settings = { loss, dim: D, seed: 3, threshold: 0.2 };
        const trainer = new numerics.Trainer(settings, { F, C: 500 });
        return [[...trainer.weight.value], [...trainer.proxies.value]]; })""",
        {"D": dim, "F": features},
    )
    for (weight, proxies), spread in zip(seen, (np.sqrt(2 / 500), 1.0), strict=True):
        weight = np.reshape(weight, (dim, features))
        gram = weight @ weight.T if dim <= features else weight.T @ weight
        assert_allclose(gram, np.eye(len(gram)), atol=1e-6)
        assert np.std(proxies) == pytest.approx(spread, rel=0.1)
        assert np.mean(proxies) == pytest.approx(0, abs=4 * spread / np.sqrt(len(proxies)))


def test_layer_norm_is_that_of_torch_also_for_small_features(lab):
    features = np.random.default_rng(0).normal(size=(5, FEATURES)) * [[1], [1e-2], [1e-3], [0], [9]]
    features = features.astype(np.float32)
    call = f"(rows) => [...numerics.layerNorm(Float32Array.from(rows), {FEATURES})]"
    seen = np.reshape(lab(call, features.flatten().tolist()), features.shape)
    expected = torch.nn.functional.layer_norm(torch.from_numpy(features), (FEATURES,))
    assert_allclose(seen, expected, atol=1e-5)


def test_batches_are_drawn_as_for_images(lab):
    labels = np.repeat(np.arange(9), 11)
    plan = (
        "(labels) => numerics.batchPlan(numerics.generator(1), labels, 20, {}).map((b) => [...b])"
    )
    batches = lab(plan.format(0), labels.tolist())
    assert [len(batch) for batch in batches] == [20] * 4
    assert len(set(np.ravel(batches))) == 80
    for batch in lab(plan.format(4), labels.tolist()):
        assert sorted(np.unique(labels[batch], return_counts=True)[1]) == [4] * 5
        assert len(set(batch)) == 20
    few = np.append(labels, [9, 9])  # a class of two: repeated within a batch
    batches = lab(plan.format(2), few.tolist())
    assert all(len(set(labels_of)) == 10 for labels_of in few[batches])
    for size, per_class, message in ((100, 0, "only 99 training"), (20, 3, "multiple of 3")):
        told = lab(
            f"""(labels) => {{ try {{
            numerics.batchPlan(numerics.generator(1), labels, {size}, {per_class});
        }} catch (error) {{ return error.message; }} }}""",
            labels.tolist(),
        )
        assert message in told


def test_as_many_classes_are_held_out_as_in_the_package(lab):
    for classes in (4, 5, 10, 40, 45):
        for fraction in (0.1, 0.2, 0.25, 0.5, 0.9):
            expected = min(max(round(fraction * classes), 2), classes - 2)
            assert lab(f"numerics.heldOut({classes}, {fraction})") == expected
    assert lab("numerics.heldOut(40, 0)") == 0


def test_quantized_features_are_decoded_to_the_bit(lab):
    rng = np.random.default_rng(0)
    low, step = rng.normal(size=(2, 7)).astype(np.float32)
    codes = rng.integers(0, 256, (31, 7), dtype=np.uint8)
    packed = {"dim": 7, "low": text(low), "step": text(step), "codes": text(codes)}
    seen = lab("(packed) => [...numerics.decode(packed)]", packed)
    exact = low.astype(np.float64) + step.astype(np.float64) * codes
    assert np.float32(seen).tobytes() == exact.astype(np.float32).tobytes()


def text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


# ---- the worker ----------------------------------------------------------------------------------

TALK = """({ source, data, talk, runs }) => new Promise((resolve) => {
  const worker = new Worker(URL.createObjectURL(new Blob([source]))), heard = [];
  const plain = (_, value) => (ArrayBuffer.isView(value) ? [...value] : value);
  worker.onmessage = ({ data: message }) => {
    heard.push(JSON.parse(JSON.stringify(message, plain)));
    for (const next of talk[message.type]?.shift() ?? []) worker.postMessage(next);
    if (["done", "error"].includes(message.type) && !(runs -= 1)) {
      worker.terminate();
      resolve(heard);
    }
  };
  worker.postMessage({ type: "load", data });
})"""


def packed(seed: int = 0) -> dict:
    """Training and test classes as the lab's page hands them to its worker."""
    features, labels = toy(seed)
    other, _ = toy(seed + 1)
    rows = np.concatenate([features, other])
    low = rows.min(0)
    step = (rows.max(0) - low) / 255
    codes = np.rint((rows - low) / step).astype(np.uint8)
    return {
        "features": {"dim": FEATURES, "low": text(low), "step": text(step), "codes": text(codes)},
        "labels": np.tile(labels, 2).tolist(),
        "sizes": {"train": len(labels), "test": len(labels)},
        "classes": {"train": CLASSES, "test": CLASSES},
        "class_order": [np.random.default_rng(s).permutation(CLASSES).tolist() for s in range(2)],
    }


def talk(lab, runs: int = 1, **answers) -> list[dict]:
    """All that the worker says until so many runs are over.

    `answers` has what it is told at the first, second … message of a kind.
    """
    source = read_asset("numerics.js") + read_asset("worker.js")
    return lab(TALK, {"source": source, "data": packed(), "talk": answers, "runs": runs})


def start(run: int = 1, quiet: bool = False, **changes) -> dict:
    settings = {"dim": 16, "batch_size": 40, "epochs": 6, "so_weight": 10.0, **changes}
    config = HeadConfig(**settings).to_dict()
    return {"type": "start", "run": run, "settings": config, "quiet": quiet}


@pytest.mark.parametrize("loss, dim", [("proxy_anchor", 3), ("arcface", 16), ("triplet", 2)])
def test_the_worker_trains_and_reports(lab, loss, dim):
    heard = talk(lab, ready=[[start(loss=loss, dim=dim)]])
    kinds = [message["type"] for message in heard]
    assert kinds[:2] == ["ready", "started"] and kinds[-1] == "done"
    begun, done = heard[1], heard[-1]
    held_out = np.random.default_rng(0).permutation(CLASSES)[:2]
    assert begun["classes"] == sorted(set(range(CLASSES)) - set(held_out))
    assert begun["steps"] == 6 * 5  # 200 of the 240 images, by 40
    evaluated = [message for message in heard if message["type"] == "evaluated"]
    assert [message["epoch"] for message in evaluated] == [0, 2, 4, 6]
    for message in evaluated:
        assert len(message["neighbors"]) == 6 * EACH * CLASSES
        assert sum(message["hits"]) == round(message["recall_at_1"] * EACH * CLASSES)
        assert message["interval"][0] <= message["recall_at_1"] <= message["interval"][1]
        assert 0 < message["validation_recall_at_1"] <= 1
    shown = [message for message in heard if message["type"] == "progress"][-1]
    assert len(shown["proxies"]) == 10 * dim and len(shown["sample"]) == 200 * dim
    assert ("gradients" in shown) == (loss == "proxy_anchor")
    assert shown["proxies_are"] == ("means" if loss == "triplet" else "proxies")
    assert len(shown["means"]["proxy"]) == dim and shown["epoch"] == 6
    assert done["recall_at_1"] == evaluated[-1]["recall_at_1"]
    assert not done["stopped"] and not done["changed"] and math.isfinite(done["parts"]["loss"])


def test_the_worker_listens_while_it_trains(lab):
    change = {"type": "set", "name": "so_weight", "value": 500}
    heard = talk(
        lab,
        runs=2,
        ready=[[start(1, epochs=5000)]],
        progress=[[change], [start(2, epochs=5000)]],
        started=[[], [{"type": "stop"}]],
    )
    first, second = (message for message in heard if message["type"] == "done")
    assert first["run"] == 1 and first["stopped"] and first["changed"]
    assert first["settings"]["so_weight"] == 500
    assert second["run"] == 2 and second["stopped"] and not second["changed"]
    begun = [message["run"] for message in heard if message["type"] == "started"]
    assert begun == [1, 2] and heard.index(first) < heard.index(second)


def test_a_quiet_run_says_only_how_it_ended_and_seeds_decide(lab):
    runs = [start(1, True), start(2, True), start(3, True, seed=1)]
    heard = talk(lab, runs=3, ready=[runs[:1]], done=[runs[1:2], runs[2:]])
    assert [m["type"] for m in heard] == ["ready", *["started", "done"] * 3]
    one, same, other = (message for message in heard if message["type"] == "done")
    assert one["parts"] == same["parts"] != other["parts"]
    assert one["epoch"] == 6 and one["recall_at_1"] == same["recall_at_1"]


def test_what_cannot_be_trained_is_one_sentence(lab):
    heard = talk(lab, ready=[[start(batch_size=400)]])
    assert heard[-1]["message"] == "batch_size is 400, but there are only 200 training images."
    heard = talk(lab, ready=[[start(head_lr=1e38, schedule="constant")]])
    assert "lower the learning rates" in heard[-1]["message"]


def test_the_worker_starts_under_a_pages_own_policy_and_inside_a_notebook(visit):
    """No network, no eval, and in a notebook an origin of its own: a worker from a blob is left."""
    shown = playground.page()
    ready = [[start(loss="triplet", epochs=1)]]
    page = visit(shown.source, bypass_csp=False)
    assert talk(page.evaluate, ready=ready)[-1]["type"] == "done"
    head = "<!doctype html><html><head><link rel='icon' href='data:,'></head><body>"
    page = visit(head + shown._repr_html_(), bypass_csp=False)
    page.frame_locator("iframe").locator("#step").wait_for()
    assert talk(page.frames[1].evaluate, ready=ready)[-1]["type"] == "done"
