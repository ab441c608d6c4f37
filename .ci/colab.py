"""Refresh `colab-constraints.txt`: the versions that Google Colab publishes of what sobook needs.

    python .ci/colab.py                     # from the list that Colab publishes
    python .ci/colab.py pip-freeze.txt      # from a file or another address
    pip install -c .ci/colab-constraints.txt -e '.[notebooks,dev]'

Needs Python 3.11 or newer and nothing else. In CI it runs before every test with Colab's versions,
so that these follow Colab; the committed file says which ones were tested last.
"""

import os
import re
import sys
import urllib.request
from pathlib import Path

import tomllib

ADDRESS = "https://raw.githubusercontent.com/googlecolab/backend-info/main/pip-freeze.txt"
# What our dependencies bring along and notebooks depend on most.
BROUGHT_ALONG = ("ipython", "numba", "widgetsnbextension")
HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE / "colab-constraints.txt"


def wanted() -> set[str]:
    """Names of what sobook and its notebooks are installed with."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["notebooks"]
    return {normalized(re.match(r"[\w.-]+", line)[0]) for line in requirements} | {*BROUGHT_ALONG}


def normalized(name: str) -> str:
    """One spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints(freeze: str, names: set[str]) -> list[str]:
    """The lines of a `pip freeze` for these names, without what marks a build (``+cpu``)."""
    found = {}
    for line in freeze.splitlines():
        # name==1.2.3+cu128, or name @ https://host/name-1.2.3%2Bcu128-cp312-….whl
        match = re.match(r"([\w.-]+)(?:==| @ \S+/[\w.]+-)(\d[\w.!]*)", line)
        if match and normalized(match[1]) in names:
            found[normalized(match[1])] = match[2]
    return [f"{name}=={found[name]}" for name in sorted(found)]


def read(source: str) -> str:
    """The text at an address, or of a file."""
    if not re.match(r"https?://", source):
        return Path(source).read_text(encoding="utf-8")
    with urllib.request.urlopen(source, timeout=60) as answer:
        return answer.read().decode("utf-8")


def main(source: str = ADDRESS) -> None:
    try:
        lines = constraints(read(source), wanted())
    except (OSError, ValueError) as error:
        sys.exit(f"{source} cannot be read: {error}")
    if not any(line.startswith("torch==") for line in lines):
        sys.exit(f"{source} lists no torch: it is not what Colab installs. Nothing was changed.")
    header = f"# What Google Colab has, written by .ci/colab.py from\n# {source}"
    partial = CONSTRAINTS.with_suffix(".partial")
    partial.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    os.replace(partial, CONSTRAINTS)
    print("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:2])
