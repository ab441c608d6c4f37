"""What a study found: means over seeds, paired differences from the baseline, and its files."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sobook import files
from sobook.statistics import compare_seeds, holm, t_interval, t_test
from sobook.studies import figures
from sobook.studies.study import Study, provenance


def summary(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: mean over seeds, and the paired difference from the baseline.

    Columns: the factors; seeds; mean of the metric and its 95 % t interval (low, high); the mean of
    rms_cosine, mean_cosine and `select_by`; difference, its interval (difference_low,
    difference_high), p (paired t test), p_permutation (sign flips; with n seeds never below 2/2ⁿ)
    and p_holm, p corrected for all differences in this table; chosen, the best by `select_by`.
    """
    factors = study.factors[:-1]
    groups = table.groupby(factors, dropna=False, sort=False) if factors else [((), table)]
    by_setting = {}
    for key, group in groups:
        key = tuple(None if pd.isna(value) else value for value in key)  # NaN is not itself
        by_setting[key] = group.set_index("seed")
    rows = []
    for key, runs in by_setting.items():
        setting = dict(zip(factors, key, strict=True))
        row = {**setting, "seeds": len(runs), "mean": runs[study.metric].mean()}
        row["low"], row["high"] = t_interval(runs[study.metric])
        for name in ("rms_cosine", "mean_cosine", study.select_by):
            if name in runs:
                row[name] = runs[name].mean()
        baseline = _baseline(study, setting, by_setting)
        if baseline is not None and baseline is not runs:
            row |= _difference(baseline[study.metric], runs[study.metric])
        rows.append(row)
    result = pd.DataFrame(rows)
    if "p" in result:
        result["p_holm"] = holm(result["p"])
    if study.select_by in result:
        varied = [name for name in factors if name not in study.baseline]
        grouping = list(varied if study.within is None else study.within)
        best = result[study.select_by].max()
        if grouping:
            best = result.groupby(grouping, dropna=False)[study.select_by].transform("max")
        result["chosen"] = result[study.select_by] == best
    return result


def _baseline(study: Study, setting: dict, by_setting: dict) -> pd.DataFrame | None:
    """The runs that those of a setting are compared with.

    A baseline names some factors; the others keep the value they have in the setting. Where there
    are no such runs, as when methods have parameters of their own, it is the only setting that fits
    the baseline.
    """
    same = by_setting.get(tuple((setting | study.baseline).values()))
    if same is not None or not study.baseline:
        return same
    fitting = [
        runs
        for key, runs in by_setting.items()
        if study.baseline.items() <= dict(zip(setting, key, strict=True)).items()
    ]
    return fitting[0] if len(fitting) == 1 else None


def _difference(baseline: pd.Series, values: pd.Series) -> dict[str, float]:
    """The paired comparison over the seeds that both have; nothing below two seeds."""
    seeds = values.index.intersection(baseline.index)
    if len(seeds) < 2:
        return {}
    compared = compare_seeds(baseline[seeds], values[seeds])
    return {
        "difference": compared.difference,
        "difference_low": compared.low,
        "difference_high": compared.high,
        "p": t_test(baseline[seeds], values[seeds]),
        "p_permutation": compared.p_value,
    }


def write(study: Study, table: pd.DataFrame, folder: Path, command: str) -> list[Path]:
    """Write NAME.csv, NAME.md, NAME.json (where it came from) and NAME.png; returns the files."""
    written = [folder / f"{study.name}.{suffix}" for suffix in ("csv", "md", "json", "png")]
    csv, page, origin, picture = written
    facts, result = provenance(study, command), summary(study, table)
    with files.replacing(csv) as partial:
        table.to_csv(partial, index=False)
    files.write_text(page, markdown(study, result, facts))
    files.write_json(origin, facts)
    with files.replacing(picture) as partial:
        figures.differences(study, result).savefig(partial, dpi=80)
    return written


def markdown(study: Study, result: pd.DataFrame, facts: dict[str, Any]) -> str:
    """The report of a study: its `summary` as a table, and where it came from."""
    trained = {
        "head": "Head and proxies trained on frozen features; nothing was fine-tuned.",
        "finetune": "Fine-tuned: backbone, head and proxies.",
    }[study.trainer]
    fixed = ", ".join(f"{name} = {value}" for name, value in study.fixed.items())
    rows = [result.columns, ["---"] * result.shape[1], *result.itertuples(index=False)]
    table = "\n".join(f"| {' | '.join(map(_shown, row))} |" for row in rows)
    origin = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"""\
# {study.title}

{trained}
Metric: {study.metric}, mean over seeds with its 95 % t interval. Baseline: \
{study.baseline or "none"}. Differences are paired by seed; p is from a paired t test, and p_holm \
corrects it for all differences in this table (Holm).

Fixed: {fixed}. Everything else: the trainer's defaults.

{table}

{origin}
"""


def _shown(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else ""
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:g}" if value == int(value) or abs(value) >= 10 else f"{value:.4f}"
    return str(value)
