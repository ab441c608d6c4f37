"""Studies: a grid of training runs from one TOML file, each resumable, gathered into one table.

The format of the file is described in ``data/studies/README.md``. Start with `run`.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import time
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from sobook import files
from sobook.data import image_sets
from sobook.embedding import embed
from sobook.errors import SobookError, check_choice, check_fields, plain
from sobook.training import heads, loop
from sobook.training.config import TrainConfig, run_key
from sobook.training.heads import (
    HeadConfig,
    common_mode_columns,
    fit_head,
    frozen_recall,
    geometry_columns,
)
from sobook.training.loop import fit
from sobook.training.processes import choose_device

TRAINERS = {"head": HeadConfig, "finetune": TrainConfig}
LABELS = ("method", "setting")  # names of a case, not settings
# What a run measures, beside recall_at_K; a test compares it with what comes out.
METRICS = (
    *("recall_at_1", "map_at_r", "r_precision", "validation_recall_at_1", "frozen_recall_at_1"),
    *("frozen_validation_recall_at_1", "recall_without_common", "threshold_at_end"),
    *("selected_epoch", "train_classes", "rms_cosine", "mean_cosine", "coherence"),
    *("effective_rank", "rms_floor", "welch_bound", "rms_cosine_centered", "mean_proxy_length"),
    *("common_mode_share", "embedding_mean_length"),
    "cosine_of_mean_proxy_and_mean_embedding",
    *("treated_rms_cosine", "treated_mean_cosine", "treated_class_cosine", "treated_confusion"),
    *("untreated_rms_cosine", "untreated_mean_cosine", "untreated_class_cosine"),
    "untreated_confusion",
)
_MOST_RUNS = 100_000
_PACKAGES = ("sobook", "torch", "timm", "faiss-cpu", "numpy", "pytorch-metric-learning")


@dataclass(frozen=True)
class Family:
    """The comparisons that a study is made for: written down before it runs, corrected together."""

    prediction: str = ""
    """What was expected."""
    metrics: tuple[str, ...] = ()
    """Compared between a setting and its baseline. None given: the study's metric."""
    where: tuple[dict, ...] = ({},)
    """Only settings with these values of factors; a list stands for any of its values."""
    columns: tuple[tuple[str, str], ...] = ()
    """Pairs of metrics that are compared within the same run, second minus first."""
    smallest_effect: float = 0.005
    """Smaller differences do not matter; a study that claims none has converged to this."""

    def holds(self, setting: dict[str, Any]) -> bool:
        """Whether a setting, factor → value, takes part."""

        def fits(name: str, wanted: Any) -> bool:
            return setting.get(name) in (wanted if isinstance(wanted, list) else [wanted])

        return any(all(fits(*item) for item in choice.items()) for choice in self.where)


@dataclass(frozen=True)
class Study:
    """A study file, read by `load`; attributes are its keys."""

    name: str
    title: str
    trainer: str
    metric: str = "recall_at_1"
    baseline: dict = field(default_factory=dict)
    select_by: str | None = None
    within: tuple[str, ...] | None = None
    x: str | None = None
    panels: str | None = None
    curves_of: tuple[str, ...] = ()
    family: Family = field(default_factory=Family)
    fixed: dict = field(default_factory=dict)
    grid: dict = field(default_factory=dict)
    cases: tuple[dict, ...] = ({},)

    @property
    def factors(self) -> list[str]:
        """What varies between runs, seed last."""
        names = dict.fromkeys([key for case in self.cases for key in case] + list(self.grid))
        return [*(name for name in names if name != "seed"), "seed"]

    def plan(self) -> list[tuple[str, dict[str, Any]]]:
        """(key, varied settings) of every run; the key names its result on any machine."""
        # Seeds vary slowest, so that whole repetitions finish one after the other.
        names = sorted(self.grid, key=lambda name: name != "seed")
        runs = []
        for *values, case in itertools.product(*(self.grid[name] for name in names), self.cases):
            varied = dict(zip(names, values, strict=True)) | case
            config = self.config(varied)
            # The content of a folder is part of the key, its name is not.
            root = config.root and os.path.expandvars(config.root)
            runs.append((run_key(config.replace(root=root)), varied))
        return runs

    def config(self, varied: dict[str, Any]) -> HeadConfig | TrainConfig:
        """The configuration of a run, with environment variables still as "$NAME".

        Raises:
            SobookError: a setting that the trainer does not have, or a value that makes no sense.
        """
        values = dict(self.fixed)
        for name, value in varied.items():
            group, _, option = name.partition(".")
            if option:
                values[group] = {**plain(group, values.get(group, {}), dict), option: value}
            elif name not in LABELS:
                values[name] = value
        try:
            if "recipe" in values and self.trainer == "finetune":
                recipe = TrainConfig.recipe(values.pop("recipe"))
                values = {**recipe.to_dict(), **values}
            return TRAINERS[self.trainer].from_toml(values)
        except SobookError as error:
            raise SobookError(f"study {self.name}: {error}") from None


def load(path: str | os.PathLike) -> Study:
    """Read a study file; a bare name is looked for among the studies that come with sobook.

    Raises:
        SobookError: the file is not there, not TOML, or has entries that make no sense.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        file = files.shipped("studies") / f"{file.stem}.toml"
    if not file.is_file():
        raise SobookError(f"there is no study file {str(path)!r}: give a .toml file.")
    values = {"name": file.stem, "title": file.stem, "trainer": None, **files.read_toml(file)}
    check_fields(file.name, values, [item.name for item in dataclasses.fields(Study)])
    check_choice("trainer", values["trainer"], TRAINERS)
    kinds = {**typing.get_type_hints(Study), "family": dict}
    values = {key: plain(f"{file.name}: {key}", value, kinds[key]) for key, value in values.items()}
    if Path(values["name"]).name != values["name"]:
        raise SobookError(
            f"{file}: name is {values['name']!r}: it becomes a file, without folders."
        )
    for name, choices in values.get("grid", {}).items():
        if not isinstance(choices, list) or not choices:
            raise SobookError(f"{file}: grid.{name} must be a list of values, e.g. [0, 10, 100].")
    values["family"] = _family(file, values.get("family", {}))
    values["cases"] = tuple(one for case in values.get("cases", [{}]) for one in _expanded(case))
    values.setdefault("grid", {}).setdefault("seed", [0])
    study = Study(**values)
    _check_names(file, study)
    runs = math.prod(map(len, study.grid.values())) * len(study.cases)
    if runs > _MOST_RUNS:
        raise SobookError(f"{file}: it has {runs:,} runs: at most {_MOST_RUNS:,}.")
    plan = study.plan()
    if len({key for key, _ in plan}) < len(plan):
        raise SobookError(f"{file}: two runs have the same settings.")
    return study


def _check_names(file: Path, study: Study) -> None:
    """Factors are what varies here, and metrics what a run measures."""
    family = study.family
    factors = [study.x, study.panels, *(name for choice in family.where for name in choice)]
    for name in filter(None, [*factors, *study.baseline, *(study.within or ())]):
        check_choice(f"{file.name}: factor", name, study.factors)
    metrics = [study.metric, study.select_by, *study.curves_of]
    metrics += [*family.metrics, *itertools.chain(*family.columns)]
    for name in filter(None, metrics):
        if not re.fullmatch(r"recall_at_[1-9]\d*", name):
            check_choice(f"{file.name}: metric", name, METRICS)


def _family(file: Path, values: dict) -> Family:
    check_fields(f"{file.name}: family", values, [item.name for item in dataclasses.fields(Family)])
    if isinstance(values.get("where"), dict):
        values = {**values, "where": (values["where"],)}
    kinds = typing.get_type_hints(Family)
    return Family(**{k: plain(f"{file.name}: family.{k}", v, kinds[k]) for k, v in values.items()})


def _expanded(case: dict) -> list[dict]:
    """The cases that a case with lists among its values stands for."""
    if math.prod(len(value) for value in case.values() if isinstance(value, list)) > _MOST_RUNS:
        raise SobookError(f"a case has too many settings: at most {_MOST_RUNS:,}.")
    choices = [value if isinstance(value, list) else [value] for value in case.values()]
    return [dict(zip(case, values, strict=True)) for values in itertools.product(*choices)]


def run(study: Study, *, jobs: int | None = None, progress: bool = True) -> pd.DataFrame:
    """Do the runs that are not finished, and gather all.

    Args:
        study: what to do.
        jobs: runs at a time. None: one for each GPU; without GPU one for each core with heads, and
            one at a time, using all cores, when fine-tuning.
        progress: show a bar with an estimate of the time left.

    Returns:
        One row per run, see `gather`.
    """
    plan, unfinished = study.plan(), check(study)
    if jobs is None:
        cores = files.available_cores() if study.trainer == "head" else 1
        jobs = torch.cuda.device_count() or cores
    bar = tqdm(
        _run_all(study, unfinished, jobs),
        desc=study.name,
        total=len(plan),
        initial=len(plan) - len(unfinished),
        unit="run",
        smoothing=0.1,
        disable=None if progress else True,
    )
    for _ in bar:
        pass
    return gather(study)


def check(study: Study) -> list[tuple[str, dict[str, Any]]]:
    """Check what the runs to come need, before the first of them: data, encoder, batches, Ks.

    Returns:
        (key, varied settings) of the runs that are not finished.

    Raises:
        SobookError: what would stop one of them.
    """
    unfinished = [run for run in study.plan() if not _result_file(study, run[0]).exists()]
    checked = set()
    for _, varied in unfinished:
        config = _on_this_machine(study.config(varied))
        # Rates, weights and seeds do not decide whether a run can start.
        kept = {k: v for k, v in config.to_dict().items() if type(v) is not float and k != "seed"}
        if (settings := json.dumps(kept, sort_keys=True)) not in checked:
            checked.add(settings)
            (heads.check if study.trainer == "head" else loop.check)(config)
    return unfinished


def _run_all(study: Study, unfinished: list[tuple[str, dict]], jobs: int) -> Iterator[None]:
    """Do the runs; yields after each. One at a time stays in this process."""
    if jobs == 1 or len(unfinished) <= 1:
        for key, varied in unfinished:
            yield run_one(study, key, varied)
        return
    # Not joblib: its workers outlive a killed parent, and go on writing results.
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(jobs):
        numbers.put(number)
    with concurrent.futures.ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_start_worker, initargs=(numbers, jobs)
    ) as pool:
        keys, settings = zip(*unfinished, strict=True)
        yield from pool.map(run_one, itertools.repeat(study), keys, settings)


def _start_worker(numbers: Any, jobs: int) -> None:
    """Give a worker its GPU or its part of the cores, and let it end with its parent."""
    number = numbers.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    torch.set_num_threads(max(1, files.available_cores() // jobs))
    files.end_with_parent()


def run_one(study: Study, key: str, varied: dict[str, Any]) -> None:
    """One run, start to finish; its result is written last and in one piece."""
    config, started = study.config(varied), time.perf_counter()
    here = _on_this_machine(config)
    result = {
        "settings": config.to_dict(),
        "measured": fit_head(here) if study.trainer == "head" else _fine_tune(here),
        "notes": heads.notes(here),
        "seconds": round(time.perf_counter() - started, 2),
        "date": date.today().isoformat(),
        "machine": _machine(),
        "versions": _versions(),
    }
    files.write_json(_result_file(study, key), result)


def _on_this_machine(config: HeadConfig | TrainConfig) -> HeadConfig | TrainConfig:
    """The configuration with the values of the environment variables that it names."""
    values = config.to_dict()
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = os.path.expandvars(value)
            if "$" in values[name]:
                raise SobookError(f"{name} = {value!r}: set the environment variable to a path.")
    return type(config).from_dict(values)


def _fine_tune(config: TrainConfig) -> dict[str, float]:
    """Train with `fit`, which resumes where it was stopped, and measure."""
    run = fit(config, progress=False)
    state, retrieval, proxies = run.state, run.retrieval, run.proxies()
    measured = {f"recall_at_{k}": value for k, value in retrieval["recall"].items()}
    measured |= {"map_at_r": retrieval["map_at_r"], "r_precision": retrieval["r_precision"]}
    if state["selection_recall_at_1"] is not None:
        measured["validation_recall_at_1"] = state["selection_recall_at_1"]
    measured["frozen_recall_at_1"] = frozen_recall(config)
    measured["selected_epoch"] = state["selected_epoch"]
    lines = {line["epoch"]: line for line in run.epochs}
    measured["threshold_at_end"] = lines[state["selected_epoch"]]["threshold"]
    train_set = image_sets.load(config.dataset, "train", **config.load_options)
    if config.selection == "validation":
        train_set, _ = image_sets.hold_out(
            train_set, config.validation_fraction, config.seed, at_least=2
        )
    encoder = run.encoder().to(choose_device(config.device))
    embeddings = embed(encoder, train_set, cache=False, progress=False)
    measured |= common_mode_columns(proxies, torch.from_numpy(embeddings))
    measured |= {"train_classes": len(proxies), **geometry_columns(proxies)}
    return {name: round(float(value), 6) for name, value in measured.items()}


def gather(study: Study) -> pd.DataFrame:
    """The finished runs, one row each: varied settings, measurements, trainer, key ("config")."""
    rows = []
    for key, varied, result in _finished(study):
        factors = {name: _cell(varied.get(name)) for name in study.factors}
        rows.append({**factors, **result["measured"], "trainer": study.trainer, "config": key})
    return pd.DataFrame(rows)


def provenance(study: Study, command: str) -> dict[str, Any]:
    """Where a study's results came from."""
    keys = [key for key, _ in study.plan()]
    results = [result for _, _, result in _finished(study)]
    days = sorted({result["date"] for result in results})
    return {
        "command": command,
        "config": hashlib.sha256("".join(keys).encode()).hexdigest()[:12],
        "runs": len(results),
        "runs_planned": len(keys),
        "dates": days if len(days) < 3 else [days[0], days[-1]],
        "machines": sorted({result["machine"] for result in results}),
        "versions": sorted({result["versions"] for result in results}),
        "notes": sorted({note for result in results for note in result["notes"]}),
        "seconds_of_all_runs": round(sum(result["seconds"] for result in results)),
    }


def _finished(study: Study) -> list[tuple[str, dict, dict]]:
    """(key, varied settings, result) of every run that has a result."""
    runs = [(key, varied, _result_file(study, key)) for key, varied in study.plan()]
    return [
        (key, varied, json.loads(f.read_text(encoding="utf-8")))
        for key, varied, f in runs
        if f.exists()
    ]


def _cell(value: Any) -> Any:
    """A value that fits into a cell of a data frame and can be grouped by."""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _result_file(study: Study, key: str) -> Path:
    return files.data_root() / "studies" / f"{study.trainer}-{key}.json"


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{files.available_cores()} CPU cores, {platform.machine()}"


def _versions() -> str:
    found = [f"python {platform.python_version()}"]
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join(found)
