"""The pages' arithmetic in a browser, against PyTorch and the package.

Same start and same batches: loss parts, gradients and parameters of 100 steps are compared with
`sobook.losses` and `torch.optim`, in float64 and in float32.
Deviations are relative to the largest number of an array. Notation: N images, F features,
C classes, D dimensions.
"""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn.functional import layer_norm, normalize

from sobook import geometry
from sobook.course.pages import lab as lab_page
from sobook.course.pages.page import read_asset
from sobook.figures.proxies import random_angle_density
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.retrieval import evaluate, nearest_neighbors
from sobook.training.heads import HeadConfig
from tests.course.pages.conftest import HEAD

STEPS, BATCH = 100, 40
CLASSES, EACH, FEATURES = 12, 20, 24

# What each changes of λ = 10 in 16 dimensions; together they use every option.
CASES = {
    "as is, D = 64 > F": {"dim": 64},
    "D = 2": {"dim": 2},
    "b learned, centered": {"threshold_lr": 0.01, "threshold": 0.1, "center": True},
    "clipped, decay, C > D": {"clip_norm": 0.5, "weight_decay": 0.05, "dim": 8},
}


@pytest.fixture
def lab(visit):
    """A page with the arithmetic and nothing else; calls a function of JavaScript there."""
    return visit(f"{HEAD}<script>{read_asset('numerics.js')}</script>").evaluate


def toy(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, F) float32 features of classes that overlap, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), EACH)
    centers = rng.normal(size=(CLASSES, FEATURES)) + 2 * rng.normal(size=FEATURES)
    return (centers[labels] + rng.normal(size=(len(labels), FEATURES))).astype(np.float32), labels


class Centered(nn.Module):
    def forward(self, proxies):
        unit = normalize(proxies, dim=1)
        return unit - unit.mean(dim=0)


class InPyTorch:
    """A head, its loss and AdamW, with the settings of a `HeadConfig`."""

    def __init__(self, config: HeadConfig, start: dict, classes: int, steps: int, dtype):
        self.config, self.steps, self.dtype = config, steps, dtype
        self.head = nn.Linear(len(start["weight"][0]), config.dim)
        names = ("margin", "scale", "threshold", "so_weight")
        options = {name: getattr(config, name) for name in names}
        self.loss = SoftOrthogonalProxyAnchor(
            classes, config.dim, learn_threshold=config.threshold_lr > 0, **options
        )
        self.learned = {"weight": self.head.weight, "bias": self.head.bias}
        self.learned["proxies"] = self.loss.proxies
        for name, parameter in self.learned.items():
            parameter.data = torch.tensor(start[name], dtype=torch.float32)
        if config.center:
            nn.utils.parametrize.register_parametrization(self.loss, "proxies", Centered())
        if config.threshold_lr:
            self.learned["threshold"] = self.loss.threshold
        self.head.to(dtype), self.loss.to(dtype)
        decay, head, proxies = config.weight_decay, config.head_lr, config.proxy_lr
        rates = {"weight": (head, decay), "bias": (head, 0), "proxies": (proxies, decay)}
        rates["threshold"] = (config.threshold_lr, 0)
        self.optimizer = torch.optim.AdamW(
            {"params": [p], "lr": rates[name][0], "weight_decay": rates[name][1]}
            for name, p in self.learned.items()
        )
        factor = lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))  # noqa: E731
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        return normalize(self.head(layer_norm(features.to(self.dtype), features.shape[1:])), dim=1)

    def step(self, features: torch.Tensor, labels: torch.Tensor) -> dict:
        parts = self.loss.parts(self.embed(features), labels)
        self.optimizer.zero_grad()
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.learned.values(), self.config.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return {**parts, "gradient_norm": norm}


def torch_run(config: HeadConfig, start: dict, features, labels, batches, dtype) -> dict:
    """Name → (steps, …) of all that the steps compute."""
    trainer, seen = InPyTorch(config, start, CLASSES, len(batches), dtype), {}
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels)
    for rows in batches:
        now = trainer.step(inputs[rows], targets[rows]) | trainer.learned
        now |= {f"{name} gradient": p.grad for name, p in trainer.learned.items()}
        for name, value in now.items():
            seen.setdefault(name, []).append(value.detach().clone().flatten().tolist())
    return seen | {"embeddings": [trainer.embed(inputs).flatten().tolist()]}


IN_THE_BROWSER = """({ settings, features, labels, batches, start, F, C }) => {
  const inputs = numerics.layerNorm(Float32Array.from(features), F), seen = {};
  start = Object.fromEntries(Object.entries(start).map(([name, rows]) => [name, rows.flat()]));
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
  return { ...seen, embeddings: [[...trainer.embed(inputs)]] };
}"""


def deviation(own: list, expected: list) -> float:
    """Largest over the steps, relative to the largest number of an array at that step.

    A single number, such as a threshold and its gradient, may pass through zero: it is relative to
    its largest value.
    """
    mine, theirs = (np.array(values).reshape(len(values), -1) for values in (own, expected))
    assert mine.shape == theirs.shape
    size = np.abs(theirs).max(axis=None if theirs.shape[1] == 1 else 1)
    return float((np.abs(mine - theirs).max(axis=1) / size).max())


@pytest.mark.parametrize("name", CASES)
def test_100_steps_as_in_pytorch(lab, name):
    """Equal to PyTorch in float64, and within 1e-4 of its float32.

    In two or three dimensions float32 loses gradients to cancellation: they are what is left when
    the part along a unit vector has been taken away, which is nearly all of them.
    """
    config = HeadConfig(**{"so_weight": 10.0, "dim": 16} | CASES[name])
    features, labels = toy()
    rng = np.random.default_rng(0)
    batches = [rng.permutation(len(labels))[:BATCH] for _ in range(STEPS)]
    start = {
        "weight": rng.normal(scale=0.2, size=(config.dim, FEATURES)),
        "bias": rng.normal(scale=0.1, size=config.dim),
        "proxies": rng.normal(size=(CLASSES, config.dim)),
    }
    start = {name: value.astype(np.float32).tolist() for name, value in start.items()}
    what = {"settings": config.to_dict(), "features": features.flatten().tolist()}
    what |= {"labels": labels.tolist(), "batches": [rows.tolist() for rows in batches]}
    seen = lab(IN_THE_BROWSER, {**what, "start": start, "F": FEATURES, "C": CLASSES})
    for dtype, most in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        expected = torch_run(config, start, features, labels, batches, dtype)
        assert seen.keys() == expected.keys() > {"loss", "weight gradient", "embeddings"}
        far = {name: deviation(seen[name], expected[name]) for name in expected}
        if dtype == torch.float64 or config.dim > 3:
            assert {name: value for name, value in far.items() if value > most} == {}


# ---- embeddings and proxies ----------------------------------------------------------------------

SEARCH = """async ({ rows, D, labels, T, k }) => {
  const { unit } = numerics.unitRows(Float32Array.from(rows), D);
  const neighbors = await numerics.nearest(unit, D, k);
  const { recall_at_1, hits, queries } = numerics.recall(neighbors, k, labels, T);
  return { neighbors: [...neighbors], recall_at_1, hits: [...hits], queries: [...queries],
    interval: numerics.classInterval(hits, queries) };
}"""


@pytest.mark.parametrize("dim", [2, 16, 128])
def test_recall_is_that_of_evaluate(lab, dim):
    rng = np.random.default_rng(dim)
    labels = np.repeat(np.arange(30), 15)
    labels[-1] = 30  # alone in its class: no query
    rows = rng.normal(size=(31, dim))[labels] + rng.normal(size=(len(labels), dim))
    rows = rows.astype(np.float32)
    what = {"rows": rows.flatten().tolist(), "labels": labels.tolist(), "D": dim}
    seen = lab(SEARCH, {**what, "T": 31, "k": 4})
    expected = evaluate(rows, labels, ks=(1,))
    queries, hits = expected.by_class(1)
    assert seen["recall_at_1"] == pytest.approx(expected.recall[1], abs=0.005)  # ties
    assert_allclose(seen["hits"][:30], hits[:30], atol=1)
    assert seen["queries"][:30] == queries[:30].tolist() and seen["queries"][30] == 0
    assert_allclose(seen["interval"], expected.interval(1), atol=0.015)
    if dim > 2:  # on the circle, float32 hardly tells neighbors apart
        assert seen["neighbors"] == nearest_neighbors(rows, 4)[1].flatten().tolist()


@pytest.mark.parametrize("classes, dim", [(12, 2), (7, 16), (40, 16)])
def test_geometry_is_that_of_describe(lab, classes, dim):
    rng = np.random.default_rng(classes)
    proxies = (rng.normal(size=(classes, dim)) + 0.4).astype(np.float32)
    embeddings = geometry.unit_rows(rng.normal(size=(50, dim))).astype(np.float32)
    seen = lab(
        """({ P, X, D }) => { const [proxies, rows] = [P, X].map((a) => Float32Array.from(a));
        const { proxy, embedding, ...means } = numerics.commonMode(proxies, rows, D);
        return { ...numerics.describe(proxies, D), ...means, proxy: [...proxy],
          histogram: [...numerics.angleHistogram(numerics.cosines(proxies, D), 2)] }; }""",
        {"P": proxies.flatten().tolist(), "X": embeddings.flatten().tolist(), "D": dim},
    )
    shape = geometry.describe(proxies)
    for name in ("rms_cosine", "mean_cosine", "coherence", "welch_bound"):
        assert seen[name] == pytest.approx(getattr(shape, name), abs=1e-6)
    assert seen["floor"] == pytest.approx(shape.orthogonality_floor / classes / (classes - 1))
    mean, proxy = embeddings.mean(0), geometry.unit_rows(proxies).mean(0)
    assert seen["embedding_length"] == pytest.approx(np.linalg.norm(mean), abs=1e-6)
    cosine = proxy @ mean / np.linalg.norm(proxy) / np.linalg.norm(mean)
    assert seen["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert_allclose(seen["proxy"], proxy, atol=1e-6)
    assert sum(seen["histogram"]) == pytest.approx(0.5)


def test_angles_of_random_directions(lab):
    angles = [1.0, 45, 80, 90, 135]
    for dim in (2, 3, 16, 128):
        seen = lab(f"(all) => all.map((a) => numerics.randomAngleDensity(a, {dim}))", angles)
        assert_allclose(seen, random_angle_density(np.array(angles), dim), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_a_head_starts_orthogonal_and_proxies_as_in_the_package(lab, dim):
    start = """({ D, F }) => { const trainer = new numerics.Trainer(
        { dim: D, seed: 3, threshold: 0.2 }, { F, C: 500 });
        return [[...trainer.weight.value], [...trainer.proxies.value]]; }"""
    weight, proxies = lab(start, {"D": dim, "F": FEATURES})
    weight = np.reshape(weight, (dim, FEATURES))
    gram = weight @ weight.T if dim <= FEATURES else weight.T @ weight
    assert_allclose(gram, np.eye(len(gram)), atol=1e-6)
    assert np.std(proxies) == pytest.approx(np.sqrt(2 / 500), rel=0.1)


def test_a_batch_plan_takes_each_image_once_an_epoch(lab):
    batches = lab("numerics.batchPlan(numerics.generator(1), [...Array(99).keys()], 20)")
    assert np.shape(batches) == (4, 20) and len(set(np.ravel(batches))) == 80


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


def talk(lab, runs: int = 1, **answers) -> list[dict]:
    """All that the worker says until so many runs are over.

    `answers` has what it is told at the first, second … message of a kind.
    """
    source = read_asset("numerics.js") + read_asset("worker.js")
    what = {"source": source, "data": packed(*toy(0), *toy(1)), "talk": answers, "runs": runs}
    return lab(TALK, what)


def packed(train, train_labels, test, test_labels) -> dict:
    """Training and test classes as the lab's page hands them to its worker."""
    classes = len(set(train_labels))
    order = [np.random.default_rng(seed).permutation(classes).tolist() for seed in range(2)]
    return {
        "features": lab_page.pack(np.concatenate([train, test])),
        "labels": [*train_labels.tolist(), *test_labels.tolist()],
        "sizes": {"train": len(train), "test": len(test)},
        "classes": {"train": classes, "test": len(set(test_labels))},
        "class_order": order,
        "held_out": 2,
    }


def start(run: int = 1, quiet: bool = False, **changes) -> dict:
    settings = {"dim": 16, "batch_size": 40, "epochs": 6, "so_weight": 10.0, **changes}
    config = HeadConfig(**settings).to_dict()
    return {"type": "start", "run": run, "settings": config, "quiet": quiet}


@pytest.mark.parametrize("dim", [3, 16])
def test_the_worker_trains_and_reports(lab, dim):
    heard = talk(lab, ready=[[start(dim=dim)]])
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
    assert len(shown["proxies"]) == 10 * dim and len(shown["embeddings"]) == 200 * dim
    assert ("gradients" in shown) == (dim == 3) and shown["epoch"] == 6
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


def test_seeds_decide_and_errors_are_one_sentence(lab):
    runs = [start(1, True), start(2, True), start(3, True, seed=1)]
    heard = talk(lab, runs=3, ready=[runs[:1]], done=[runs[1:2], runs[2:]])
    assert [message["type"] for message in heard] == ["ready", *["started", "done"] * 3]
    first, same, other = (message for message in heard if message["type"] == "done")
    assert first["parts"] == same["parts"] != other["parts"] and first["epoch"] == 6
    heard = talk(lab, ready=[[start(batch_size=400)]])
    assert heard[-1]["message"] == "batch_size is 400, but there are only 200 training images."
    heard = talk(lab, ready=[[start(head_lr=1e38)]])
    assert "lower the learning rates" in heard[-1]["message"]
