"""Rewrite what earlier versions of sobook committed: shipped runs and tables of studies.

    python data/convert_small_house.py

Nothing is trained. `label_noise` has left the settings of heads, so the keys of their runs change;
proxies lie in one file per epoch; a run names its validation and test
classes; columns have the names of `sobook.geometry`, where `common_mode_share` is 0 for proxies
whose mean cosine is not positive, and `common_share`, which follows from others, is gone.
Running it again changes nothing.
"""

import csv
import hashlib
import json
from pathlib import Path

from safetensors.torch import load_file

from sobook.course.studies import study
from sobook.data import image_sets
from sobook.files import remove, write_json, write_text
from sobook.training import config as configs
from sobook.training.run import Run, write_tensors

HERE = Path(__file__).parent
RENAMED = {"rms_cosine_centred": "rms_cosine_centered", "mean_share": "common_mode_share"}
DROPPED = ("common_share",)


def old_key(config: configs.BaseConfig) -> str:
    """The key of a head's run while `label_noise` was a setting."""
    fields = {k: v for k, v in config.to_dict().items() if k not in configs.NOT_IN_KEY}
    values = {"config": "HeadConfig", "schema": configs.SCHEMA, **fields}
    text = json.dumps({**values, "label_noise": 0.0, "content": None}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def new_keys(name: str) -> dict[str, str]:
    """Old key → new key of every run of a study, and of the study itself."""
    loaded = study.load(name)
    if loaded.trainer != "head":
        return {}
    keys = {old_key(loaded.config(varied)): key for key, varied in loaded.plan()}
    both = (keys.keys(), keys.values())
    old, new = (hashlib.sha256("".join(part).encode()).hexdigest()[:12] for part in both)
    return {**keys, old: new}


def convert_table(file: Path, keys: dict[str, str]) -> None:
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    kept = [name for name in rows[0] if name not in DROPPED]
    for row in rows:
        row["config"] = keys.get(row["config"], row["config"])
        if row.get("mean_share") and float(row["mean_cosine"]) <= 0:
            row["mean_share"] = "0.0"
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow([RENAMED.get(name, name) for name in kept])
        writer.writerows([row[name] for name in kept] for row in rows)


def convert_run(folder: Path) -> dict:
    """Returns the run's entry in the manifest."""
    packed = folder / "proxies.safetensors"
    for name, proxies in load_file(packed).items() if packed.exists() else ():
        write_tensors(folder / "proxies" / f"{name}.safetensors", {"proxies": proxies})
    remove(packed)
    run = Run.load(folder)
    train = image_sets.load(run.config.dataset, "train")
    validation = image_sets.hold_out(train, run.config.validation_fraction, run.config.seed)[1]
    test = image_sets.load(run.config.dataset, "test")
    state = run.state
    versions = state.pop("versions")
    assert not set(validation.class_names) & set(state["class_names"])
    state["validation_classes"] = list(validation.class_names)
    state["test_classes"] = list(test.class_names)
    write_json(folder / "state.json", {**state, "versions": versions})
    key = configs.run_key(run.config)
    write_json(folder / "config.json", {"run_key": key, **run.config.to_dict()})
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = [file.relative_to(folder).as_posix() for file in files]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return {"run_key": key, "sha256": dict(zip(names, digests, strict=True))}


def main() -> None:
    for file in sorted((HERE / "results").glob("*.csv")):
        if (HERE / "studies" / f"{file.stem}.toml").exists():
            keys = new_keys(file.stem)
            convert_table(file, keys)
            for other in (file.with_suffix(".json"), file.with_suffix(".md")):
                text = other.read_text(encoding="utf-8")
                for old, new in keys.items():
                    text = text.replace(old, new)
                write_text(other, text)
    runs = HERE / "quick_runs"
    write_json(runs / "manifest.json", {name: convert_run(runs / name) for name in ("pa", "pa_so")})


if __name__ == "__main__":
    main()
