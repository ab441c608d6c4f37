"""How the two runs in `data/quick_runs` are made: run this file to make them again.

They are those of notebook 00, Proxy Anchor without and with soft orthogonality, 8 epochs on the
aviary, seed 0. The notebooks open them at once; `session.fit(config, retrain=True)` trains them
anew, which a test does with one. Weights are stored in half precision, and measured as stored.

    python data/make_quick_runs.py            # about five minutes on two cores
"""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from sobook.files import write_json
from sobook.losses import SO_WEIGHT
from sobook.training.config import TrainConfig
from sobook.training.loop import evaluate_run, fit
from sobook.training.run import Run, write_tensors

HERE = Path(__file__).parent / "quick_runs"
COPIED = ("config.json", "metrics.jsonl", "state.json")


def main() -> None:
    sums = {}
    for name, so_weight in {"pa": 0.0, "pa_so": SO_WEIGHT}.items():
        run, folder = fit(TrainConfig(so_weight=so_weight)), HERE / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in COPIED:
            shutil.copy(run.path / file, folder / file)
        shutil.copytree(run.path / "proxies", folder / "proxies", dirs_exist_ok=True)
        weights = load_file(run.path / "checkpoint.safetensors")
        halves = {key: w.half() if w.dtype == torch.float32 else w for key, w in weights.items()}
        write_tensors(folder / "checkpoint.safetensors", halves)
        stored = Run(folder, run.config)
        retrieval = evaluate_run(run.config, stored.encoder())
        stored.finish(retrieval, run.retrieval["notes"])
        print(f"{name}: Recall@1 {run.retrieval['recall']['1']}, as stored {retrieval.recall[1]}")
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        digests = {
            file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
        }
        sums[name] = {"run_key": json.loads((folder / "config.json").read_text())["run_key"]}
        sums[name]["sha256"] = digests
    write_json(HERE / "manifest.json", sums)


if __name__ == "__main__":
    main()
