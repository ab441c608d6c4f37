"""What several processes cost and change: ``torchrun`` with 1, 2 and 4 of them.

    python -m tests.benchmarks.several_processes

Measured at the size of Stanford Online Products with a large batch (C = 11,318, B = 900, D = 512):
the embeddings gathered, the loss that every process computes, and the proxies' gradient averaged.
Then the same small run is trained with each number of processes, and its proxies are compared.
On CPUs (gloo), one thread for each process; several GPUs have not been measured.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.benchmarks import timing

COUNTS = (1, 2, 4)
CLASSES, BATCH, DIM = 11_318, 900, 512
ROUNDS = 10


def launch(count: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]


def worker(out: Path) -> None:
    """In each process; the main one writes the medians of its seconds."""
    import torch

    from sobook.losses import ProxyAnchor
    from sobook.training.processes import join

    processes = join("cpu")
    torch.manual_seed(0)
    loss, own = ProxyAnchor(CLASSES, DIM), processes.local_slice(BATCH)
    joint, every = torch.randn(BATCH, DIM), torch.randint(CLASSES, (BATCH,))
    seconds: dict[str, list[float]] = {"gather": [], "loss": [], "average": []}
    for _ in range(ROUNDS + 1):
        x = joint[own].clone().requires_grad_()
        loss.proxies.grad = None
        processes.wait()
        times = [time.perf_counter()]
        rows, labels = processes.gather(x, every[own], BATCH)
        times.append(time.perf_counter())
        loss(rows, labels).backward()
        times.append(time.perf_counter())
        processes.average_gradients([loss.proxies])
        times.append(time.perf_counter())
        for name, took in zip(seconds, np.diff(times), strict=True):
            seconds[name].append(float(took))
    if processes.is_main:
        found: dict = {name: float(np.median(took[1:])) for name, took in seconds.items()}
        found["processes"] = processes.count
        out.write_text(json.dumps(found), encoding="utf-8")


def train(count: int, folder: Path, one_thread: dict[str, str]) -> dict[str, object]:
    """The same run, by so many processes."""
    from sobook.training.run import Run

    run = folder / f"run{count}"
    settings = ["--dataset", "aviary", "--options", "species", "40", "images_per_species", "20"]
    settings += ["--epochs", "2", "--so-weight", "100", "--device", "cpu", "--seed", "0"]
    command = [*launch(count), "-m", "sobook", "train", *settings, "--run-dir", str(run)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=one_thread)
    seconds = time.perf_counter() - start
    opened = Run.load(run)
    return {"seconds": seconds, "proxies": opened.proxies().numpy(), "recall": opened.retrieval}


def main() -> None:
    parser = timing.parser(__doc__)
    parser.add_argument("--worker", type=Path)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker)
        return
    about = timing.machine("gloo, one thread a process")
    found: dict = {"classes": CLASSES, "batch": BATCH, "dim": DIM, "machine": about}
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        folder, runs = Path(temporary), {}
        for count in COUNTS:
            out = folder / f"{count}.json"
            command = [*launch(count), "-m", "tests.benchmarks.several_processes"]
            subprocess.run([*command, "--worker", str(out)], check=True, env=one_thread)
            found[str(count)] = {"seconds": json.loads(out.read_text(encoding="utf-8"))}
            assert found[str(count)]["seconds"].pop("processes") == count
            runs[count] = train(count, folder, one_thread)
        for count in COUNTS:
            apart = float(np.abs(runs[count]["proxies"] - runs[1]["proxies"]).max())
            found[str(count)]["run"] = {
                "seconds": round(runs[count]["seconds"], 1),
                "recall_at_1": runs[count]["recall"]["recall"]["1"],
                "largest change": apart,  # of an entry of a proxy
                "largest entry": float(np.abs(runs[1]["proxies"]).max()),
            }
    print(found)
    timing.write(given.out / "several_processes.json", found)


if __name__ == "__main__":
    main()
