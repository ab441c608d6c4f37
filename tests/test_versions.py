"""Which versions of other packages sobook takes, and what Colab has of them."""

import http.server
import importlib.util
import re
import threading
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
tomllib = pytest.importorskip("tomllib")  # Python 3.11

FREEZE = """\
# Do not modify this file directly
absl-py==1.4.0
huggingface_hub==0.36.0
google-colab @ file:///colabtools/dist/google_colab-1.0.0.tar.gz
jax==0.7.2
numpy==2.0.2
scikit-learn==1.6.1
scikit-image==0.25.2
torch==2.9.0+cpu
torchao==0.10.0
torchvision @ https://host/whl/cu118/torchvision-0.24.0%2Bcu118-cp310-cp310-linux_x86_64.whl#sha256=a
"""
EXPECTED = [
    "huggingface-hub==0.36.0",
    "numpy==2.0.2",
    "scikit-learn==1.6.1",
    "torch==2.9.0",
    "torchvision==0.24.0",
]


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """The script, which writes into a folder of this test."""
    if not (ROOT / ".ci/colab.py").exists():
        pytest.skip("not in a checkout")
    spec = importlib.util.spec_from_file_location("colab", ROOT / ".ci/colab.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "CONSTRAINTS", tmp_path / "colab-constraints.txt")
    return script


@pytest.fixture
def serve():
    """Serve a text on this machine; its address."""
    servers = []

    def start(text: str, status: int = 200) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/pip-freeze.txt"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in project["dependencies"] + [x for e in extras for x in e]]


def test_colabs_versions_are_read_from_the_list_that_it_publishes(colab, serve, capsys):
    address = serve(FREEZE)
    colab.main(address)
    lines = colab.CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == EXPECTED
    assert address in lines[1]  # says where it is from
    assert capsys.readouterr().out.splitlines() == EXPECTED
    assert [file.name for file in colab.CONSTRAINTS.parent.iterdir()] == ["colab-constraints.txt"]


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("<html>Sign in</html>", 200, "lists no torch"),
        ("", 200, "lists no torch"),
        (FREEZE, 404, "cannot be read: HTTP Error 404"),
    ],
)
def test_what_is_no_list_changes_nothing(colab, serve, text, status, message):
    colab.CONSTRAINTS.write_text("torch==2.9.0\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=message):
        colab.main(serve(text, status))
    assert colab.CONSTRAINTS.read_text(encoding="utf-8") == "torch==2.9.0\n"


def test_an_installation_on_colab_upgrades_nothing():
    """What Colab has satisfies every lower bound, so pip leaves it as it is."""
    lines = (ROOT / ".ci/colab-constraints.txt").read_text(encoding="utf-8").splitlines()
    colabs = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {"torch", "torchvision", "timm", "numpy", "pandas", "pillow"} <= set(colabs)
    for requirement in requirements():
        if version := colabs.get(re.sub(r"[-_.]+", "-", requirement.name).lower()):
            assert requirement.specifier.contains(Version(version)), (requirement, version)


def test_every_requirement_says_its_lowest_version():
    for requirement in requirements():
        assert ">=" in [bound.operator for bound in requirement.specifier], requirement
