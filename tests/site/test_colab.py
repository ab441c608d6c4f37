"""The cells of the page on Colab: what of them can be tried without it."""

import io
import re
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest

import sobook
from sobook import cli

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/colab.md").read_text(encoding="utf-8")
CELLS = re.findall(r"(?s)```python\n(.*?)```", PAGE)
COMMANDS = [line[1:] for cell in CELLS for line in cell.splitlines() if line.startswith("!")]


def test_the_release_is_installed_and_no_other():
    assert set(re.findall(r"/sobook/sobook(?:@|/)(v[\d.]+)", PAGE)) == {f"v{sobook.__version__}"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_the_options_it_is_given(command, capsys):
    program, name, *words = command.replace("{settings}", "--recipe x --precision y").split()
    assert program == "sobook" and name in cli.COMMANDS
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    offered = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    assert {word for word in words if word.startswith("--")} <= offered


def test_cells_are_python():
    for cell in CELLS:
        compile(re.sub(r"(?m)^[!%].*", "pass", cell), "cell", "exec")


def test_what_differs_from_the_tested_versions_is_said_and_no_more(monkeypatch, capsys):
    numpy, torch = metadata.version("numpy"), metadata.version("torch").split("+")[0]
    text = f"# a\nnumpy=={numpy}\ntorch==0.1\nhuggingface-hub==0.1\nnot-installed-here==1\n"

    def answer(address):
        assert address.endswith(f"v{sobook.__version__}/.ci/colab-constraints.txt")
        return io.BytesIO(text.encode())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    (cell,) = (cell for cell in CELLS if "urlopen" in cell)
    exec(cell, {})  # noqa: S102
    hub = metadata.version("huggingface_hub")
    assert capsys.readouterr().out.splitlines() == [
        f"torch: {torch} here, tested with 0.1",
        f"huggingface-hub: {hub} here, tested with 0.1",
    ]
