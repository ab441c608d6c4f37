"""Studies: a grid of training runs from one TOML file, each resumable, gathered into one table.

``data/studies/README.md`` describes the file. Start with `load` and `run`; `report` compares.
"""

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import platform
import time
import typing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from sobook import files
from sobook.embedding import embed
from sobook.errors import SobookError, check_choice, check_fields, plain
from sobook.training import heads, loop
from sobook.training.config import TrainConfig, run_key
from sobook.training.data import Data
from sobook.training.heads import HeadConfig, fit_head
from sobook.training.loop import fit
from sobook.training.processes import choose_device
from sobook.training.run import Run

TRAINERS = {"head": HeadConfig, "finetune": TrainConfig}
LABELS = ("method", "setting")  # names of a case, not settings
_PACKAGES = ("sobook", "torch", "timm", "faiss-cpu", "numpy", "pytorch-metric-learning")


@dataclass(frozen=True)
class Family:
    """The comparisons that a study is made for: declared before it runs, corrected together."""

    prediction: str = ""
    metrics: tuple[str, ...] = ()
    where: dict = field(default_factory=dict)
    columns: tuple[tuple[str, str], ...] = ()
    smallest_effect: float = 0.005


@dataclass(frozen=True)
class Study:
    """A study file, read by `load`; attributes are its keys."""

    name: str
    title: str
    trainer: str
    metric: str = "recall_at_1"
    baseline: dict = field(default_factory=dict)
    select_by: str | None = None
    within: tuple[str, ...] = ()
    x: str | None = None
    panels: str | None = None
    curves_of: tuple[str, ...] = ()
    family: Family = field(default_factory=Family)
    fixed: dict = field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    cases: tuple[dict, ...] = ({},)

    @property
    def factors(self) -> list[str]:
        """The settings and labels that vary between runs, seed last."""
        names = dict.fromkeys([key for case in self.cases for key in case] + list(self.grid))
        return [*(name for name in names if name != "seed"), "seed"]

    def varied(self) -> Iterator[dict[str, Any]]:
        """What varies between runs, of every run."""
        # Seeds vary slowest: whole repetitions finish one after the other.
        names = sorted(self.grid, key=lambda name: name != "seed")
        for *values, case in itertools.product(*(self.grid[name] for name in names), self.cases):
            yield dict(zip(names, values, strict=True)) | case

    def settings(self) -> list[tuple[tuple[str, Any], ...]]:
        """The settings, as pairs (factor, value) without the seed, as in a table of results."""
        runs = [as_in_a_table(self, varied) for varied in self.varied()]
        return list(dict.fromkeys(tuple(run.items())[:-1] for run in runs))

    def plan(self) -> list[tuple[str, dict[str, Any]]]:
        """(key, varied settings) of every run; the key names its result on any machine."""
        runs = []
        for varied in self.varied():
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
                values[group] = {**values.get(group, {}), option: value}
            elif name not in LABELS:
                values[name] = value
        try:
            if "recipe" in values and self.trainer == "finetune":
                values = {**TrainConfig.recipe(values.pop("recipe")).to_dict(), **values}
            return TRAINERS[self.trainer].from_toml(values)
        except SobookError as error:
            raise SobookError(f"study {self.name}: {error}") from None


def load(path: str | os.PathLike) -> Study:
    """Read a study file; a bare name stands for a study that comes with sobook.

    Raises:
        SobookError: the file is missing, not TOML, or has entries that make no sense.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        file = files.shipped("studies") / f"{file.stem}.toml"
    if not file.is_file():
        raise SobookError(f"there is no study file {str(path)!r}: give a .toml file.")
    values = {"name": file.stem, "title": file.stem, "trainer": None, **files.read_toml(file)}
    check_choice("trainer", values["trainer"], TRAINERS)
    values["family"] = _read(f"{file.name}: family", values.get("family", {}), Family)
    study = _read(file.name, values, Study)
    cases = tuple(  # a list among the values of a case makes one case of each
        dict(zip(case, values, strict=True))
        for case in study.cases
        for values in itertools.product(*(v if type(v) is list else [v] for v in case.values()))
    )
    study = dataclasses.replace(study, grid={"seed": (0,), **study.grid}, cases=cases)
    factors = [study.x, study.panels, *study.baseline, *study.within, *study.family.where]
    for name in filter(None, factors):
        check_choice(f"{file.name}: factor", name, study.factors)
    keys = [key for key, _ in study.plan()]
    if len(set(keys)) < len(keys):
        raise SobookError(f"{file}: two runs have the same settings.")
    return study


def _read(where: str, values: dict[str, Any], kind: type) -> Any:
    """A dataclass from a table of a TOML file, its names and types checked."""
    kinds = {**typing.get_type_hints(kind), "family": Any}  # the family has been read before
    check_fields(where, plain(where, values, dict), kinds)
    return kind(**{key: plain(f"{where}: {key}", v, kinds[key]) for key, v in values.items()})


def run(study: Study, *, jobs: int | None = None, progress: bool = True) -> pd.DataFrame:
    """Do the runs that are not finished, and gather all.

    Args:
        study: the study.
        jobs: runs at a time. None: one per GPU; without a GPU one per core for heads, and one at a
            time, on all cores, for fine-tuning.
        progress: show a bar with an estimate of the time left.

    Returns:
        One row per run, see `gather`.
    """
    unfinished = check(study)
    if jobs is None:
        cores = files.available_cores() if study.trainer == "head" else 1
        jobs = torch.cuda.device_count() or cores
    runs, hidden = _run_all(study, unfinished, jobs), None if progress else True
    for _ in tqdm(runs, study.name, len(unfinished), unit="run", disable=hidden):
        pass
    return gather(study)


def check(study: Study) -> list[tuple[str, dict[str, Any]]]:
    """Check that the runs that are not finished can start, before the first of them does.

    Returns:
        (key, varied settings) of these runs.

    Raises:
        SobookError: data, an encoder, a loss or a batch size that would stop one of them.
    """
    unfinished = [run for run in study.plan() if not _result_file(study, run[0]).exists()]
    different = {}
    for _, varied in unfinished:
        config = _on_this_machine(study.config(varied))
        # Rates, weights and seeds do not decide whether a run can start.
        kept = {k: v for k, v in config.to_dict().items() if type(v) is not float and k != "seed"}
        different[json.dumps(kept, sort_keys=True)] = config
    for config in different.values():
        (heads.check if isinstance(config, HeadConfig) else loop.check)(config)
    return unfinished


def _run_all(study: Study, unfinished: list[tuple[str, dict]], jobs: int) -> Iterator[None]:
    """Do the runs; yields after each. One at a time stays in this process."""
    if min(jobs, len(unfinished)) <= 1:
        for key, varied in unfinished:
            yield run_one(study, key, varied)
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(jobs):
        numbers.put(number)
    # Not joblib: its workers outlive a killed parent, and keep writing results.
    with ProcessPoolExecutor(jobs, context, _start_worker, (numbers, jobs)) as pool:
        yield from pool.map(run_one, itertools.repeat(study), *zip(*unfinished, strict=True))


def _start_worker(numbers: Any, jobs: int) -> None:
    """Give a worker its GPU or its part of the cores, and let it end with its parent."""
    number = numbers.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    torch.set_num_threads(max(1, files.available_cores() // jobs))
    files.end_with_parent()


def run_one(study: Study, key: str, varied: dict[str, Any]) -> None:
    """Do one run, start to finish; its result is written last, and atomically."""
    started, settings = time.perf_counter(), study.config(varied)
    config = _on_this_machine(settings)
    if isinstance(config, HeadConfig):
        measured = fit_head(config)
        notes = heads.notes(config)
    else:
        finished = fit(config, progress=False)  # resumes where it was stopped
        measured, notes = _measure(finished), finished.retrieval["notes"]
    cpu = f"{files.available_cores()} CPU cores, {platform.machine()}"
    versions = [f"python {platform.python_version()}"]
    versions += [f"{package} {metadata.version(package)}" for package in _PACKAGES]
    result = {
        "settings": settings.to_dict(),
        "measured": measured,
        "notes": notes,
        "seconds": round(time.perf_counter() - started, 2),
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "versions": ", ".join(versions),
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


def _measure(run: Run) -> dict[str, float]:
    """The columns of a fine-tuned run."""
    config, state, retrieval = run.config, run.state, run.retrieval
    measured = {f"recall_at_{k}": value for k, value in retrieval["recall"].items()}
    measured |= {name: retrieval[name] for name in ("map_at_r", "r_precision")}
    if state["selection_recall_at_1"] is not None:
        measured["validation_recall_at_1"] = state["selection_recall_at_1"]
    measured["frozen_recall_at_1"] = heads.frozen_recall(config)
    epoch = measured["selected_epoch"] = state["selected_epoch"]
    measured["threshold_at_end"] = run.epochs[epoch]["threshold"]
    held_out = config.selection == "validation"
    train_set = Data.check(config, run.sets, hold_out=held_out).train
    encoder, proxies = run.encoder().to(choose_device(config.device)), run.proxies()
    embeddings = torch.from_numpy(embed(encoder, train_set, cache=False, progress=False))
    measured |= {"train_classes": len(proxies), **heads.proxy_columns(proxies, embeddings)}
    return {name: round(float(value), 6) for name, value in measured.items()}


def gather(study: Study) -> pd.DataFrame:
    """The finished runs, one row each: varied settings, measurements, trainer, key ("config").

    Raises:
        SobookError: the study names a metric that no run measures.
    """
    rows = []
    for key, varied, result in _finished(study):
        rows.append(
            {
                **as_in_a_table(study, varied),
                **result["measured"],
                "trainer": study.trainer,
                "config": key,
            }
        )
    table, family = pd.DataFrame(rows), study.family
    names = [study.metric, study.select_by, *study.curves_of, *family.metrics]
    for name in filter(None, [*names, *itertools.chain(*family.columns)] if rows else []):
        check_choice(f"metric of study {study.name}:", name, table.columns)
    return table


def as_in_a_table(study: Study, varied: dict[str, Any]) -> dict[str, Any]:
    """The factors of a run, seed last; tables and lists as text, by which rows can be grouped."""
    factors = {name: varied.get(name) for name in study.factors}
    for name, value in factors.items():
        if isinstance(value, dict | list):
            factors[name] = json.dumps(value, sort_keys=True)
    return factors


def provenance(study: Study, command: str) -> dict[str, Any]:
    """The origin of a study's results: command, machines, versions, dates, notes on the data."""
    keys = [key for key, _ in study.plan()]
    results = pd.DataFrame([result for *_, result in _finished(study)])
    return {
        "command": command,
        "config": hashlib.sha256("".join(keys).encode()).hexdigest()[:12],
        "runs": len(results),
        "runs_planned": len(keys),
        "dates": sorted({results["date"].min(), results["date"].max()}),
        "machines": sorted(results["machine"].unique()),
        "versions": sorted(results["versions"].unique()),
        "notes": sorted(results["notes"].explode().dropna().unique()),
        "seconds_of_all_runs": round(results["seconds"].sum()),
    }


def _finished(study: Study) -> Iterator[tuple[str, dict, dict]]:
    """(key, varied settings, result) of every run that has a result."""
    for key, varied in study.plan():
        if (file := _result_file(study, key)).exists():
            yield key, varied, json.loads(file.read_text(encoding="utf-8"))


def _result_file(study: Study, key: str) -> Path:
    return files.data_root() / "studies" / f"{study.trainer}-{key}.json"
