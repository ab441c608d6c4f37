"""Tokens and passwords: in nothing that sobook prints or writes, whatever fails on the way."""

import sys
import types
import warnings

import pytest
import requests
from huggingface_hub import constants

from sobook import cli, export, hub
from sobook.data import fetch
from sobook.errors import DownloadError, SobookError, first_line, without_secrets
from sobook.training.config import TrainConfig
from sobook.training.loop import fit

SECRETS = {
    "HF_TOKEN": "hf_QWERTZuiopASDFghjklYXCV",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HTTPS_PROXY": "http://reader:hunter2hunter2@127.0.0.1:9",
    "MY_PASSWORD": "correct horse battery",
}
HIDDEN = (*(SECRETS[name] for name in SECRETS if name != "HTTPS_PROXY"), "hunter2hunter2")
SIGNED = "https://reader:hunter2hunter2@127.0.0.1:9/a.zip?token=hunter2hunter2&sig=hunter2hunter2"


@pytest.fixture(autouse=True)
def _set(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # a command sets it
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def hides(text: str) -> bool:
    return not any(secret in text for secret in HIDDEN)


@pytest.mark.parametrize(
    "text, shown",
    [
        (SIGNED, "https://…@127.0.0.1:9/a.zip?token=…&sig=…"),
        ("ssh://git:p@ss@host/x", "ssh://…@host/x"),
        (
            "401 for hf_abcdefghijklmnopqrst.",
            "401 for ….",
        ),
        (f"key {SECRETS['WANDB_API_KEY']} refused", "key … refused"),
        (
            "timm/vit@main, https://host/path@1: a@b.c?",
            "timm/vit@main, https://host/path@1: a@b.c?",
        ),
        ("hf_hub_id is None", "hf_hub_id is None"),
    ],
)
def test_what_is_hidden_and_what_stays(text, shown):
    assert without_secrets(text) == shown


def test_empty_and_short_values_hide_nothing(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "")
    monkeypatch.setenv("B_TOKEN", "cls")
    assert without_secrets("choose cls, dist or mean") == "choose cls, dist or mean"


def test_errors_of_sobook_and_texts_of_others():
    for kind in (SobookError, DownloadError):
        assert hides(str(kind(f"{SIGNED} answered 403."))) and "403" in str(kind(f"{SIGNED} 403"))
    assert hides(first_line(OSError(f"proxy {SECRETS['HTTPS_PROXY']} refused")))


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--token", SECRETS["HF_TOKEN"]],
        ["train", "--encoder", SIGNED],
        ["train", "--encoder", f"https://huggingface.co/a/b?token={SECRETS['HF_TOKEN']}"],
        ["train", "--weights", SIGNED],
        ["evaluate", SIGNED],
        ["evaluate", "--encoder", "hf-hub:a/b"],
        ["search", "--query", SIGNED, "--index", "none.npz"],
    ],
)
def test_commands_that_fail(arguments, monkeypatch, capfd, tmp_path):
    def refuse(*_, **__):
        raise OSError(f"401 from {SIGNED}: Authorization Bearer {SECRETS['HF_TOKEN']}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", SIGNED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.requests, "head", lambda *_, **__: None)
    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", refuse)
    assert cli.main(arguments) == 1
    printed = "".join(capfd.readouterr())
    assert printed.startswith("sobook: ") and hides(printed), printed


def test_errors_and_warnings_of_other_packages_in_a_command(monkeypatch, capfd):
    def fail(*_):
        raise PermissionError(f"{SIGNED}: {SECRETS['WANDB_API_KEY']}")

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["cache"]) == 1
    for text in (
        capfd.readouterr().err,
        warnings.formatwarning(f"slow: {SIGNED}", UserWarning, "file", 1),  # as the command set it
    ):
        assert "127.0.0.1:9/a.zip" in text and hides(text), text


def test_a_download_that_fails(monkeypatch, tmp_path):
    def refuse(url, **_):
        raise requests.exceptions.InvalidURL(f"{url} {SECRETS['HTTPS_PROXY']}")

    monkeypatch.setattr(fetch.requests, "get", refuse)
    with pytest.raises(DownloadError, match="127.0.0.1:9/a.zip") as failed:
        fetch.fetch(SIGNED, tmp_path / "a.zip", progress=False)
    assert hides(str(failed.value)) and failed.value.__suppress_context__


def test_a_run_with_all_that_it_leaves(tiny_aviary, tiny_options, monkeypatch, capfd, tmp_path):
    """Run folder, copies of it, and a folder for the Hub; the tracker gets settings alone."""
    sent = []
    wandb = types.SimpleNamespace(
        init=lambda **settings: (
            sent.append(settings)
            or types.SimpleNamespace(
                log=lambda values, step: sent.append(values), finish=lambda: None
            )
        )
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (tmp_path / "drive").mkdir()
    monkeypatch.setenv("SOBOOK_MIRROR", str(tmp_path / "drive"))
    data = {"root": tiny_aviary, "options": tiny_options, "run_dir": tmp_path / "run"}
    small = {"dim": 16, "epochs": 1, "batch_size": 8, "selection": "last"}
    run = fit(TrainConfig(**data, **small, tracker="wandb"), progress=False)
    export.to_hub(run, tmp_path / "hub")
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"config.json", "state.json", "README.md"} <= {file.name for file in written}
    for file in written:
        assert hides(file.read_bytes().decode("latin-1")), file
    assert sent and hides(repr(sent)) and hides("".join(capfd.readouterr()))
