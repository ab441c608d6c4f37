"""Studies: a grid of training runs from one TOML file, each resumable, gathered into one table.

    name = "aviary_lambda"              the results are NAME.csv, NAME.md, NAME.png, NAME.json
    title = "…"
    trainer = "head"                    or "finetune": the fields of HeadConfig or TrainConfig
    measure = "recall_at_1"             the outcome
    baseline = { so_weight = 0 }        what every other setting is compared with, seed by seed
    choose = "validation_recall_at_1"   marks the setting that this measure would choose
    within = ["method"]                 one for each value of these; else one for each baseline

    [fixed]                             the same in every run
    dataset = "aviary"
    options = { species = 100 }

    [grid]                              every combination is a run
    so_weight = [0, 10, 100]
    seed = [0, 1, 2, 3, 4]
    "options.species" = [20, 100]       a single option of the data set

    [[cases]]                           settings that go together; each is crossed with the grid
    method = "ArcFace"                  a name for the tables, not a setting; so is `setting`
    loss = "arcface"
    "loss_options.scale" = [16, 64]     a list makes one case of each value

A fine-tuning study may say ``recipe = "cub200"``: the settings of that recipe, with what else is
given changed. A value such as "$CUB" is read from the environment, so that no study names a folder
of one machine. A finished run lies under ``<data root>/studies``, named by its settings: it is
never repeated, and studies that share a run share its result.
"""

import concurrent.futures
import hashlib
import itertools
import json
import multiprocessing
import os
import platform
import sys
import time
from dataclasses import dataclass, field, fields
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from tqdm.auto import tqdm

from sobook import files
from sobook.data import image_sets
from sobook.errors import StudyError, suggest
from sobook.retrieval import compare_seeds
from sobook.studies.frozen import HeadConfig, fit_head, geometry_columns
from sobook.training.config import TrainConfig
from sobook.training.loop import fit

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TRAINERS = {"head": HeadConfig, "finetune": TrainConfig}
_NOT_SETTINGS = ("device", "workers", "run_dir")
_NAMES = ("method", "setting")  # what a case may be called
_PACKAGES = ("sobook", "torch", "timm", "faiss-cpu", "numpy", "pytorch-metric-learning")


@dataclass(frozen=True)
class Study:
    """A study file, read. Made by `load`; attributes are those of the module's docstring."""

    name: str
    title: str
    trainer: str
    measure: str = "recall_at_1"
    baseline: dict = field(default_factory=dict)
    choose: str | None = None
    within: tuple[str, ...] | None = None
    fixed: dict = field(default_factory=dict)
    grid: dict = field(default_factory=dict)
    cases: tuple[dict, ...] = ({},)

    @property
    def factors(self) -> list[str]:
        """What varies between runs, seed last."""
        names = dict.fromkeys([key for case in self.cases for key in case] + list(self.grid))
        return [*(name for name in names if name != "seed"), "seed"]

    def settings(self) -> list[dict]:
        """The varied settings of every run, in order; seeds turn slowest, so whole repetitions
        finish one after the other."""
        names = sorted(self.grid, key=lambda name: name != "seed")
        values = list(itertools.product(*(self.grid[name] for name in names)))
        return [dict(zip(names, v, strict=True)) | case for v in values for case in self.cases]

    def plan(self) -> list[tuple[str, dict]]:
        """(key, varied settings) of every run; the key names its result."""
        return [
            (_key(self.trainer, self._config(one, expand=False)), one) for one in self.settings()
        ]

    def _config(self, varied: dict, *, expand: bool = True):
        values = dict(self.fixed)
        for name, value in varied.items():
            if name in _NAMES:
                continue
            group, _, option = name.partition(".")
            if option:
                values[group] = {**values.get(group, {}), option: value}
            else:
                values[group] = value
        if expand:
            values = {name: _expand(name, value) for name, value in values.items()}
        try:
            if "recipe" in values:
                return TrainConfig.recipe(values.pop("recipe"), **values)
            return TRAINERS[self.trainer](**values)
        except TypeError as error:
            unknown = str(error).rpartition("argument ")[2].strip("'\"")
            known = [item.name for item in fields(TRAINERS[self.trainer])]
            near = suggest(unknown, known)
            raise StudyError(
                f"study {self.name}: the trainer {self.trainer!r} has no setting {unknown!r}.{near}"
            ) from None


def load(path: str | os.PathLike) -> Study:
    """Read a study file; a bare name is looked for among the studies that come with sobook.

    Raises:
        StudyError: not there, not TOML, or with entries that make no sense.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        try:
            file = files.shipped(f"studies/{file.stem}.toml")
        except FileNotFoundError:
            raise StudyError(f"there is no study file {str(path)!r}: give a .toml file.") from None
    try:
        values = tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{file} is not valid TOML: {error}.") from None
    values = {"name": file.stem, "title": file.stem, **values}
    known = [item.name for item in fields(Study)]
    for name in values:
        if name not in known:
            raise StudyError(f"{file}: unknown entry {name!r}.{suggest(name, known)}")
    if values.get("trainer") not in TRAINERS:
        raise StudyError(f"{file}: trainer must be 'head' or 'finetune'.")
    for name, choices in values.get("grid", {}).items():
        if not isinstance(choices, list) or not choices:
            raise StudyError(f"{file}: grid.{name} must be a list of values, e.g. [0, 10, 100].")
    values["cases"] = tuple(one for case in values.get("cases", [{}]) for one in _each(case))
    values.setdefault("grid", {}).setdefault("seed", [0])
    study = Study(**values)
    keys = [key for key, _ in study.plan()]
    if len(set(keys)) < len(keys):
        raise StudyError(f"{file}: two runs have the same settings; each must differ in something.")
    return study


def _each(case: dict) -> list[dict]:
    """The cases that one with lists among its values stands for."""
    choices = [value if isinstance(value, list) else [value] for value in case.values()]
    return [dict(zip(case, values, strict=True)) for values in itertools.product(*choices)]


def run(study: Study, *, jobs: int | None = None, progress: bool = True) -> pd.DataFrame:
    """Do the runs that are not finished, and gather all.

    Args:
        study: what to do.
        jobs: runs at a time. None: one for each GPU; on a CPU one for each core with heads, and
            one at a time, using all cores, when fine-tuning.
        progress: show a bar with an estimate of the time left.

    Returns:
        One row a run, see `gather`.
    """
    todo = [(key, one) for key, one in study.plan() if not _result_file(study, key).exists()]
    done = len(study.plan()) - len(todo)
    bar = tqdm(
        total=done + len(todo),
        initial=done,
        desc=study.name,
        unit="run",
        smoothing=0.1,
        disable=None if progress else True,
    )
    with bar:
        for _ in _in_parallel(study, todo, _jobs(study) if jobs is None else jobs):
            bar.update()
    return gather(study)


def gather(study: Study) -> pd.DataFrame:
    """The finished runs, one row each: settings that vary, measures, hash of all settings."""
    rows = []
    for key, one in study.plan():
        file = _result_file(study, key)
        if file.exists():
            measured = json.loads(file.read_text())["measured"]
            varied = {name: _plain(one.get(name)) for name in study.factors}
            rows.append({**varied, **measured, "trainer": study.trainer, "config": key})
    return pd.DataFrame(rows)


def write(study: Study, table: pd.DataFrame, folder: Path, command: str) -> list[Path]:
    """Write NAME.csv, NAME.md, NAME.json (where it came from) and NAME.png; returns the files."""
    from sobook.studies import figures as study_figures

    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{study.name}.{kind}" for kind in ("csv", "md", "json", "png")]
    with files.replacing(written[0]) as partial:
        table.to_csv(partial, index=False)
    facts = provenance(study, command)
    with files.replacing(written[1]) as partial:
        partial.write_text(_markdown(study, table, facts))
    files.write_json(written[2], facts)
    figure = study_figures.differences(study, summary(study, table))
    with files.replacing(written[3]) as partial:
        figure.savefig(partial, dpi=80, format="png")
    return written


def provenance(study: Study, command: str) -> dict:
    """Where a study's results came from."""
    plan = study.plan()
    found = [_result_file(study, key) for key, _ in plan]
    results = [json.loads(file.read_text()) for file in found if file.exists()]
    days = sorted({result["date"] for result in results})
    return {
        "command": command,
        "config": hashlib.sha256("".join(key for key, _ in plan).encode()).hexdigest()[:12],
        "runs": len(results),
        "runs_planned": len(plan),
        "dates": days if len(days) < 3 else [days[0], days[-1]],
        "machines": sorted({result["machine"] for result in results}),
        "versions": sorted({result["versions"] for result in results}),
        "notes": sorted({note for result in results for note in result.get("notes", ())}),
        "seconds_of_all_runs": round(sum(result["seconds"] for result in results)),
    }


def summary(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: mean over seeds, and the paired difference from the baseline.

    Columns: the factors; seeds; mean and its 95 % t interval (low, high); RMS proxy cosine;
    difference, its interval (difference_low, difference_high), p (two-sided t test), p_permutation
    (sign flips; with n seeds never below 2/2ⁿ) and p_holm, p corrected after Holm for all the
    differences in this table; chosen, where the study chooses.
    """
    factors = study.factors[:-1]
    cells = {}
    groups = table.groupby(factors, dropna=False, sort=False) if factors else [((), table)]
    for key, group in groups:
        key = tuple(None if pd.isna(value) else value for value in key)  # NaN is not itself
        cells[key] = group.set_index("seed")
    rows = []
    for key, cell in cells.items():
        setting = dict(zip(factors, key, strict=True))
        row = {**setting, **_mean_interval(cell[study.measure])}
        for name in ("rms_cosine", "mean_cosine", study.choose):
            if name in cell:
                row[name] = cell[name].mean()
        base = _baseline_cell(study, setting, cells)
        if base is not None and base is not cell:
            both = cell.index.intersection(base.index)
            if len(both) >= 2:
                values = base.loc[both, study.measure], cell.loc[both, study.measure]
                found = compare_seeds(*values)
                row |= {
                    "difference": found.difference,
                    "difference_low": found.low,
                    "difference_high": found.high,
                    "p": _t_test(*values),
                    "p_permutation": found.p_value,
                }
        rows.append(row)
    result = pd.DataFrame(rows)
    if "p" in result:
        result["p_holm"] = holm(result["p"].to_numpy())
    if study.choose and study.choose in result:
        result["chosen"] = _chosen(study, result)
    return result


def holm(p_values) -> np.ndarray:
    """Holm's step-down correction of p values for how many were looked at; NaN stays NaN.

    Source: Holm, Scandinavian Journal of Statistics 1979.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p_values = np.asarray(p_values, dtype=float)
    corrected = np.full(len(p_values), np.nan)
    order = [i for i in np.argsort(p_values) if not np.isnan(p_values[i])]
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def _baseline_cell(study: Study, setting: dict, cells: dict) -> pd.DataFrame | None:
    """The runs that those of a setting are to be compared with.

    A baseline names some factors; the others keep the value they have in the setting. Where no runs
    are like that, as when methods have parameters of their own, the only runs that fit the baseline
    are taken.
    """
    same = cells.get(tuple(study.baseline.get(name, value) for name, value in setting.items()))
    if same is not None or not study.baseline:
        return same
    fit = [
        cell
        for key, cell in cells.items()
        if study.baseline.items() <= dict(zip(setting, key, strict=True)).items()
    ]
    return fit[0] if len(fit) == 1 else None


def _chosen(study: Study, result: pd.DataFrame) -> pd.Series:
    """In each group of settings, the one with the best choosing measure."""
    shared = [name for name in study.factors[:-1] if name not in study.baseline]
    grouping = list(shared if study.within is None else study.within)
    if not grouping:
        return result[study.choose] == result[study.choose].max()
    best = result.groupby(grouping, dropna=False)[study.choose].transform("max")
    return result[study.choose] == best


def _t_test(first, second) -> float:
    change = np.asarray(second) - np.asarray(first)
    return float(stats.ttest_1samp(change, 0).pvalue) if change.std() > 0 else float("nan")


def _mean_interval(values: pd.Series) -> dict:
    row = {"seeds": len(values), "mean": values.mean(), "low": np.nan, "high": np.nan}
    if len(values) > 1 and values.std() > 0:
        ends = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        row |= {"low": ends[0], "high": ends[1]}
    return row


def _in_parallel(study: Study, todo: list, jobs: int):
    """Run what is to be done; yields after each. One at a time stays in this process."""
    if jobs == 1 or len(todo) <= 1:
        for key, one in todo:
            yield _run_one(study, key, one)
        return
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    for worker in range(jobs):
        devices.put(worker)
    pool = concurrent.futures.ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_start_worker, initargs=(devices, jobs)
    )
    try:
        waiting = [pool.submit(_run_one, study, key, one) for key, one in todo]
        for finished in concurrent.futures.as_completed(waiting):
            yield finished.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(devices, jobs: int) -> None:
    """Give a worker its GPU or its share of the cores, and let it end with its parent."""
    number = devices.get()
    if torch.cuda.device_count() > 0:
        torch.cuda.set_device(number % torch.cuda.device_count())
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    files.end_with_parent()


def _run_one(study: Study, key: str, varied: dict) -> str:
    """One run, start to finish; its result is written last and in one piece."""
    config, started = study._config(varied), time.perf_counter()
    measured = fit_head(config) if study.trainer == "head" else _fine_tune(config)
    device = "cuda" if study.trainer == "finetune" and torch.cuda.is_available() else "cpu"
    result = {
        "settings": study._config(varied, expand=False).to_dict(),
        "measured": measured,
        "notes": image_sets.notes(
            config.dataset, config.root, allow_partial=config.allow_partial, **config.options
        ),
        "seconds": round(time.perf_counter() - started, 2),
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if device == "cuda" else _machine(),
        "versions": _versions(),
    }
    file = _result_file(study, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, result)
    return key


def _fine_tune(config: TrainConfig) -> dict[str, float]:
    """Train with `sobook.training.fit`, which goes on where it was stopped, and measure."""
    run = fit(config, progress=False)
    state, found = run.state, run.retrieval
    measured = {f"recall_at_{k}": value for k, value in found["recall"].items()}
    measured |= {"map_at_r": found["map_at_r"], "r_precision": found["r_precision"]}
    if state["selection_recall_at_1"] is not None:
        measured["validation_recall_at_1"] = state["selection_recall_at_1"]
    measured |= {"selected_epoch": state["selected_epoch"]}
    measured |= {"train_classes": len(run.proxies()), **geometry_columns(run.proxies())}
    return {name: round(float(value), 6) for name, value in measured.items()}


def _plain(value):
    """A value that fits into a cell of a table and can be grouped by."""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _jobs(study: Study) -> int:
    if study.trainer == "finetune":
        return max(1, torch.cuda.device_count())
    return os.cpu_count() or 1


def _key(trainer: str, config) -> str:
    """Hash of the settings that are not the defaults, so that a new setting changes no old key."""
    usual = type(config)().to_dict()
    settings = {k: v for k, v in config.to_dict().items() if v != usual[k]}
    settings = {k: v for k, v in settings.items() if k not in _NOT_SETTINGS}
    settings = {k: int(v) if _is_whole(v) else v for k, v in settings.items()}  # 100.0 is 100
    described = json.dumps([trainer, settings], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def _is_whole(value) -> bool:
    return isinstance(value, float) and value.is_integer()


def _result_file(study: Study, key: str) -> Path:
    return files.data_root() / "studies" / f"{study.trainer}-{key}.json"


def _expand(name: str, value):
    if not isinstance(value, str) or "$" not in value:
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise StudyError(
            f"{name} = {value!r}: set the environment variable to the path on this machine."
        )
    return expanded


def _machine() -> str:
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def _versions() -> str:
    found = [f"python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _markdown(study: Study, table: pd.DataFrame, facts: dict) -> str:
    kind = {
        "head": "Head and proxies trained on frozen features; nothing was fine-tuned.",
        "finetune": "Fine-tuned: backbone, head and proxies.",
    }[study.trainer]
    fixed = ", ".join(f"{name} = {value}" for name, value in study.fixed.items())
    lines = [
        f"# {study.title}",
        "",
        kind,
        f"The outcome is {study.measure}, mean over seeds with its 95 % t interval; differences "
        f"are to {study.baseline or 'nothing'}, paired by seed; p is of the t test, p_holm "
        "corrected for all differences of this table (Holm).",
        "",
        f"Fixed: {fixed}. All else: the defaults of the trainer.",
        "",
        _markdown_table(summary(study, table)),
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
    ]
    return "\n".join(lines)


def _markdown_table(table: pd.DataFrame) -> str:
    def cell(value) -> str:
        if isinstance(value, bool | np.bool_):
            return "yes" if value else ""
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return ""
        if isinstance(value, float):
            return f"{value:g}" if value == int(value) or abs(value) >= 10 else f"{value:.4f}"
        return str(value)

    lines = [" | ".join(table.columns), " | ".join("---" for _ in table.columns)]
    lines += [" | ".join(map(cell, row)) for row in table.itertuples(index=False)]
    return "\n".join(f"| {line} |" for line in lines)
