"""The same training with sobook and with two loops that users write otherwise, one process each.

    python -m tests.benchmarks.peers --epochs 8 --rounds 3 --out data/results/peers.json

All fine-tune the micro DeiT on the aviary with Proxy Anchor, with the same rates, batches, schedule
and number of epochs, and evaluate the test species after each epoch. The pictures lie on disk as
PNG; sobook keeps them decoded, the others read them as their libraries do. Rounds are interleaved,
and one thread is used by each. Measured: seconds in all (imports, reading and evaluation
included), the largest resident memory, Recall@1 at the end, and the lines that a user writes.
"""

import argparse
import inspect
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EPOCHS_PROXIES_ONLY, BATCH, DIM, SEED = 1, 40, 128, 0


def with_sobook(folder: Path, epochs: int, report) -> None:
    from sobook import fit
    from sobook.training.config import TrainConfig

    config = TrainConfig(epochs=epochs, selection="test", validation_fraction=0, seed=SEED)
    run = fit(config.replace(run_dir=str(folder / f"run{os.getpid()}")), progress=False)
    for line in run.epochs[1:]:
        report(line["recall_at_1"])


def with_pytorch_metric_learning(folder: Path, epochs: int, report) -> None:
    import timm
    import torch
    from pytorch_metric_learning.losses import ProxyAnchorLoss
    from pytorch_metric_learning.testers import BaseTester
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from torch import nn
    from torchvision import datasets, transforms

    torch.manual_seed(SEED)
    norm = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    crop = transforms.RandomResizedCrop(64, scale=(0.4, 1))
    flip = transforms.RandomHorizontalFlip()
    augment = transforms.Compose([crop, flip, transforms.ToTensor(), norm])
    center = [transforms.Resize(73), transforms.CenterCrop(64)]
    plain = transforms.Compose([*center, transforms.ToTensor(), norm])
    train = datasets.ImageFolder(str(folder / "train"), augment)
    test = datasets.ImageFolder(str(folder / "test"), plain)
    loader = torch.utils.data.DataLoader(train, BATCH, shuffle=True, drop_last=True)
    trunk = timm.create_model("deit_micro_patch8_64", checkpoint_path=weights(), num_classes=0)
    head = nn.Sequential(nn.LayerNorm(128, elementwise_affine=False), nn.Linear(128, DIM))
    loss = ProxyAnchorLoss(len(train.classes), DIM, margin=0.1, alpha=32)
    rates = {trunk: 1e-3, head: 5e-3, loss: 0.1}
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    tester = BaseTester(batch_size=BATCH, dataloader_num_workers=0)
    calculator = AccuracyCalculator(include=("precision_at_1",), k=1)
    for epoch in range(epochs):
        trunk.train().requires_grad_(epoch >= EPOCHS_PROXIES_ONLY)
        head.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss(head(trunk(images)), labels).backward()
            optimizer.step()
            schedule.step()
        trunk.eval(), head.eval()
        rows, labels = tester.get_all_embeddings(test, trunk, head)
        found = calculator.get_accuracy(rows, labels.squeeze(1))
        report(found["precision_at_1"])


def with_timm(folder: Path, epochs: int, report) -> None:
    import timm
    import torch
    import torch.nn.functional as F
    from timm.data import create_dataset, create_loader
    from torch import nn

    torch.manual_seed(SEED)
    size = {"input_size": (3, 64, 64), "use_prefetcher": False, "num_workers": 0}
    train = create_dataset("", folder / "train")
    test = create_dataset("", folder / "test")
    crop = {"scale": (0.4, 1), "ratio": (3 / 4, 4 / 3), "hflip": 0.5, "color_jitter": None}
    loader = create_loader(train, batch_size=BATCH, is_training=True, **crop, **size)
    queries = create_loader(test, batch_size=BATCH, is_training=False, crop_pct=0.875, **size)
    trunk = timm.create_model("deit_micro_patch8_64", checkpoint_path=weights(), num_classes=0)
    head = nn.Sequential(nn.LayerNorm(128, elementwise_affine=False), nn.Linear(128, DIM))
    proxies = nn.Parameter(torch.empty(len(train.reader.class_to_idx), DIM))
    nn.init.kaiming_normal_(proxies, mode="fan_out")
    groups = [
        {"params": trunk.parameters(), "lr": 1e-3},
        {"params": head.parameters(), "lr": 5e-3},
        {"params": [proxies], "lr": 0.1},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))

    def proxy_anchor(embeddings, labels, scale=32, margin=0.1):
        cosines = F.normalize(embeddings) @ F.normalize(proxies).T
        own = F.one_hot(labels, len(proxies)).bool()
        pull = (-scale * (cosines - margin)).exp().where(own, 0).sum(0)
        push = (scale * (cosines + margin)).exp().where(~own, 0).sum(0)
        return pull.log1p().sum() / own.any(0).sum() + push.log1p().mean()

    for epoch in range(epochs):
        trunk.train().requires_grad_(epoch >= EPOCHS_PROXIES_ONLY)
        for images, labels in loader:
            optimizer.zero_grad()
            proxy_anchor(head(trunk(images)), labels).backward()
            optimizer.step()
            schedule.step()
        trunk.eval()
        rows, truth = [], []
        with torch.no_grad():
            for images, labels in queries:
                rows.append(F.normalize(head(trunk(images))))
                truth.append(labels)
        rows, truth = torch.cat(rows), torch.cat(truth)
        nearest = (rows @ rows.T).fill_diagonal_(-1).argmax(1)
        report((truth[nearest] == truth).float().mean().item())


PEERS = {
    "sobook": with_sobook,
    "pytorch-metric-learning + torchvision": with_pytorch_metric_learning,
    "timm, loss by hand": with_timm,
}


def weights() -> str:
    import sobook.aviary.micro  # noqa: F401  (registers the encoder with timm)
    from sobook import files

    return str(files.shipped("deit_micro_patch8_64.safetensors"))


def export(folder: Path) -> None:
    """The aviary as two folders with one subfolder per species: links to its PNG files."""
    from sobook.data import image_sets

    image_sets.prepare("aviary")
    for split in ("train", "test"):
        for picture in map(Path, image_sets.load("aviary", split).paths):
            place = folder / split / picture.parent.name
            place.mkdir(parents=True, exist_ok=True)
            (place / picture.name).symlink_to(picture.resolve())


def one(name: str, folder: Path, epochs: int) -> dict:
    """Run one peer in this process."""
    import torch

    torch.set_num_threads(1)
    start, recalls = time.perf_counter(), []
    PEERS[name](folder, epochs, lambda recall: recalls.append(round(float(recall), 4)))
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return {"seconds": seconds, "recall_at_1": recalls, "peak_mb": memory / unit}


def lines_of(name: str) -> int:
    """Lines that the user writes: without blank ones, and without the bookkeeping of this file."""
    source = inspect.getsource(PEERS[name]).splitlines()[1:]
    return sum(bool(line.strip()) and "report(" not in line for line in source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=PEERS)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.folder, given.epochs)))
        return
    runs = {name: [] for name in PEERS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export(folder)
        for _ in range(given.rounds):
            for name in PEERS:
                call = [sys.executable, "-m", "tests.benchmarks.peers", "--one", name]
                call += ["--folder", str(folder), "--epochs", str(given.epochs)]
                done = subprocess.run(
                    call,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    raise SystemExit(done.stderr)
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    table = {name: summary(name, found) for name, found in runs.items()}
    facts = {"epochs": given.epochs, "rounds": given.rounds}
    facts["machine"] = f"{os.cpu_count()} CPU cores, {platform.machine()}, one thread each"
    text = json.dumps({**facts, "peers": table}, indent=1, ensure_ascii=False)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


def summary(name: str, runs: list[dict]) -> dict:
    """Medians and ranges over the rounds."""

    def spread(values: list[float]) -> dict[str, float]:
        return {
            "median": round(statistics.median(values), 2),
            "least": round(min(values), 2),
            "most": round(max(values), 2),
        }

    return {
        "seconds in all": spread([run["seconds"] for run in runs]),
        "peak memory in MB": spread([run["peak_mb"] for run in runs]),
        "Recall@1 at the end": spread([run["recall_at_1"][-1] for run in runs]),
        "lines": lines_of(name),
    }


if __name__ == "__main__":
    main()
