"""How the weights of `deit_micro_patch8_64` are made: run this file to make them again.

The encoder is trained to tell apart the genera of drawn species of the aviary with seed 1, none of
which occurs in the tutorial's aviary (seed 0; a test compares the signatures). Genera, not
species: as with a backbone trained on ImageNet, the labels are coarser than the task of the course,
so that its features are good and fine-tuning still has something to teach. As in DeiT, the class
token and the distillation token each have a classifier of their own; here both learn from labels,
where DeiT gives the second the predictions of a teacher (why: see the data card). The classifiers
are thrown away.

    python data/make_deit_micro.py            # about five minutes on two cores

Progress is judged on yet other species (seed 2). The tutorial's species are looked at once, at the
end.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from sobook.course.aviary import micro_deit
from sobook.data import image_sets, loader, pixels
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.retrieval import evaluate
from sobook.training.trainer import learning_rate_factor

HERE = Path(__file__).parent


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--species", type=int, default=200)
    parser.add_argument("--images", type=int, default=40, help="images per species")
    parser.add_argument("--labels", choices=("genus", "species"), default="genus")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--crop-scale", type=float, default=0.35)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / micro_deit.WEIGHTS)
    return parser.parse_args()


def whole_aviary(species: int, images_per_species: int, seed: int) -> image_sets.ImageSet:
    """Both halves of an aviary as one set: here no class is kept back."""
    options = {"species": species, "images_per_species": images_per_species, "seed": seed}
    train, test = (image_sets.load("aviary", split, **options) for split in ("train", "test"))
    return image_sets.ImageSet(
        paths=(*train.paths, *test.paths),
        labels=np.concatenate([train.labels, test.labels + train.num_classes]),
        class_names=(*train.class_names, *test.class_names),
        name="aviary",
        split="pretraining",
    )


def by_genus(image_set: image_sets.ImageSet) -> image_sets.ImageSet:
    """The same images, labeled by genus: the last word of a species' name."""
    genera = [name.rsplit("_", 1)[-1] for name in image_set.class_names]
    names, numbers = np.unique(genera, return_inverse=True)
    labels = numbers[image_set.labels].astype(np.int64)
    return dataclasses.replace(image_set, labels=labels, class_names=tuple(names.tolist()))


def frozen_recall(backbone: torch.nn.Module, image_set: image_sets.ImageSet) -> float:
    """Recall@1 of the backbone's features."""
    encoder = Encoder(backbone, micro_deit.NAME, None, 64, None)
    found = embed(encoder, image_set, cache=False, progress=False)
    return evaluate(found, image_set.labels, ks=(1,)).recall[1]


def train(args, image_set, judge) -> None:
    torch.manual_seed(args.seed)
    model = timm.create_model(
        micro_deit.NAME, num_classes=image_set.num_classes, drop_path_rate=0.05
    )
    model.set_distilled_training(True)  # forward gives the logits of both tokens
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=args.weight_decay)
    source = pixels.decode(image_set, 96, enlarge=False)
    normalize = Encoder(model, micro_deit.NAME, None, 64, None).normalize
    step, total, started = 0, args.epochs * (len(image_set) // args.batch_size), time.time()
    for epoch in range(1, args.epochs + 1):
        model.train()
        batches = loader.TrainingBatches(
            source,
            image_set.labels,
            image_size=64,
            batch_size=args.batch_size,
            crop_scale=args.crop_scale,
            seed=args.seed,
            epoch=epoch,
        )
        losses = []
        for batch, labels in loader.training_loader(batches):
            warm = min(1.0, (step + 1) / 100)
            factor = warm * learning_rate_factor(step, total, "cosine")
            for group in optimizer.param_groups:
                group["lr"] = args.lr * factor
            logits = model(normalize(batch))
            loss = sum(F.cross_entropy(x, labels, label_smoothing=0.1) for x in logits) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            step += 1
        backbone = backbone_of(model)
        save(backbone, args.out)  # after every epoch, so that a stopped run leaves its last one
        recall = frozen_recall(backbone, judge)
        print(
            f"epoch {epoch}: loss {np.mean(losses):.3f}, Recall@1 on seed 2 {recall:.3f}, "
            f"{time.time() - started:.0f} s",
            flush=True,
        )


def save(backbone: torch.nn.Module, file: Path) -> None:
    half = {key: value.half().contiguous() for key, value in backbone.state_dict().items()}
    save_file(half, file)


def backbone_of(model: torch.nn.Module) -> torch.nn.Module:
    """A copy without the classifiers."""
    backbone = timm.create_model(micro_deit.NAME, num_classes=0)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("head")}
    backbone.load_state_dict(state)
    return backbone


def main() -> None:
    args = parse()
    image_set = whole_aviary(args.species, args.images, seed=1)
    if args.labels == "genus":
        image_set = by_genus(image_set)
    train(args, image_set, whole_aviary(40, 20, seed=2))
    test = image_sets.load("aviary", "test")
    result = frozen_recall(Encoder.create(micro_deit.NAME, weights=args.out).backbone, test)
    print(json.dumps({"frozen_recall_at_1_on_test_species": round(result, 4)}))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
