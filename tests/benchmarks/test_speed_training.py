"""The whole training step beside a bare loop, and beside the way people do it today.

Both sides of a ratio take turns in one run, and their best times are compared.
"""

import dataclasses

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
from tests.benchmarks import timing
from tests.benchmarks.test_speed_loader import augmentation, image_set_of, repeated

SIDE, BATCH = 128, 32
DEIT_TINY = {"encoder": "deit_tiny_patch16_224", "image_size": SIDE, "batch_size": BATCH}
ALONE = {"selection": "last", "device": "cpu", "checkpoint_minutes": 1e6}  # no more than steps


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
    run = fit(config, progress=False, after_epoch=lambda *_: times.append(timing.seconds(call)))
    return [line["seconds"] for line in run.epochs if line["epoch"]], times[1:]  # not of epoch 0


def test_step_beside_a_bare_loop(tmp_path, monkeypatch, capsys):
    """Loader, encoder, losses, optimizer and logging: at least 0.97 of the bare loop's speed."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    aviary = {"species": 16, "images_per_species": 20, "size": 192}
    rest = {"dim": 128, "weights": None, "warmup_epochs": 0, "so_weight": 100.0, "epochs": 6}
    config = TrainConfig(options=aviary, run_dir=tmp_path / "run", **DEIT_TINY, **ALONE, **rest)
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


class UsualLoop:
    """pytorch-metric-learning's loss in a plain torchvision loop, same model, rates and batch."""

    def __init__(self, image_set, config):
        torch.manual_seed(config.seed)
        self.config = config
        self.encoder = Encoder.create(
            config.encoder, dim=config.dim, weights=config.weights, image_size=config.image_size
        )
        normalize = T.Normalize(self.encoder.mean.flatten(), self.encoder.std.flatten())
        way = augmentation(self.encoder.image_size, config.crop_scale, T.ToTensor(), normalize)
        pictures = Photographs(image_set, way)
        self.loader = DataLoader(pictures, config.batch_size, shuffle=True, drop_last=True)
        self.loss = ProxyAnchorLoss(image_set.num_classes, config.dim, margin=0.1, alpha=32)
        rates = {self.encoder.backbone: config.lr, self.encoder.head: config.head_lr}
        rates[self.loss] = config.proxy_lr
        groups = [{"params": part.parameters(), "lr": rate} for part, rate in rates.items()]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
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
    train = image_set_of(tmp_path / "photographs")
    test = train.subset(np.flatnonzero(train.labels < 2))
    sets = {"train": train, "test": dataclasses.replace(test, split="test")}
    monkeypatch.setattr(image_sets, "load_splits", lambda *_, **__: sets)
    weights = shared_weights / "deit_tiny_patch16_224.pth"
    rest = {"weights": weights, "warmup_epochs": 0, "crop_scale": 0.2, "epochs": 4}
    config = TrainConfig("folder", run_dir=tmp_path / "run", **DEIT_TINY, **ALONE, **rest)
    ours, theirs = take_turns(config, UsualLoop(train, config).epoch)
    ratio = min(theirs[1:]) / min(ours[1:])
    with capsys.disabled():
        print(f"\nbeside the usual way, {wide} pixels wide: {ratio:.3f} (goal {goal:g})")
    assert ratio >= goal


def test_recall_beside_the_usual_way(tmp_path, monkeypatch, capsys):
    """Aviary, micro encoder, 4 epochs, 3 seeds: Recall@1 not lower than the usual way's.

    Both with the course's epoch of warm-up: without it the first steps of some seeds tear the
    pretrained weights (Recall@1 .445 where other seeds have .54 to .56), and three seeds then
    measure that accident.
    """
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    ours, theirs = [], []
    for seed in range(3):
        rest = {"epochs": 4, "warmup_epochs": 1, "selection": "last", "seed": seed, "device": "cpu"}
        config = TrainConfig(run_dir=tmp_path / f"run-{seed}", **rest)
        ours.append(fit(config, progress=False).retrieval["recall"]["1"])
        loop = UsualLoop(image_sets.load("aviary", "train"), config)
        for _ in range(config.epochs):
            loop.epoch()
        test = image_sets.load("aviary", "test")
        embeddings = embed(loop.encoder, test, cache=False, progress=False)
        theirs.append(evaluate(embeddings, test.labels, ks=(1,)).recall[1])
    with capsys.disabled():
        print(f"\nRecall@1 of three seeds: {np.round(ours, 3)}, usual way {np.round(theirs, 3)}")
    assert np.mean(ours) >= np.mean(theirs)  # seeds scatter by more: three can miss it by chance
