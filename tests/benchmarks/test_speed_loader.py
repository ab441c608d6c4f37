"""Training batches against torchvision's ImageFolder doing the same augmentation, side by side.

Needs the photographs of the shared folder; skips where they are absent. The goals are those of the
project: from the second epoch at least 3 times the images a second on photographs with a short side
of 256, at least 5 times on photographs of CUB's original size, and a first epoch, which decodes and
keeps the pixels, no slower than 0.8 times.
"""

import time

import pytest
import torch
from PIL import Image
from torchvision import datasets as torchvision_datasets, transforms

from sobook.data import image_sets, loader, pixels

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
            scale = enlarge_to / max(image.size)
            image.convert("RGB").resize([round(s * scale) for s in image.size]).save(
                target, quality=92
            )


def usual_loader(root):
    way = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SIZE, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    return torch.utils.data.DataLoader(
        torchvision_datasets.ImageFolder(root, way),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
    )


def seconds(loader) -> float:
    start, seen = time.perf_counter(), 0
    for batch, _ in loader:
        seen += len(batch)
    assert seen == FILES // BATCH * BATCH
    return time.perf_counter() - start


@pytest.mark.parametrize(("kind", "goal"), [("short side 256", 3.0), ("500 wide", 5.0)])
def test_loader(shared_data, tmp_path, monkeypatch, kind, goal, capsys):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    root = tmp_path / "photographs"
    repeated(shared_data / "cub_photos", root, 500 if kind == "500 wide" else None)
    classes = sorted(folder.name for folder in root.iterdir())
    paths = [path for name in classes for path in sorted((root / name).iterdir())]
    labels = [classes.index(path.parent.name) for path in paths]
    everything = image_sets.ImageSet(tuple(paths), labels, tuple(classes), "photographs", "train")

    def ours(epoch):
        batches = loader.TrainingBatches(
            source, everything.labels, image_size=SIZE, batch_size=BATCH, epoch=epoch
        )
        return loader.training_loader(batches, workers=WORKERS)

    usual = usual_loader(root)
    seconds(usual)  # the files are in memory for both
    start = time.perf_counter()
    source = pixels.decode(everything, round(SIZE * 1.5), enlarge=False, progress=False)
    first_epoch = time.perf_counter() - start + seconds(ours(0))
    pairs = [(seconds(usual), seconds(ours(epoch))) for epoch in (1, 2, 3)]
    usual_best, ours_best = (min(times) for times in zip(*pairs, strict=True))
    later, begin = usual_best / ours_best, usual_best / first_epoch
    with capsys.disabled():
        print(
            f"\n{kind}: from the second epoch {later:.2f} times ImageFolder (goal {goal:g}), "
            f"first epoch {begin:.2f} times (goal 0.8); {FILES / ours_best:.0f} images/s"
        )
    assert later >= goal
    assert begin >= 0.8
