"""The whole training step beside a bare loop, and beside the way people do it today.

Both sides of a ratio take turns in one run, and their best times are compared.
"""

import shutil
import time

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms as T
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import default_loader

from sobook.data import image_sets
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.retrieval import evaluate
from sobook.training.config import TrainConfig
from sobook.training.loop import fit
from tests.benchmarks.test_speed_loader import repeated

SIDE, BATCH = 128, 32


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def bare_loop(classes: int, steps: int):
    """timm forward, loss, backward, step; the tensors are ready."""
    model = timm.create_model("deit_tiny_patch16_224", num_classes=0, img_size=SIDE)
    head = torch.nn.Linear(model.num_features, 128)
    loss = SoftOrthogonalProxyAnchor(classes, 128, so_weight=100)
    parameters = [p for module in (model, head, loss) for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    images = torch.randn(BATCH, 3, SIDE, SIDE)
    labels = torch.randint(classes, (BATCH,))

    def run():
        for _ in range(steps):
            value = loss(torch.nn.functional.normalize(head(model(images))), labels)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()

    return run


def take_turns(config, call) -> tuple[list[float], list[float]]:
    """Seconds of every epoch of a run, without saving and selecting, and of a call after each."""
    times = []

    def after_epoch(*_):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)

    run = fit(config, progress=False, after_epoch=after_epoch)
    return [line["seconds"] for line in run.epochs if line["epoch"]], times[1:]  # not of epoch 0


def test_step_beside_a_bare_loop(tmp_path, monkeypatch, capsys):
    """Loader, encoder, losses, optimizer and logging: at least 0.97 of the bare loop's speed."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    config = TrainConfig(
        options={"species": 16, "images_per_species": 20, "size": 192}, dim=128,
        encoder="deit_tiny_patch16_224", weights=None, image_size=SIDE, batch_size=BATCH,
        warmup_epochs=0, so_weight=100.0, selection="last", device="cpu",
        checkpoint_minutes=1e6, run_dir=tmp_path / "run", epochs=6,
    )  # fmt: skip
    ours, usual = take_turns(config, bare_loop(8, 8 * 20 // BATCH))
    ratio = min(usual) / min(ours)
    with capsys.disabled():
        print(f"\nwhole step: {ratio:.3f} of the bare loop's speed (goal 0.97)")
    assert ratio >= 0.97


class Photographs(Dataset):
    def __init__(self, image_set, transform):
        self.image_set, self.transform = image_set, transform

    def __len__(self):
        return len(self.image_set)

    def __getitem__(self, index):
        picture = default_loader(self.image_set.paths[index])
        return self.transform(picture), int(self.image_set.labels[index])


def one_split(folder):
    """Class folders as the training part of a folder with a given split, and two as its test."""
    classes = sorted(folder.iterdir())
    for part in ("train", "test"):
        (folder / part).mkdir()
    for number, one in enumerate(classes):
        if number < 2:
            shutil.copytree(one, folder / "test" / one.name)
        one.rename(folder / "train" / one.name)
    return folder


class UsualLoop:
    """pytorch-metric-learning's loss in a plain torchvision loop, same model, rates and batch."""

    def __init__(self, image_set, config):
        torch.manual_seed(config.seed)
        self.config = config
        self.encoder = Encoder.create(
            config.encoder, dim=config.dim, weights=config.weights, image_size=config.image_size
        )
        way = T.Compose(
            [
                T.RandomResizedCrop(
                    self.encoder.image_size, (config.crop_scale, 1.0),
                    interpolation=T.InterpolationMode.BICUBIC,
                ),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize(self.encoder.mean.flatten(), self.encoder.std.flatten()),
            ]
        )  # fmt: skip
        self.loader = DataLoader(
            Photographs(image_set, way), config.batch_size, shuffle=True, drop_last=True
        )
        self.loss = ProxyAnchorLoss(image_set.num_classes, config.dim, margin=0.1, alpha=32)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.encoder.backbone.parameters(), "lr": config.lr},
                {"params": self.encoder.head.parameters(), "lr": config.head_lr},
                {"params": self.loss.parameters(), "lr": config.proxy_lr},
            ],
            weight_decay=config.weight_decay,
        )
        steps = config.epochs * len(self.loader)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

        self.epochs_done = 0

    def epoch(self):
        self.encoder.train()
        self.encoder.backbone.requires_grad_(self.epochs_done >= self.config.warmup_epochs)
        self.epochs_done += 1
        for images, labels in self.loader:
            value = self.loss(self.encoder(images), labels)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), self.config.clip_norm)
            self.optimizer.step()
            self.schedule.step()


@pytest.mark.parametrize(("wide", "goal"), [(500, 1.1), (227, 1.0)])
def test_speed_beside_the_usual_way(
    wide, goal, shared_data, shared_weights, tmp_path, monkeypatch, capsys
):
    """DeiT-Tiny at 128 pixels, from epoch 2 on: images/s at least 1.1 times the usual way's.

    That is for photographs of CUB's original size, some 500 pixels wide. Of those that come cropped
    to 227 pixels, decoding is a small part of a step: not slower is all that can be asked.
    """
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    repeated(shared_data / "cub_photos", tmp_path / "photographs", wide, files=10 * BATCH)
    part = image_sets.load("folder", "train", one_split(tmp_path / "photographs"))
    sets = {"train": part, "test": image_sets.load("folder", "test", tmp_path / "photographs")}
    monkeypatch.setattr(image_sets, "load_splits", lambda *_, **__: sets)
    config = TrainConfig(
        dataset="folder", encoder="deit_tiny_patch16_224", image_size=SIDE, batch_size=BATCH,
        weights=shared_weights / "deit_tiny_patch16_224.pth", warmup_epochs=0, crop_scale=0.2,
        selection="last", device="cpu", checkpoint_minutes=1e6, run_dir=tmp_path / "run", epochs=4,
    )  # fmt: skip
    ours, theirs = take_turns(config, UsualLoop(part, config).epoch)
    ratio = min(theirs[1:]) / min(ours[1:])
    with capsys.disabled():
        print(f"\nbeside the usual way, {wide} pixels wide: {ratio:.3f} (goal {goal:g})")
    assert ratio >= goal


@pytest.mark.parametrize("seeds", [(0, 1, 2)])
def test_recall_beside_the_usual_way(seeds, tmp_path, monkeypatch, capsys):
    """Aviary, micro encoder, 4 epochs, 3 seeds: Recall@1 not lower than the usual way's.

    Both with the course's epoch of warm-up: without it the first steps of some seeds tear the
    pretrained weights (Recall@1 .445 where other seeds have .54 to .56), and three seeds then
    measure that accident.
    """
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    found = {"sobook": [], "usual": []}
    for seed in seeds:
        config = TrainConfig(
            epochs=4, warmup_epochs=1, selection="last", seed=seed, device="cpu",
            run_dir=tmp_path / f"run-{seed}",
        )  # fmt: skip
        run = fit(config, progress=False)
        found["sobook"].append(run.retrieval["recall"]["1"])
        loop = UsualLoop(image_sets.load("aviary", "train"), config)
        for _ in range(config.epochs):
            loop.epoch()
        test = image_sets.load("aviary", "test")
        embeddings = embed(loop.encoder, test, cache=False, progress=False)
        found["usual"].append(evaluate(embeddings, test.labels, ks=(1,)).recall[1])
    ours, theirs = np.mean(found["sobook"]), np.mean(found["usual"])
    with capsys.disabled():
        print(f"\nRecall@1 over {len(seeds)} seeds: sobook {ours:.3f}, usual way {theirs:.3f}")
        print({name: np.round(values, 3).tolist() for name, values in found.items()})
    assert ours >= theirs  # the goal; seeds scatter by more, so three can miss it by chance
