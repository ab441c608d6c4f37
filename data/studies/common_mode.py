"""Write data/results/common_mode.md and its figure from the committed tables of study 3.

sobook study common_mode_aviary common_mode_cub --out data/results
python data/common_mode.py
"""

# ruff: noqa: E501 (sentences)

from pathlib import Path

import pandas as pd

from sobook import files
from sobook.retrieval import compare_seeds
from sobook.studies import figures as study_figures

RESULTS = Path(__file__).parent / "results"
TABLES = {"aviary": "common_mode_aviary", "CUB-58/42": "common_mode_cub"}
ARM = ["so_weight", "center", "margin"]
PLAIN = (0, False, 0.1)  # Proxy Anchor as it is


def arms(table: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    """The ways of training: (λ, centered?, δ) → its runs, by seed."""
    groups = table.groupby(ARM, sort=False)
    return {key: group.set_index("seed").sort_index() for key, group in groups}


def rows(table: pd.DataFrame) -> list[str]:
    """Lines of the table: what each way of training does to proxies and to Recall@1."""
    by_arm = arms(table)
    plain = by_arm[PLAIN]
    lines = []
    for key, arm in by_arm.items():
        seeds = plain.index.intersection(arm.index)
        if len(seeds) < 2:
            continue  # one pair has no interval
        change = compare_seeds(plain.loc[seeds, "recall_at_1"], arm.loc[seeds, "recall_at_1"])
        without = compare_seeds(arm["recall_at_1"], arm["recall_without_common"])
        cells = [
            study_figures.arm(*key),
            f"{arm['rms_cosine'].mean():.3f}",
            f"{arm['mean_cosine'].mean():+.3f}",
            f"{arm['rms_cosine_centred'].mean():.3f}",
            f"{arm['cosine_of_mean_proxy_and_mean_embedding'].mean():+.2f}",
            f"{arm['recall_at_1'].mean():.3f}",
            "–" if key == PLAIN else interval(change),
            interval(without),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def interval(found) -> str:
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def verdict(found) -> str:
    """In words, what a paired interval allows to say."""
    if found.low > 0:
        return f"raises Recall@1, {interval(found)}"
    if found.high < 0:
        return f"lowers Recall@1, {interval(found)}"
    return f"leaves Recall@1 where it was as far as {found.pairs} seeds can tell, {interval(found)}"


def answers(name: str, table: pd.DataFrame) -> list[str]:
    """The three questions of the study, answered from one table."""
    by_arm = arms(table)
    plain = by_arm[PLAIN]

    def against_plain(key: tuple) -> str:
        seeds = plain.index.intersection(by_arm[key].index) if key in by_arm else []
        if len(seeds) < 2:
            return "has not been run yet"
        measured = (part.loc[seeds, "recall_at_1"] for part in (plain, by_arm[key]))
        return verdict(compare_seeds(*measured))

    removed = compare_seeds(plain["recall_at_1"], plain["recall_without_common"])
    strong = (100, False, 0.1)  # the λ that held-out classes chose in aviary_lambda_heads
    left = by_arm[strong]["rms_cosine"].mean()
    centered = plain["rms_cosine_centred"].mean()
    more = "more" if left < centered else "no more"
    return [
        f"**{name}** ({int(plain['train_classes'].iloc[0])} classes, {len(plain)} seeds). "
        f"PA's proxies have an RMS cosine of {plain['rms_cosine'].mean():.3f}; their mean cosine is "
        f"{plain['mean_cosine'].mean():+.3f}. Subtracting the mean proxy removes "
        f"{plain['common_share'].mean():.0%} of the mean squared cosine and leaves an RMS of "
        f"{centered:.3f}. SO at λ = {strong[0]:g} leaves {left:.3f}, so it removes {more} than the "
        f"common mode. Taking the mean proxy's direction out of the embeddings afterwards "
        f"{verdict(removed)}; training with centered proxies {against_plain((0, True, 0.1))}"
        f"; SO {against_plain(strong)} (not corrected for several looks). The mean proxy "
        f"stands at a cosine of {plain['cosine_of_mean_proxy_and_mean_embedding'].mean():+.2f} to "
        "the mean embedding.",
        "",
    ]


def main() -> None:
    tables = {name: RESULTS / f"{file}.csv" for name, file in TABLES.items()}
    tables = {name: pd.read_csv(file) for name, file in tables.items() if file.exists()}
    lines = [
        "# The common mode of proxies",
        "",
        "What is the correlation of proxies that soft orthogonality (SO) removes? Heads and proxies "
        "trained on frozen features (not fine-tuned); intervals are 95 % t intervals of differences "
        "paired by seed. Written by `python data/common_mode.py` from the tables beside it.",
        "",
        "![Common mode](common_mode.png)",
        "",
        "## What was found",
        "",
        *(line for name, table in tables.items() for line in answers(name, table)),
        "## Why",
        "",
        "Our reading, not a proof. A proxy is pulled by the images of one class and pushed by those of all the others. What all images have in common, their mean embedding, is pushed by C − 1 classes and pulled by one, so every proxy leans away from it by about the same share of the same direction: that is what a cosine near −1 between mean proxy and mean embedding says. How strong the lean is depends on the margin δ, see the rows with other margins. For retrieval a direction shared by all says little: it is nearly the same number in every cosine of a query.",
        "",
    ]
    head = (
        "| trained by | RMS cosine | mean cosine | RMS, mean proxy subtracted | cosine of mean proxy "
        "and mean embedding | Recall@1 | against PA | its direction taken out of the embeddings |"
    )
    for name, table in tables.items():
        lines += [f"## {name}", "", head, "|---" * 8 + "|", *rows(table), ""]
    with files.replacing(RESULTS / "common_mode.md") as partial:
        partial.write_text("\n".join(lines))
    figure = study_figures.common_mode(tables)
    with files.replacing(RESULTS / "common_mode.png") as partial:
        figure.savefig(partial, dpi=80, format="png")


if __name__ == "__main__":
    main()
