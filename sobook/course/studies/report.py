"""What a study found: means over seeds, its family of comparisons with verdicts, and its files.

Start with `summary`. A verdict is that of the whole family (`sobook.statistics.verdict`). Notebooks
show a study that is part of the repository with `told`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sobook import files
from sobook.course.studies import figures
from sobook.course.studies.study import Study, load, provenance
from sobook.errors import SobookError
from sobook.figures.style import Figure
from sobook.statistics import Comparison, compare_seeds, holm, t_interval, verdict


def summary(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: mean over seeds, and the paired difference from the baseline.

    Columns: the factors; seeds; mean of the metric and its 95 % t interval over seeds (low, high);
    frozen, the frozen encoder's value of it, where that was measured; the mean of rms_cosine,
    mean_cosine and `select_by`; where the setting is in the study's family, difference,
    difference_low, difference_high, p, p_holm and verdict, see `comparisons`; chosen, the best by
    `select_by`.
    """
    factors, rows = study.factors[:-1], []
    for setting, runs in _by_setting(study, table):
        row = {**setting, "seeds": len(runs), "mean": runs[study.metric].mean()}
        row["low"], row["high"] = t_interval(runs[study.metric])
        means = {"frozen": f"frozen_{study.metric}"}
        means |= {name: name for name in ("rms_cosine", "mean_cosine", study.select_by) if name}
        row |= {name: runs[column].mean() for name, column in means.items() if column in runs}
        rows.append(row)
    result = pd.DataFrame(rows)
    family = comparisons(study, table)
    if len(family):
        of_metric = family[family["metric"] == study.metric].drop(columns=["metric", "seeds"])
        names = {"low": "difference_low", "high": "difference_high"}
        compared = of_metric.rename(columns=names).set_index("row")
        result = result.join(compared[~compared.index.duplicated()])
    if study.select_by in result:
        varied = [name for name in factors if name not in study.baseline]
        grouping = list(varied if study.within is None else study.within)
        best = result[study.select_by].max()
        if grouping:
            best = result.groupby(grouping, dropna=False)[study.select_by].transform("max")
        result["chosen"] = result[study.select_by] == best
    return result


def comparisons(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """The study's family: every comparison it declares, corrected together.

    Columns: row, that of `summary`; metric, or "second − first" for two metrics of the same
    run; seeds; difference, low, high (95 % t interval over seeds), p (paired t test), p_holm,
    verdict. A comparison over fewer than two seeds is left out.
    """
    family, by_setting = study.family, _by_setting(study, table)
    found: list[tuple[int, str, Comparison]] = []
    for index, (setting, runs) in enumerate(by_setting):
        if not family.holds(setting):
            continue
        for first, second in family.columns:
            if first in runs and len(runs) > 1:
                compared = compare_seeds(runs[first], runs[second])
                found.append((index, f"{second} − {first}", compared))
        baseline = _baseline(study, setting, by_setting)
        if baseline is None or baseline is runs:
            continue
        seeds = runs.index.intersection(baseline.index)
        for metric in family.metrics or (study.metric,):
            pair = baseline.loc[seeds, metric], runs.loc[seeds, metric]
            if len(seeds) > 1 and not pd.concat(pair).isna().any():
                found.append((index, metric, compare_seeds(*pair)))
    members = [compared for *_, compared in found]
    corrected = holm([compared.p_value for compared in members])
    return pd.DataFrame(
        {
            "row": index,
            "metric": metric,
            "seeds": one.n,
            "difference": one.difference,
            "low": one.low,
            "high": one.high,
            "p": one.p_value,
            "p_holm": p_holm,
            "verdict": verdict(one, members),
        }
        for (index, metric, one), p_holm in zip(found, corrected, strict=True)
    )


def beside(study: Study, table: pd.DataFrame, metric: str = "map_at_r") -> pd.DataFrame:
    """The same comparisons in a metric that is not in the family: without correction or verdict.

    Columns as in `comparisons`, up to high. Empty where the family holds the metric already.
    """
    if metric not in table or metric in (study.metric, *study.family.metrics):
        return pd.DataFrame()
    family = replace(study.family, metrics=(metric,), columns=())
    found = comparisons(replace(study, family=family), table)
    return found.drop(columns=["p", "p_holm", "verdict"], errors="ignore")


def convergence(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Whether training was long enough: what twice the epochs change for the baseline.

    The limit is the smallest difference that the study claims at that number of epochs, and at most
    its family's smallest_effect. Training has converged ("yes") when the 95 % t interval of the
    change lies within the limit, and has not ("no") when it lies outside; else neither is shown.

    Returns:
        One row per baseline setting in the family whose double was run: its factors, mean, change,
        change_low, change_high, limit, converged.
    """
    by_setting, family = _by_setting(study, table), comparisons(study, table)
    rows = []
    for setting, runs in by_setting:
        if not setting.get("epochs") or _baseline(study, setting, by_setting) is not runs:
            continue  # without a baseline, no run is one
        if not study.family.holds(setting):
            continue  # nothing is claimed there
        doubled = _runs_of(by_setting, setting | {"epochs": 2 * setting["epochs"]})
        if doubled is None:
            continue
        claimed = [
            abs(row.difference)
            for row in family.itertuples()
            if row.metric == study.metric
            and row.verdict != "no difference shown"
            and by_setting[row.row][0]["epochs"] == setting["epochs"]
        ]
        limit = min([*claimed, study.family.smallest_effect])
        seeds = runs.index.intersection(doubled.index)
        if len(seeds) < 2:
            continue
        change = compare_seeds(runs.loc[seeds, study.metric], doubled.loc[seeds, study.metric])
        outside = change.low > limit or change.high < -limit
        within = -limit < change.low and change.high < limit
        converged = "yes" if within else "no" if outside else "not shown"
        row = {**setting, "mean": runs[study.metric].mean(), "change": change.difference}
        row |= {"change_low": change.low, "change_high": change.high, "limit": limit}
        rows.append({**row, "converged": converged})
    return pd.DataFrame(rows)


def headline(study: Study, table: pd.DataFrame) -> str:
    """The findings in a few sentences: verdicts, the frozen encoder, convergence."""
    result, family, parts = summary(study, table), comparisons(study, table), []
    if len(family):
        main = family["metric"] == study.metric
        said = [f"{len(family)} comparisons, corrected together (Holm)"]
        metric = figures.in_words(study.metric)
        for name, part in ((metric, family[main]), ("other metrics", family[~main])):
            if len(part):
                counts = part["verdict"].value_counts()
                kinds = ("higher", "lower", "no difference shown")
                numbers = ", ".join(f"{counts.get(kind, 0)} {kind}" for kind in kinds)
                said.append(f"{name} {numbers}")
        parts.append("; ".join(said) + ".")
    if "frozen" in result:
        below = result[result["mean"] < result["frozen"]]
        if len(below):
            parts.append(
                f"{len(below)} of {len(result)} settings end below the frozen encoder: training "
                "made retrieval worse there."
            )
    doubled = convergence(study, table)
    if len(doubled):
        sure = (doubled["converged"] == "yes").sum()
        parts.append(
            f"Converged: {sure} of {len(doubled)} (twice the epochs change the baseline by less "
            f"than what is claimed, and by less than {study.family.smallest_effect:g})."
        )
    elif len(family):
        parts.append("Whether training had converged was not measured in this study.")
    other = beside(study, table)
    if len(other):
        apart = ((other["low"] > 0) | (other["high"] < 0)).sum()
        parts.append(
            f"In MAP@R, which is not in the family, {apart} of {len(other)} intervals exclude 0 "
            "(not corrected)."
        )
    return " ".join(parts)


def committed(name: str) -> pd.DataFrame:
    """The table of a study in the repository, one row per run; empty if there is none."""
    try:
        return pd.read_csv(files.shipped(f"results/{name}.csv"), dtype={"config": str})
    except SobookError:
        return pd.DataFrame()


def findings(name: str, metric: str = "recall_at_1") -> list[str]:
    """One line for each comparison of a committed study's family in this metric."""
    study, table = load(name), committed(name)
    settings = pd.DataFrame(setting for setting, _ in _by_setting(study, table))
    labels = figures.labels_of(settings, study.factors[:-1])
    family = comparisons(study, table)
    return [
        f"{labels[row.row]}: {row.verdict} ({row.difference:+.3f} [{row.low:+.3f}, "
        f"{row.high:+.3f}], over {row.seeds} seeds)"
        for row in family[family["metric"] == metric].itertuples()
    ]


def told(name: str, *, rows: int = 12) -> list[str | pd.DataFrame | Figure]:
    """A committed study for a notebook: prediction, findings, its table if short, its figure.

    Of a tuning, only the chosen settings.
    """
    study, table = load(name), committed(name)
    if table.empty:
        return [f"{study.title}: no committed table yet. To make it: sobook study {name}"]
    result, family = summary(study, table), comparisons(study, table)
    kind = "fine-tuned" if study.trainer == "finetune" else "heads on frozen features"
    parts: list[str | pd.DataFrame | Figure] = [
        f"{study.title} (committed, {kind}, {len(table)} of {len(study.plan())} runs)."
    ]
    if study.family.prediction:
        parts.append(f"Predicted before it ran: {' '.join(study.family.prediction.split())}")
    if found := headline(study, table):
        parts.append(f"Found: {found}")
    if "chosen" in result:  # a tuning: what it chose is all that goes on from here
        result = result[result["chosen"]]
    if len(result) <= rows:
        names = [*study.factors[:-1], "seeds", "mean", "frozen", "rms_cosine", "mean_cosine"]
        names += ["difference", "difference_low", "difference_high", "p_holm", "verdict"]
        names += [name for name in (study.select_by,) if name]
        short = result[[name for name in names if name in result]].round(4).astype(object)
        short = short.dropna(axis="columns", how="all")
        parts.append(short.where(short.notna(), "").set_index(short.columns[0]))
    if "chosen" not in result:
        parts.append(figures.draw(study, table, result, family))
    return parts


def _by_setting(study: Study, table: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """(factor → value, runs by seed) of every setting, in the order of the study."""
    factors = study.factors[:-1]
    groups = table.groupby(factors, dropna=False, sort=False) if factors else [((), table)]
    found = []
    for key, group in groups:
        values = [None if pd.isna(value) else value for value in key]  # NaN is not itself
        setting = dict(zip(factors, values, strict=True))
        found.append((setting, group.set_index("seed").sort_index()))
    return found


def _runs_of(by_setting: list, setting: dict) -> pd.DataFrame | None:
    return next((runs for one, runs in by_setting if one == setting), None)


def _baseline(study: Study, setting: dict, by_setting: list) -> pd.DataFrame | None:
    """The runs that those of a setting are compared with.

    A baseline names some factors; the others keep the value they have in the setting. Where there
    are no such runs, as when methods have parameters of their own, it is the only setting that fits
    the baseline and has the same values of the grid's factors.
    """
    same = _runs_of(by_setting, setting | study.baseline)
    if same is not None or not study.baseline:
        return same
    wanted = {name: setting[name] for name in study.grid if name in setting} | study.baseline
    fitting = [runs for one, runs in by_setting if wanted.items() <= one.items()]
    return fitting[0] if len(fitting) == 1 else None


def write(study: Study, table: pd.DataFrame, folder: Path, command: str) -> list[Path]:
    """Write NAME.csv, NAME.md, NAME.json (where it came from) and NAME.png; returns the files."""
    written = [folder / f"{study.name}.{suffix}" for suffix in ("csv", "md", "json", "png")]
    csv, page, origin, picture = written
    facts = provenance(study, command)
    with files.replacing(csv) as partial:
        table.to_csv(partial, index=False)
    files.write_text(page, markdown(study, table, facts))
    files.write_json(origin, facts)
    figure = figures.draw(study, table, summary(study, table), comparisons(study, table))
    with files.replacing(picture) as partial:
        figure.savefig(partial, dpi=80)
    return written


def markdown(study: Study, table: pd.DataFrame, facts: dict[str, Any]) -> str:
    """The report of a study: prediction, findings, `summary` as a table, and where it came from."""
    trained = {
        "head": "Head and proxies trained on frozen features; nothing was fine-tuned.",
        "finetune": "Fine-tuned: backbone, head and proxies.",
    }[study.trainer]
    result, family, doubled = (make(study, table) for make in (summary, comparisons, convergence))
    fixed = ", ".join(f"{name} = {value}" for name, value in study.fixed.items())
    sections = [f"# {study.title}", trained]
    if study.family.prediction:
        sections.append(
            f"**Predicted, before it ran:** {' '.join(study.family.prediction.split())}"
        )
    if found := headline(study, table):
        sections.append(f"**Found:** {found}")
    sections += [
        f"Metric: {figures.in_words(study.metric)}, mean over seeds with its 95 % t interval. "
        f"Baseline: {study.baseline or 'none'}. Differences are paired by seed, with their 95 % t "
        "interval over seeds; p is from a paired t test, p_holm corrects it for the family (Holm).",
        f"Fixed: {fixed}. Everything else: the trainer's defaults.",
        _table(_with_frozen(study, result)),
    ]
    if len(family) and (study.family.columns or study.family.metrics):
        sections += ["The whole family:", _named(study, table, family)]
    other = beside(study, table)
    if len(other):
        sections += ["MAP@R, beside the family and not corrected:", _named(study, table, other)]
    if len(doubled):
        sections += ["Twice the epochs:", _table(doubled)]
    sections.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    return "\n\n".join(sections) + "\n"


def _named(study: Study, table: pd.DataFrame, compared: pd.DataFrame) -> str:
    """Comparisons as a table in which each row begins with its setting."""
    settings = pd.DataFrame(setting for setting, _ in _by_setting(study, table))
    named = settings.iloc[compared["row"]].reset_index(drop=True)
    return _table(named.join(compared.drop(columns="row")))


def _with_frozen(study: Study, result: pd.DataFrame) -> pd.DataFrame:
    """The summary with a first row for each frozen encoder, in place of the column."""
    if "frozen" not in result or not study.factors[:-1]:
        return result
    values = result["frozen"].round(6).dropna()
    first = study.factors[0]
    rows = []
    for value in values.unique():
        same = result[study.factors[:-1]][values == value]
        known = {name: same[name].iloc[0] for name in same if same[name].nunique(dropna=False) == 1}
        varies = values.nunique() > 1
        rows.append({**(known if varies else {}), "trained": "not at all (frozen)", "mean": value})
        rows[-1].setdefault(first, None)
    trained = result.drop(columns="frozen").assign(trained="yes")
    both = pd.concat([pd.DataFrame(rows).astype(object), trained.astype(object)])
    return both[["trained", *trained.columns.drop("trained")]]


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
