"""The same training with sobook and with three loops that users write otherwise, one process each.

    python -m tests.benchmarks.peers aviary
    CUB_58_42=… DEIT_TINY=… python -m tests.benchmarks.peers cub_58_42

All fine-tune the same encoder with Proxy Anchor, with the same rates, batches, schedule and number
of epochs, and evaluate the test classes after each epoch. sobook keeps the pictures decoded, the
others read them as their libraries do. Rounds are interleaved. Measured: seconds in all (imports,
reading and evaluation included), seconds until Recall@1 first reaches two targets, the largest
resident memory, Recall@1 at the end, and the lines that a user writes.

open-metric-learning needs an older NumPy than sobook's development environment has: install it with
omegaconf, sobook and pytorch-metric-learning into an environment of its own, and run all of them
there. A peer that is not installed is left out.
"""

import importlib.util
import inspect
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import timing

DIM, SEED, PROXIES_ONLY = 128, 0, 1  # PROXIES_ONLY: epochs before the encoder moves


@dataclass(frozen=True)
class Data:
    """Pictures, and what is trained on them."""

    load: dict[str, Any]  # of sobook.data.image_sets.load, with `name`
    encoder: str
    weights: str
    side: int
    batch: int
    lr: float
    head_lr: float
    proxy_lr: float
    epochs: int
    targets: tuple[float, ...]  # of Recall@1


def data(name: str) -> Data:
    import sobook.course.aviary.micro_deit  # noqa: F401  (registers the encoder with timm)
    from sobook import files

    if name == "aviary":
        micro = str(files.shipped("deit_micro_patch8_64.safetensors"))
        rates = {"lr": 1e-3, "head_lr": 5e-3, "proxy_lr": 0.1, "epochs": 4, "targets": (0.5, 0.55)}
        return Data({"name": name}, "deit_micro_patch8_64", micro, 64, 40, **rates)
    photographs = {"name": "cub200", "root": os.environ["CUB_58_42"], "allow_partial": True}
    rates = {"lr": 1e-4, "head_lr": 1e-3, "proxy_lr": 0.03, "epochs": 2, "targets": (0.5, 0.7)}
    deit, weights = "deit_tiny_patch16_224", os.environ["DEIT_TINY"]
    return Data(photographs, deit, weights, 128, 56, **rates)


def with_sobook(d: Data, folder: Path, report) -> None:
    from sobook import Run, fit
    from sobook.training.config import TrainConfig

    load, rates = dict(d.load), {"lr": d.lr, "head_lr": d.head_lr, "proxy_lr": d.proxy_lr}
    model = {"encoder": d.encoder, "weights": d.weights, "image_size": d.side, "dim": DIM}
    training = {"epochs": d.epochs, "batch_size": d.batch, "warmup_epochs": PROXIES_ONLY}
    scored = {"selection": "test", "validation_fraction": 0, "seed": SEED}
    config = TrainConfig(load.pop("name"), **load, **model, **training, **rates, **scored)
    config = config.replace(run_dir=str(folder / f"run{os.getpid()}"))

    def after_epoch(epoch, _):  # report(0): only to know when
        if epoch:  # report(0)
            report(Run.load(config.run_dir).epochs[-1]["recall_at_1"])

    fit(config, progress=False, after_epoch=after_epoch)


def trunk_and_head(d: Data):
    import timm
    from torch import nn

    overlay = {"file": d.weights, "num_classes": 1000}
    options = {"num_classes": 0, "img_size": d.side, "pretrained_cfg_overlay": overlay}
    trunk = timm.create_model(d.encoder, pretrained=True, **options)
    norm = nn.LayerNorm(trunk.num_features, elementwise_affine=False)
    return trunk, nn.Sequential(norm, nn.Linear(trunk.num_features, DIM))


def transforms_of(side: int):
    from torchvision import transforms as t

    last = [t.ToTensor(), t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    crop = t.RandomResizedCrop(side, scale=(0.4, 1))
    augment = t.Compose([crop, t.RandomHorizontalFlip(), *last])
    return augment, t.Compose([t.Resize(round(side / 0.875)), t.CenterCrop(side), *last])


def optimizer_and_schedule(d: Data, trunk, head, loss, steps: int):
    import torch

    rates = {trunk: d.lr, head: d.head_lr, loss: d.proxy_lr}
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, d.epochs * steps)


def with_pytorch_metric_learning(d: Data, folder: Path, report) -> None:
    import torch
    from pytorch_metric_learning.losses import ProxyAnchorLoss
    from pytorch_metric_learning.testers import BaseTester
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from torchvision import datasets

    torch.manual_seed(SEED)
    augment, plain = transforms_of(d.side)
    train = datasets.ImageFolder(str(folder / "train"), augment)
    test = datasets.ImageFolder(str(folder / "test"), plain)
    loader = torch.utils.data.DataLoader(train, d.batch, shuffle=True, drop_last=True)
    trunk, head = trunk_and_head(d)
    loss = ProxyAnchorLoss(len(train.classes), DIM, margin=0.1, alpha=32)
    optimizer, schedule = optimizer_and_schedule(d, trunk, head, loss, len(loader))
    tester = BaseTester(batch_size=d.batch, dataloader_num_workers=0)
    calculator = AccuracyCalculator(include=("precision_at_1",), k=1)
    for epoch in range(d.epochs):
        trunk.train().requires_grad_(epoch >= PROXIES_ONLY)
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


def with_open_metric_learning(d: Data, folder: Path, report) -> None:
    import pandas as pd
    import torch
    from oml.datasets import ImageLabeledDataset, ImageQueryGalleryLabeledDataset
    from oml.inference import inference
    from oml.interfaces.models import IExtractor
    from oml.metrics import calc_retrieval_metrics_rr
    from oml.retrieval import RetrievalResults
    from pytorch_metric_learning.losses import ProxyAnchorLoss

    class Extractor(IExtractor):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = trunk_and_head(d)

        def forward(self, images):
            return torch.nn.functional.normalize(self.head(self.trunk(images)))

        @property
        def feat_dim(self):
            return DIM

    def table(split):
        paths = sorted((folder / split).glob("*/*"))
        labels = pd.factorize(pd.Series([path.parent.name for path in paths]))[0]
        both = {"is_query": True, "is_gallery": True}
        return pd.DataFrame({"path": [*map(str, paths)], "label": labels, **both})

    torch.manual_seed(SEED)
    augment, plain = transforms_of(d.side)
    train = ImageLabeledDataset(table("train"), transform=augment)
    test = ImageQueryGalleryLabeledDataset(table("test"), transform=plain)
    loader = torch.utils.data.DataLoader(train, d.batch, shuffle=True, drop_last=True)
    model = Extractor()
    loss = ProxyAnchorLoss(train.get_labels().max() + 1, DIM, margin=0.1, alpha=32)
    trunk, head = model.trunk, model.head
    optimizer, schedule = optimizer_and_schedule(d, trunk, head, loss, len(loader))
    for epoch in range(d.epochs):
        model.train()
        trunk.requires_grad_(epoch >= PROXIES_ONLY)
        for batch in loader:
            optimizer.zero_grad()
            loss(model(batch["input_tensors"]), batch["labels"]).backward()
            optimizer.step()
            schedule.step()
        embeddings = inference(model.eval(), test, batch_size=d.batch, num_workers=0, verbose=False)
        results = RetrievalResults.from_embeddings(embeddings, test, n_items=1)
        found = calc_retrieval_metrics_rr(results, cmc_top_k=(1,), precision_top_k=(), map_top_k=())
        report(found["cmc"][1])


def with_timm(d: Data, folder: Path, report) -> None:
    import torch
    import torch.nn.functional as F
    from timm.data import create_dataset, create_loader
    from torch import nn

    torch.manual_seed(SEED)
    size = {"input_size": (3, d.side, d.side), "use_prefetcher": False, "num_workers": 0}
    train = create_dataset("", folder / "train")
    test = create_dataset("", folder / "test")
    crop = {"scale": (0.4, 1), "ratio": (3 / 4, 4 / 3), "hflip": 0.5, "color_jitter": None}
    loader = create_loader(train, batch_size=d.batch, is_training=True, **crop, **size)
    queries = create_loader(test, batch_size=d.batch, is_training=False, crop_pct=0.875, **size)
    trunk, head = trunk_and_head(d)

    class ProxyAnchor(nn.Module):
        def __init__(self, classes, scale=32, margin=0.1):
            super().__init__()
            self.scale, self.margin = scale, margin
            self.proxies = nn.Parameter(torch.empty(classes, DIM))
            nn.init.kaiming_normal_(self.proxies, mode="fan_out")

        def forward(self, embeddings, labels):
            cosines = F.normalize(embeddings) @ F.normalize(self.proxies).T
            own = F.one_hot(labels, len(self.proxies)).bool()
            pull = (-self.scale * (cosines - self.margin)).exp().where(own, 0).sum(0)
            push = (self.scale * (cosines + self.margin)).exp().where(~own, 0).sum(0)
            return pull.log1p().sum() / own.any(0).sum() + push.log1p().mean()

    loss = ProxyAnchor(len(train.reader.class_to_idx))
    optimizer, schedule = optimizer_and_schedule(d, trunk, head, loss, len(loader))
    for epoch in range(d.epochs):
        trunk.train().requires_grad_(epoch >= PROXIES_ONLY)
        for images, labels in loader:
            optimizer.zero_grad()
            loss(head(trunk(images)), labels).backward()
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
    "open-metric-learning": with_open_metric_learning,
    "timm, loss by hand": with_timm,
}
SHARED = (trunk_and_head, transforms_of, optimizer_and_schedule)  # which all but sobook need


def export(d: Data, folder: Path) -> dict[str, int]:
    """Two folders with one subfolder per class: links to the pictures; how many there are."""
    from sobook.data import image_sets

    load, counts = dict(d.load), {}
    name = load.pop("name")
    if name == "aviary":
        image_sets.prepare(name, progress=False)
    for split in ("train", "test"):
        paths = [*map(Path, image_sets.load(name, split, **load).paths)]
        counts[split] = len(paths)
        for picture in paths:
            place = folder / split / picture.parent.name
            place.mkdir(parents=True, exist_ok=True)
            (place / picture.name).symlink_to(picture.resolve())
    return counts


def one(name: str, which: str, folder: Path, threads: int) -> dict[str, Any]:
    """Run one peer in this process."""
    start = time.perf_counter()
    import torch

    torch.set_num_threads(threads)
    epochs: list[tuple[float, float]] = []

    def report(recall) -> None:
        epochs.append((time.perf_counter() - start, round(float(recall), 4)))

    PEERS[name](data(which), folder, report)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return {"seconds": seconds, "epochs": epochs, "peak_mb": memory / unit}


def lines_of(name: str) -> int:
    """Lines that the user writes: without blank ones, and without the bookkeeping of this file."""
    parts = [PEERS[name]] if name == "sobook" else [PEERS[name], *SHARED]
    source = [line for part in parts for line in inspect.getsource(part).splitlines()[1:]]
    return sum(bool(line.strip()) and "report(" not in line for line in source)


def main() -> None:
    parser = timing.parser(__doc__)
    parser.add_argument("which", choices=("aviary", "cub_58_42"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=PEERS)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.which, given.folder, given.threads)))
        return
    runs: dict[str, list[dict]] = {name: [] for name in PEERS}
    if importlib.util.find_spec("oml") is None:
        print("open-metric-learning is not installed, and left out", file=sys.stderr)
        del runs["open-metric-learning"]
    d = data(given.which)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        counts = export(d, folder)
        for _ in range(given.rounds):
            for name in runs:
                call = [sys.executable, "-m", "tests.benchmarks.peers", given.which, "--one", name]
                call += ["--folder", str(folder), "--threads", str(given.threads)]
                environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
                done = subprocess.run(call, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr)
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(name, runs[name][-1], file=sys.stderr)
    table = {name: summary(name, found, d, counts) for name, found in runs.items()}
    facts = {"data": given.which, "encoder": d.encoder, "side": d.side, **counts}
    facts |= {"epochs": d.epochs, "rounds": given.rounds, "targets": d.targets}
    facts["machine"] = timing.machine(f"{given.threads} threads")
    print(table)
    timing.write(given.out / f"peers_{given.which}.json", {**facts, "peers": table})


def summary(name: str, runs: list[dict], d: Data, counts: dict[str, int]) -> dict[str, Any]:
    """Medians and ranges over the rounds."""

    def seconds_to(target: float) -> dict[str, float] | None:
        reached = [next((at for at, got in run["epochs"] if got >= target), None) for run in runs]
        return timing.spread(reached, 2) if all(reached) else None

    seconds = [run["seconds"] for run in runs]
    speeds = [counts["train"] * d.epochs / each for each in seconds]
    return {
        "seconds in all": timing.spread(seconds, 2),
        "training images per second": timing.spread(speeds, 2),
        **{f"seconds to Recall@1 {target}": seconds_to(target) for target in d.targets},
        "peak memory in MB": timing.spread([run["peak_mb"] for run in runs], 2),
        "Recall@1 at the end": timing.spread([run["epochs"][-1][1] for run in runs], 2),
        "lines": lines_of(name),
    }


if __name__ == "__main__":
    main()
