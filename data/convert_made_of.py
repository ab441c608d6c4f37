"""Bring what earlier versions committed up to date: shipped runs, and the keys of heads.

    python data/convert_made_of.py

Nothing is trained. Shipped runs get the digests of what they were made of, as `sobook.fit` writes
them for every new run: pictures and weights are those that their settings name. Heads have one more
setting, `head_bias`, so the keys of their runs change. Running it again changes nothing.
"""

import hashlib
import json
from pathlib import Path

from sobook.course.studies import study
from sobook.encoder import Encoder, weights_digest
from sobook.files import write_json, write_text
from sobook.training.config import NOT_IN_KEY, SCHEMA, BaseConfig, pictures_digest
from sobook.training.run import Run

HERE = Path(__file__).parent
RUNS = HERE / "quick_runs"


def old_key(config: BaseConfig) -> str:
    """The key of a head's run before `head_bias` was a setting."""
    fields = {k: v for k, v in config.to_dict().items() if k not in {*NOT_IN_KEY, "head_bias"}}
    values = {"config": "HeadConfig", "schema": SCHEMA, **fields, "content": None}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def convert_keys(name: str) -> None:
    """Old key → new key of every run of a study, and of the study itself, in its results."""
    loaded = study.load(name)
    if loaded.trainer != "head":
        return
    keys = {old_key(loaded.config(varied)): key for key, varied in loaded.plan()}
    both = (keys.keys(), keys.values())
    old, new = (hashlib.sha256("".join(part).encode()).hexdigest()[:12] for part in both)
    for file in (HERE / "results" / f"{name}.{suffix}" for suffix in ("csv", "json", "md")):
        text = file.read_text(encoding="utf-8")
        for before, after in {**keys, old: new}.items():
            text = text.replace(before, after)
        write_text(file, text)


def main() -> None:
    for file in sorted((HERE / "studies").glob("*.toml")):
        if (HERE / "results" / f"{file.stem}.csv").exists():
            convert_keys(file.stem)
    manifest = json.loads((RUNS / "manifest.json").read_text(encoding="utf-8"))
    for name in manifest:
        run = Run.load(RUNS / name)
        encoder = Encoder.create(run.config.encoder, dim=None, **run.config.encoder_options)
        made_of = {
            "pictures": pictures_digest(run.sets),
            "weights": weights_digest(encoder.backbone),
        }
        file = RUNS / name / "state.json"
        state = run.state
        state.pop("made_of", None)
        versions = state.pop("versions")
        write_json(file, {**state, "made_of": made_of, "versions": versions})
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        manifest[name]["sha256"]["state.json"] = digest
    write_json(RUNS / "manifest.json", manifest)


if __name__ == "__main__":
    main()
