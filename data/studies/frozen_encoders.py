"""Write data/results/frozen_encoders.csv: Recall@1 of encoders before any training.

CUB_58_42=... DEIT_TINY=... python data/studies/frozen_encoders.py
"""

import os
from pathlib import Path

import pandas as pd

import sobook
from sobook import files

RESULTS = Path(__file__).parents[1] / "results"
AVIARY, GENUS = {"name": "aviary"}, {"name": "aviary", "split_by_genus": 1}
CUB = {"name": "cub200", "root": os.environ["CUB_58_42"], "allow_partial": True}
MICRO = {"name": "deit_micro_patch8_64"}
TINY = {"name": "deit_tiny_patch16_224", "weights": os.environ["DEIT_TINY"]}
# data set, its options, encoder, its options
ROWS = [
    ("aviary", AVIARY, "micro DeiT, random", MICRO | {"weights": None}),
    ("aviary", AVIARY, "micro DeiT", MICRO),
    ("aviary", AVIARY, "DeiT-Tiny, 128 px", TINY | {"image_size": 128}),
    ("aviary by genus", GENUS, "micro DeiT", MICRO),
    ("CUB-58/42", CUB, "DeiT-Tiny, random, 128 px", TINY | {"image_size": 128, "weights": None}),
    ("CUB-58/42", CUB, "DeiT-Tiny, 128 px", TINY | {"image_size": 128}),
    ("CUB-58/42", CUB, "DeiT-Tiny, 224 px", TINY),
]


def main() -> None:
    table = []
    for dataset, options, encoder, settings in ROWS:
        images = sobook.load(split="test", **options)
        model = sobook.Encoder.create(**settings).eval()
        result = sobook.evaluate(sobook.embed(model, images), images.labels)
        low, high = result.interval(1)  # over classes
        row = {"dataset": dataset, "encoder": encoder, "dim": model.dim, "test_images": len(images)}
        row |= {f"recall_at_{k}": round(value, 6) for k, value in result.recall.items()}
        table.append(row | {"low": round(low, 6), "high": round(high, 6)})
        print(table[-1])
    with files.replacing(RESULTS / "frozen_encoders.csv") as partial:
        pd.DataFrame(table).to_csv(partial, index=False)


if __name__ == "__main__":
    main()
