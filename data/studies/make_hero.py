"""Draw the picture at the top of the README: drawn birds, and the cosines of learned proxies.

    python data/studies/make_hero.py

The two runs are the quick runs of the notebooks; finished ones are read, not repeated.
"""

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from sobook import figures
from sobook.data import image_sets
from sobook.data.pictures import read_image
from sobook.losses import SO_WEIGHT
from sobook.training.config import TrainConfig
from sobook.training.loop import fit

OUT = Path(__file__).parents[1] / "results/hero.png"


def picture_of(figure: Figure) -> Image.Image:
    """The figure as pixels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return Image.open(buffer).convert("RGB")


def stack(pictures: list[Image.Image]) -> Image.Image:
    """Pictures one above the other, all as wide as the widest."""
    width = max(picture.width for picture in pictures)
    scaled = [
        picture.resize((width, picture.height * width // picture.width)) for picture in pictures
    ]
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in scaled]))


def main() -> None:
    runs = {name: fit(TrainConfig(so_weight=w)) for name, w in (("PA", 0.0), ("PA+SO", SO_WEIGHT))}
    train = image_sets.load("aviary", "train")
    birds = [np.asarray(read_image(path)) for path in train.paths[3:2000:160]]
    genera = [name.split(".")[1].rsplit("_", 1)[-1] for name in runs["PA"].state["class_names"]]
    proxies = {name: run.proxies() for name, run in runs.items()}
    page = stack(
        [
            picture_of(figures.contact_sheet(birds, columns=len(birds))),
            picture_of(figures.proxy_heatmaps(proxies, groups=genera)),
        ]
    )
    page.save(OUT, optimize=True)
    print(OUT)


if __name__ == "__main__":
    main()
