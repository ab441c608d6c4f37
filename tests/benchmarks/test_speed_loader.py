"""Training batches against torchvision's ImageFolder doing the same augmentation, side by side.

Needs the photographs of the shared folder; skips where they are absent. The goals are those of the
project: from the second epoch at least 3 times the images a second on photographs with a short side
of 256, at least 5 times on photographs of CUB's original size, and a first epoch, which decodes and
keeps the pixels, no slower than 0.8 times.
"""

import time
from functools import partial

import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from sobook.data import image_sets, loader, pixels
from tests.benchmarks import timing

WORKERS, BATCH, SIZE, FILES = 2, 90, 224, 3000


def repeated(photographs, root, enlarge_to=None, files=FILES) -> None:
    """So many photographs in class folders: links, or copies of that width."""
    found = sorted(photographs.rglob("*.jpg"))
    for number in range(files):
        source = found[number % len(found)]
        target = root / source.parent.name / f"{number // len(found)}_{source.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if enlarge_to is None:
            target.symlink_to(source)
            continue
        with Image.open(source) as image:
            size = [round(side * enlarge_to / max(image.size)) for side in image.size]
            image.convert("RGB").resize(size).save(target, quality=92)


def image_set_of(root) -> image_sets.ImageSet:
    """All pictures in the class folders, as one training set."""
    classes = tuple(sorted(folder.name for folder in root.iterdir()))
    paths = tuple(path for name in classes for path in sorted((root / name).iterdir()))
    labels = [classes.index(path.parent.name) for path in paths]
    return image_sets.ImageSet(paths, labels, classes, "photographs", "train")


def augmentation(size: int, crop_scale: float, *last):
    mode = transforms.InterpolationMode.BICUBIC
    crop = transforms.RandomResizedCrop(size, (crop_scale, 1.0), interpolation=mode)
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), *last])


def usual_loader(root):
    pictures = ImageFolder(root, augmentation(SIZE, 0.2, transforms.PILToTensor()))
    options = {"shuffle": True, "drop_last": True, "num_workers": WORKERS}
    return torch.utils.data.DataLoader(pictures, BATCH, **options)


def an_epoch(batches) -> None:
    assert sum(len(batch) for batch, _ in batches) == FILES // BATCH * BATCH


@pytest.mark.parametrize(("kind", "goal"), [("short side 256", 3.0), ("500 wide", 5.0)])
def test_loader(shared_data, tmp_path, monkeypatch, kind, goal, capsys):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    root = tmp_path / "photographs"
    repeated(shared_data / "cub_photos", root, 500 if kind == "500 wide" else None)
    everything = image_set_of(root)

    def ours(epoch):
        settings = {"image_size": SIZE, "batch_size": BATCH, "epoch": epoch}
        batches = loader.TrainingBatches(source, everything.labels, **settings)
        an_epoch(loader.training_loader(batches, workers=WORKERS))

    usual = usual_loader(root)
    an_epoch(usual)  # the files are in memory for both
    start = time.perf_counter()
    source = pixels.decode(everything, round(SIZE * 1.5), enlarge=False, progress=False)
    ours(0)
    first_epoch = time.perf_counter() - start
    calls = {"usual": partial(an_epoch, usual), "ours": partial(ours, 1)}
    usual_best, ours_best = map(min, timing.take_turns(calls, 3).values())
    later, begin = usual_best / ours_best, usual_best / first_epoch
    with capsys.disabled():
        print(
            f"\n{kind}: from the second epoch {later:.2f} times ImageFolder (goal {goal:g}), ",
            end="",
        )
        print(f"first {begin:.2f} times (goal 0.8); {FILES / ours_best:.0f} images/s")
    assert later >= goal and begin >= 0.8
