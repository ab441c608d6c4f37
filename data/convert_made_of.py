"""Write into the shipped runs what they were made of, as `sobook.fit` does for every new run.

    python data/convert_made_of.py

Nothing is trained: pictures and weights are those that the settings name. Running it again changes
nothing.
"""

import hashlib
import json
from pathlib import Path

from sobook.encoder import Encoder, weights_digest
from sobook.files import write_json
from sobook.training.config import pictures_digest
from sobook.training.run import Run

RUNS = Path(__file__).parent / "quick_runs"


def main() -> None:
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
