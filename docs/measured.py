"""The tables of the page *Performance*, from what tests/benchmarks and rehearsals have written."""

import json
from pathlib import Path
from typing import Any

from sobook.data import benchmarks
from sobook.training import estimate

RESULTS = Path(__file__).resolve().parent.parent / "data/results"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def spread(value: Any, digits: int = 0) -> str:
    """Median [least, most] of the rounds."""
    if not isinstance(value, dict):
        return "–" if value is None else str(value)
    median, least, most = (f"{value[key]:,.{digits}f}" for key in ("median", "least", "most"))
    return f"{median} [{least}, {most}]"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def peers(name: str) -> str:
    """One data set: a column for each peer."""
    found = read(f"peers_{name}")
    table = found["peers"]
    first = table["sobook"]["seconds in all"]["median"]
    times = [f"**{row['seconds in all']['median'] / first:.2f}**" for row in table.values()]
    rows = [["**time, × sobook**", *times]]
    for measure in table["sobook"]:
        digits = 2 if measure == "Recall@1 at the end" else 0
        rows.append([measure, *(spread(row[measure], digits) for row in table.values())])
    about = (
        f"{found['encoder']} at {found['side']} pixels, {found['train']:,} training and "
        f"{found['test']:,} test images, {found['epochs']} epochs, {found['rounds']} rounds, on "
        f"{found['machine']}. Median [least, most]."
    )
    return markdown(["", *table], rows) + f"\n\n{about}"


def rehearsals() -> str:
    """One row per benchmark and stage."""
    stages: dict[str, list[str]] = {}
    names = ["cub200", "cars196", "sop", "inshop"]
    records = [read(f"rehearsal_{name}") for name in names]
    for record in records:
        for stage, done in record["stages"].items():
            cell = f"{done['seconds']:,.0f} s, {done['peak_bytes'] / 1e9:.2f} GB"
            if done["attempts"] > 1:
                cell += f", attempt {done['attempts']}"
            stages.setdefault(stage, []).append(cell)
    disk = ["disk in all, GB"]
    for record in records:
        used = sum(done["disk_bytes"] for done in record["stages"].values())
        disk.append(f"{used / 1e9:.2f}")
    images = ["images", *(f"{benchmarks.cards()[name]['images']:,}" for name in names)]
    rows = [images, *([stage, *cells] for stage, cells in stages.items()), disk]
    return markdown(["", *names], rows)


def costs() -> str:
    return f"```{{image}} _static/cost.png\n:alt: {read('cost')['alt']}\n:width: 100%\n```"


def processes() -> str:
    found = read("several_processes")
    rows = []
    for count in ("1", "2", "4"):
        seconds, run = found[count]["seconds"], found[count]["run"]
        times = [f"{1000 * seconds[part]:,.0f} ms" for part in ("gather", "loss", "average")]
        apart = f"{run['largest change']:.1e}"
        rows.append([count, *times, apart, f"{run['recall_at_1']:.3f}"])
    head = ["processes", "gather", "loss", "average of the proxies' gradient"]
    return markdown([*head, "largest change of a proxy's entry", "Recall@1"], rows)


def step_shares() -> str:
    found = read("step")["parts_of_a_step"]
    rows = [[name, f"{share:.0%}"] for name, share in found["shares"].items()]
    return markdown(["part of a step", "share of its time"], rows)


def step_variants() -> str:
    rows = [
        [name, spread(ratio, 2)]
        for name, ratio in read("step")["variants"].items()
        if name != "plain"
    ]
    return markdown(["instead of batches of 40 in float32", "images per second, ×"], rows)


def step_rate() -> str:
    found = read("step")["parts_of_a_step"]
    return (
        f"The products of matrices alone run at {found['in products alone, of the peak']:.0%} of "
        f"the peak that this processor reaches in a large product ({found['peak, GFLOP/s']:.0f} "
        f"GFLOP/s), the whole step at {found['of the peak of matrix products']:.0%} of it."
    )


def loss_limit() -> str:
    found, most = read("step")["losses"], []
    for part in found.values():
        usual, own = "pytorch-metric-learning / Proxy Anchor", "Proxy Anchor / its products"
        most.append(f"{part[usual]['median'] * part[own]['median']:.1f}")
    return f"{', '.join(most[:-1])} and {most[-1]}"


def losses() -> str:
    found = read("step")["losses"]
    names = list(next(iter(found.values())))
    rows = [[size, *(spread(part[name], 2) for name in names)] for size, part in found.items()]
    return markdown(["", *names], rows)


def chunks() -> str:
    rows = [
        [name, chunk, spread(row, 2), f"{row['relative change of the gradient']:.0e}"]
        for name, part in read("step")["chunks"].items()
        for chunk, row in part.items()
    ]
    return markdown(["", "", "time, × the plain step", "relative change of the gradient"], rows)


def installation() -> str:
    rows = [
        [name, f"{done['seconds']}", f"{done['gb']}"] for name, done in read("installation").items()
    ]
    return markdown(["", "seconds", "GB in .venv"], rows)


def devices() -> str:
    rows = [
        [name, *(f"{value / scale:,g}" for value, scale in values)]
        for name, one in estimate.DEVICES.items()
        for values in [
            [(one.half, 1e12), (one.single, 1e12), (one.bandwidth, 1e9), (one.memory, 1e9)]
        ]
    ]
    head = ["", "16 bits, TFLOP/s", "float32, TFLOP/s", "bandwidth, GB/s", "memory, GB"]
    return markdown(head, rows)


def reckoned() -> str:
    rows = [[name, spread(ratio, 2)] for name, ratio in read("step")["reckoned"].items()]
    return markdown(["", "reckoned time / measured time"], rows)


TABLES = {
    "peers_aviary": lambda: peers("aviary"),
    "peers_cub": lambda: peers("cub_58_42"),
    **{
        part.__name__: part
        for part in (
            rehearsals,
            costs,
            processes,
            step_shares,
            step_rate,
            step_variants,
            losses,
            loss_limit,
            chunks,
            installation,
            devices,
            reckoned,
        )
    },
}
