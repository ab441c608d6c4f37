"""The report of a study: means over seeds, its family of comparisons with verdicts, and its files.

Start with `summary`. A verdict is that of the whole family (`sobook.statistics.verdict`). Notebooks
display a committed study with `show`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sobook import files
from sobook.course.studies import figures
from sobook.course.studies.study import Study, load, provenance
from sobook.errors import SobookError
from sobook.figures.style import Figure
from sobook.statistics import Comparison, compare_seeds, holm, missing, t_interval, verdict

_TRAINED = {
    "head": "Head and proxies trained on frozen features; nothing was fine-tuned.",
    "finetune": "Fine-tuned: backbone, head and proxies.",
}
_CLAIM = ["mean", "difference", "verdict"]


def summary(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: mean over seeds, and the paired difference from the baseline.

    Columns: the factors; seeds; mean of the metric and its 95 % t interval over seeds (low, high);
    frozen, the same metric of the frozen encoder; the means of rms_cosine, mean_cosine and
    `select_by`; for settings in the study's family, difference, difference_low, difference_high,
    p, p_holm and verdict, see `comparisons`; chosen, the best by `select_by`.
    """
    means = {"frozen": f"frozen_{study.metric}"}
    means |= {name: name for name in ("rms_cosine", "mean_cosine", study.select_by) if name}
    rows = []
    for setting, runs in _by_setting(study, table).items():
        row = {**dict(setting), "seeds": len(runs), "mean": runs[study.metric].mean(skipna=False)}
        row["low"], row["high"] = t_interval(runs[study.metric])
        row |= {
            name: runs[column].mean(skipna=False)
            for name, column in means.items()
            if column in runs
        }
        rows.append(row)
    result, family = pd.DataFrame(rows), comparisons(study, table)
    if len(family):
        main = family[family["metric"] == study.metric].drop(columns=["metric", "seeds"])
        main = main.rename(columns={"low": "difference_low", "high": "difference_high"})
        result = result.join(main.set_index("row"))
    if study.select_by in result:
        groups = result.groupby(list(study.within) or (lambda row: "all"), dropna=False)
        best = groups[study.select_by].transform("max")
        result["chosen"] = result[study.select_by] == best
    return result


def comparisons(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """The study's family: every comparison it declares, corrected together.

    Columns: row, that of `summary`; metric, or "second − first" for two metrics of the same
    run; seeds; difference, low, high (95 % t interval over seeds), p (paired t test), p_holm,
    verdict. One that is not possible, for lack of runs or of a finite number, counts with p = 1.
    """
    metrics, columns = study.family.metrics or (study.metric,), study.family.columns
    result, compared = _paired(study, table, metrics, columns)
    absent = max(0, _declared(study, metrics, columns) - len(compared))
    family = [*compared, *[missing(0)] * absent]  # it keeps its size, whatever is missing
    verdicts = [
        verdict(comparison, family) if np.isfinite(comparison.difference) else "not measured"
        for comparison in compared
    ]
    corrected = holm([comparison.p_value for comparison in family])[: len(compared)]
    result = result.assign(p_holm=corrected, verdict=verdicts)
    return result if result["difference"].notna().any() else result[:0]


def _declared(study: Study, metrics: Iterable[str], columns: Iterable) -> int:
    """How many comparisons a study declares, whether they have been run or not."""
    count, every = 0, {key: pd.DataFrame() for key in study.settings()}
    for key, runs in every.items():
        if study.family.where.items() <= dict(key).items():
            baseline = _baseline(study, dict(key), every)
            compared = baseline is not None and baseline is not runs
            count += len(tuple(columns)) + len(tuple(metrics)) * compared
    return count


def outside_family(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """The same comparisons in MAP@R, where it is outside the family: no correction, no verdict.

    Columns as in `comparisons`, up to high; no rows where the family holds MAP@R already.
    """
    outside = {"map_at_r"} & set(table) - {study.metric, *study.family.metrics}
    return _paired(study, table, outside)[0].drop(columns="p")


def convergence(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """The change of the baseline with twice the epochs, to tell whether training was long enough.

    The limit is the smallest difference that the study claims at that number of epochs, and at most
    its family's smallest_effect. Training has converged ("yes") when the 95 % t interval of the
    change lies within the limit, and has not ("no") when it lies outside; else neither is shown.

    Returns:
        One row per baseline setting in the family whose double was run: its factors, mean, change,
        change_low, change_high, limit, converged.
    """
    changes = _paired(study, table, [study.metric], doubled=True)[0].set_index("row")
    if changes.empty:
        return pd.DataFrame()
    every = summary(study, table).reindex(columns=[*study.factors[:-1], *_CLAIM])
    claims = every[every["verdict"].isin(["higher", "lower"])]
    claimed = claims["difference"].abs().groupby(claims["epochs"]).min()
    rows = every.drop(columns=_CLAIM[1:]).loc[changes.index]
    limit = rows["epochs"].map(claimed).fillna(np.inf).clip(upper=study.family.smallest_effect)
    low, high = changes["low"], changes["high"]
    within, outside = (-limit < low) & (high < limit), (low > limit) | (high < -limit)
    converged = np.select([within, outside], ["yes", "no"], "not shown")
    rows = rows.assign(change=changes["difference"], change_low=low, change_high=high)
    return rows.assign(limit=limit, converged=converged).reset_index(drop=True)


def _paired(
    study: Study, table: pd.DataFrame, metrics: Iterable[str], columns=(), doubled=False
) -> tuple[pd.DataFrame, list[Comparison]]:
    """Settings of the family against their baseline; doubled: baselines, epochs against twice them.

    `metrics` are compared between settings, the pairs in `columns` within each.
    """
    by_setting, places, compared = _by_setting(study, table), [], []
    for row, (key, runs) in enumerate(by_setting.items()):
        setting = dict(key)
        if not study.family.where.items() <= setting.items():
            continue
        first, second = _baseline(study, setting, by_setting), runs
        if doubled:
            twice = setting | {"epochs": 2 * (setting.get("epochs") or 0)}
            second = by_setting.get(tuple(twice.items())) if first is runs else None
        pairs = [(f"{b} − {a}", runs[a], runs[b]) for a, b in columns]
        if first is not None and second is not None and first is not second:
            pairs += [(metric, first[metric], second[metric]) for metric in metrics]
        for metric, *pair in pairs:
            values = pd.concat(pair, axis="columns", join="inner").to_numpy(float)
            possible = len(values) > 1 and np.isfinite(values).all()
            places.append((row, metric))
            compared.append(compare_seeds(*values.T) if possible else missing(len(values)))
    numbers = pd.DataFrame(compared, columns=["n", "difference", "low", "high", "p_value"])
    numbers = numbers.set_axis(["seeds", "difference", "low", "high", "p"], axis="columns")
    return pd.DataFrame(places, columns=["row", "metric"]).join(numbers), compared


def headline(study: Study, table: pd.DataFrame) -> str:
    """The result in a few sentences: verdicts, the frozen encoder, convergence."""
    result, family, sentences = summary(study, table), comparisons(study, table), []
    doubled, other = convergence(study, table), outside_family(study, table)
    if len(family):
        counts = f"{len(family)} comparisons, corrected together (Holm)"
        main, metric = family["metric"] == study.metric, figures.in_words(study.metric)
        for name, part in ((metric, family[main]), ("other metrics", family[~main])):
            number = part["verdict"].value_counts().get
            verdicts = [f"{number(v, 0)} {v}" for v in ("higher", "lower", "no difference shown")]
            counts += f"; {name} {', '.join(verdicts)}" if len(part) else ""
        sentences.append(f"{counts}.")
    if "chosen" in result:
        sentences.append(_selection(study, table, result))
    if "frozen" in result and (below := (result["mean"] < result["frozen"]).sum()):
        sentences.append(
            f"{below} of {len(result)} settings end below the frozen encoder: training made "
            "retrieval worse there."
        )
    if len(doubled):
        sentences.append(
            f"Converged: {(doubled['converged'] == 'yes').sum()} of {len(doubled)} (twice the "
            "epochs change the baseline by less than what is claimed, and by less than "
            f"{study.family.smallest_effect:g})."
        )
    elif len(family):
        sentences.append("Whether training had converged was not measured in this study.")
    if len(other):
        excluded = ((other["low"] > 0) | (other["high"] < 0)).sum()
        sentences.append(
            f"In MAP@R, which is not in the family, {excluded} of {len(other)} intervals exclude 0 "
            "(not corrected)."
        )
    return " ".join(sentences)


def _selection(study: Study, table: pd.DataFrame, result: pd.DataFrame) -> str:
    """How well the choice of a study could choose: classes, frozen recall, lead against spread."""
    metric = study.select_by or ""
    fraction = study.config({}).validation_fraction
    classes = round(table["train_classes"].mean() * fraction / (1 - fraction))
    text = f"Chosen by {figures.in_words(metric)} of {classes} classes"
    if f"frozen_{metric}" in table:
        text += f" (frozen {table[f'frozen_{metric}'].mean():.3f})"
    spreads = [runs[metric].std() for runs in _by_setting(study, table).values()]
    groups = result.assign(spread=spreads).groupby(
        list(study.within) or (lambda row: 0), dropna=False
    )
    equals = 0
    for _, group in groups:
        best, *others = group.sort_values(metric, ascending=False)[metric]
        spread = group["spread"][group[metric].idxmax()]
        equals += bool(others) and not best - others[0] > spread
    if not equals:
        return f"{text}; the best setting leads by more than its spread over seeds."
    cases = "" if len(groups) == 1 else f"in {equals} of {len(groups)} cases "
    return f"{text}; {cases}chosen among equals: it leads by no more than its spread over seeds."


def committed(name: str) -> pd.DataFrame:
    """The table of a study in the repository, one row per run; empty if there is none."""
    file = files.shipped(f"results/{name}.csv")
    return pd.read_csv(file, dtype={"config": str}) if file.is_file() else pd.DataFrame()


def show(name: str, *, rows: int = 12) -> list[str | pd.DataFrame | Figure]:
    """A committed study for a notebook: prediction, result, its table if short, its figure.

    Args:
        name: of the study.
        rows: the longest table that is shown; of a tuning, only the chosen settings.
    """
    study, table = load(name), committed(name)
    if table.empty:
        return [f"{study.title}: no committed table yet. To make it: sobook study {name}"]
    result = summary(study, table)
    kind = "fine-tuned" if study.trainer == "finetune" else "heads on frozen features"
    runs = f"{len(table)} of {len(study.plan())} runs"
    parts: list[Any] = [f"{study.title} (committed, {kind}, {runs})."]
    parts += [f"{title}: {text}" for title, text in _story(study, table)]
    figure = figures.draw(study, table, result, comparisons(study, table))
    if is_tuning := "chosen" in result:
        result = result[result["chosen"]]
    if len(result) <= rows:
        hidden = ["low", "high", "p", "chosen"]
        short = result.drop(columns=hidden, errors="ignore").round(4).astype(object)
        short = short.dropna(axis="columns", how="all")
        parts.append(short.where(short.notna(), "").set_index(short.columns[0]))
    return parts if is_tuning else [*parts, figure]


def write(study: Study, table: pd.DataFrame, folder: Path, command: str) -> list[Path]:
    """Write NAME.csv, NAME.md, NAME.json (where it came from) and NAME.png; returns the files."""
    written = [folder / f"{study.name}.{suffix}" for suffix in ("csv", "md", "json", "png")]
    csv, page, origin, picture = written
    facts = provenance(study, command)
    files.write_text(csv, table.to_csv(index=False))
    files.write_text(page, markdown(study, table, facts))
    files.write_json(origin, facts)
    figure = figures.draw(study, table, summary(study, table), comparisons(study, table))
    with files.replacing(picture) as partial:
        figure.savefig(partial, dpi=80)
    return written


def markdown(study: Study, table: pd.DataFrame, facts: dict[str, Any]) -> str:
    """The page of a study: prediction, result, `summary` as a table, and its `provenance`."""
    result, family = summary(study, table), comparisons(study, table)
    doubled, other = convergence(study, table), outside_family(study, table)
    fixed = ", ".join(f"{name} = {value}" for name, value in study.fixed.items())
    sections = [f"# {study.title}", _TRAINED[study.trainer]]
    sections += [f"**{title}:** {text}" for title, text in _story(study, table)]
    sections += [
        f"Metric: {figures.in_words(study.metric)}, mean over seeds with its 95 % t interval. "
        f"Baseline: {study.baseline or 'none'}. Differences are paired by seed, with their 95 % t "
        "interval over seeds; p is from a paired t test, p_holm corrects it for the family (Holm).",
        f"Fixed: {fixed}. Everything else: the trainer's defaults.",
        _table(_with_frozen(study, result)),
    ]
    for title, compared in (
        ("The whole family:", family if study.family.columns or study.family.metrics else ()),
        ("MAP@R, beside the family and not corrected:", other),
    ):
        if len(compared):
            settings = result[study.factors[:-1]].iloc[compared["row"]].reset_index(drop=True)
            sections += [title, _table(settings.join(compared.drop(columns="row")))]
    if len(doubled):
        sections += ["Twice the epochs:", _table(doubled)]
    sections.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    return "\n\n".join(sections) + "\n"


def _story(study: Study, table: pd.DataFrame) -> list[tuple[str, str]]:
    """(title, text) of what was predicted and of what was found."""
    prediction = " ".join(study.family.prediction.split())
    story = [("Predicted, before it ran", prediction), ("Found", headline(study, table))]
    return [(title, text) for title, text in story if text]


def _by_setting(study: Study, table: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    """Runs by seed of every setting, the pairs (factor, value), in the order of the study."""
    by_setting, factors = {}, study.factors[:-1]
    for key, runs in table.groupby(factors, dropna=False, sort=False) if factors else [((), table)]:
        values = [None if pd.isna(value) else value for value in key]  # NaN is not itself
        setting = tuple(zip(factors, values, strict=True))
        if runs["seed"].duplicated().any():
            twice = runs["seed"][runs["seed"].duplicated()].iloc[0]
            raise SobookError(f"seed {twice} of {dict(setting)} is there twice: remove one row.")
        by_setting[setting] = runs.set_index("seed").sort_index()
    return by_setting


def _baseline(study: Study, setting: dict, by_setting: dict) -> pd.DataFrame | None:
    """The runs that those of a setting are compared with.

    A baseline names some factors; the others keep the value they have in the setting. Where there
    are no such runs, as when methods have parameters of their own, it is the only setting that fits
    the baseline and has the same values of the grid's factors.
    """
    same = by_setting.get(tuple((setting | study.baseline).items()))
    if same is not None:
        return same
    wanted = {name: setting[name] for name in study.grid if name in setting} | study.baseline
    fitting = [runs for key, runs in by_setting.items() if wanted.items() <= dict(key).items()]
    return fitting[0] if len(fitting) == 1 else None


def _with_frozen(study: Study, result: pd.DataFrame) -> pd.DataFrame:
    """The summary with a first row for each frozen encoder, in place of the column."""
    factors = study.factors[:-1]
    if "frozen" not in result or not factors:
        return result
    values, rows = result["frozen"].round(6), []
    for value, settings in result.groupby(values, sort=False):
        rows.append({"trained": "not at all (frozen)", "mean": value})
        if values.nunique() > 1:
            same = [name for name in factors if settings[name].nunique(dropna=False) == 1]
            rows[-1] |= settings[same].iloc[0].to_dict()
    trained = result.drop(columns="frozen").astype(object)
    trained.insert(0, "trained", "yes")
    return pd.concat([pd.DataFrame(rows).astype(object), trained])[trained.columns]


def _table(rows: pd.DataFrame) -> str:
    lines = [rows.columns, ["---"] * rows.shape[1], *rows.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(_shown, line))} |" for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else ""
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        if 0 < abs(value) < 5e-5:
            return f"{value:.0e}"
        return f"{value:g}" if value == int(value) or abs(value) >= 10 else f"{value:.4f}"
    return str(value)
