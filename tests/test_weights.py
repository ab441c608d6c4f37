"""Weights as people have them: loaded, value for value, or one sentence on what the file holds."""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from sobook.course.aviary import micro  # noqa: F401 (registers the micro encoder)
from sobook.encoder import Encoder
from sobook.errors import EncoderError

TINY = "test_vit"  # timm's own toy ViT: 0.3 M parameters
SHARDS = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]


@pytest.fixture(scope="module")
def state():
    """A state dict of TINY with its classifier, as torch.save would get it."""
    torch.manual_seed(1)
    return timm.create_model(TINY, num_classes=10).state_dict()


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def others(state):
    """Another model of the same architecture."""
    return {key: value + 0.01 for key, value in state.items()}


def foreign(name, base, **attributes):
    """An object of a package that nobody here has."""
    module = sys.modules.setdefault("no_such_package", types.ModuleType("no_such_package"))
    kind = type(name, (base,), {"__module__": "no_such_package"})
    setattr(module, name, kind)
    thing = kind(attributes) if base is dict else kind()
    vars(thing).update(attributes)
    return thing


def shards(state, folder, missing=()):
    folder.mkdir()
    half = len(state) // 2
    for i, name in enumerate(SHARDS):
        part = dict(list(state.items())[i * half : (i + 1) * half + i])
        if name not in missing:
            save_file(part, folder / name)
    table = {key: SHARDS[i >= half] for i, key in enumerate(state)}
    index = {"metadata": {}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def as_bytes(state, folder, of, name):
    """What `torch.save` or `save_file` writes, under another name."""
    (torch.save if of == "torch" else save_file)(state, folder / "it")
    return (folder / "it").rename(folder / name)


NAMESPACE = argparse.Namespace(lr=1, out=pathlib.PurePosixPath("x"))


def spring(file):
    pathlib.Path(file).touch()


class Trap:
    """Unpickled the usual way, it calls a function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


# What is given to torch.save, by file name.
SAVED = {
    "bare.pth": lambda s: s,
    "model.pth": lambda s: {"model": s},
    "parameters.pth": lambda s: {k: torch.nn.Parameter(v) for k, v in s.items()},
    "data_parallel.pth.tar": lambda s: {"state_dict": prefixed("module.", s), "epoch": 3},
    "stacked.pt": lambda s: prefixed("module.backbone.", s),
    "compiled.bin": lambda s: prefixed("_orig_mod.module.", s),
    "unheard_of.pth": lambda s: {"net": {"trunk": prefixed("visual.tower.", s)}},
    "spark.pth": lambda s: {"arch": "test_vit", "module": s, "is_pretrain": True},
    "lightning.ckpt": lambda s: {
        "state_dict": prefixed("model.encoder.", s),
        "pytorch-lightning_version": "2.0",
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "hyper_parameters": foreign("Settings", dict, lr=0.1),
    },
    "teacher.pth": lambda s: {"teacher": s, "args": NAMESPACE},
    "objects.pth": lambda s: {
        "model": s,
        "config": foreign("Config", object, lr=0.1),
        "best": np.float64(0.5),
        "history": np.arange(3),
        "log": collections.defaultdict(list, {"a": [1]}),
    },
    "tuple.pth": lambda s: (s, 3),
    "same_twice.pth": lambda s: {"model": s, "ema": {k: v.clone() for k, v in s.items()}},
    "root_and_ema.pth": lambda s: {**s, "ema": others(s)},
    "half.pth": lambda s: {k: v.half() for k, v in s.items()},
    "bfloat16.pth": lambda s: {k: v.bfloat16() for k, v in s.items()},
    "double.pth": lambda s: {k: v.double() for k, v in s.items()},
    "other_heads.pth": lambda s: {
        **{k: v for k, v in s.items() if not k.startswith("head")},
        "classifier.weight": torch.zeros(5, 64),
        "fc.bias": torch.zeros(5),
        "head_dist.weight": torch.zeros(7, 64),
        "projector.0.weight": torch.zeros(9, 9),
        "mask_token": torch.zeros(1, 1, 64),
        "decoder_pos_embed": torch.zeros(1, 5, 5),
    },
    "head_of_another_size.pth": lambda s: {**s, "head.weight": torch.zeros(1000, 64)},
}


def loads(weights, state, tolerance=0.0):
    torch.manual_seed(5)
    found = Encoder.create(TINY, weights=weights).backbone.state_dict()
    for key, value in found.items():
        torch.testing.assert_close(value, state[key].float(), rtol=0, atol=tolerance)


class TestLoads:
    @pytest.mark.parametrize("name", SAVED)
    def test_what_torch_save_wrote(self, state, tmp_path, name):
        torch.save(SAVED[name](state), tmp_path / name)
        loads(tmp_path / name, state, 0.01 if name in ("half.pth", "bfloat16.pth") else 0)

    @pytest.mark.parametrize("content", ["bare.pth", "teacher.pth"])
    def test_the_format_of_torch_before_1_6(self, state, tmp_path, content):
        file = tmp_path / content
        torch.save(SAVED[content](state), file, _use_new_zipfile_serialization=False)
        loads(file, state)

    @pytest.mark.parametrize("wrap", [lambda m: m, torch.nn.DataParallel])
    def test_a_pickled_model(self, state, tmp_path, wrap):
        model = timm.create_model(TINY, num_classes=10)
        model.load_state_dict(state)
        torch.save(wrap(model), tmp_path / "whole.pth")
        loads(tmp_path / "whole.pth", state)

    @pytest.mark.parametrize(
        ("of", "name"),
        [("safetensors", "w.safetensors"), ("safetensors", "w.bin"), ("torch", "w.safetensors")],
    )
    def test_the_content_counts_not_the_name(self, state, tmp_path, of, name):
        loads(as_bytes(state, tmp_path, of, name), state)

    def test_folders(self, state, tmp_path):
        loads(shards(state, tmp_path / "shards"), state)
        loads(tmp_path / "shards" / "model.safetensors.index.json", state)
        (tmp_path / "one").mkdir()
        torch.save(state, tmp_path / "one" / "ours.pth")
        loads(tmp_path / "one", state)
        save_file(others(state), tmp_path / "one" / "model.safetensors")  # the usual name wins
        loads(tmp_path / "one", others(state))

    def test_a_checkpoint_of_our_own(self, state, tmp_path):
        trained = Encoder.create(TINY, dim=8, weights=None)
        tensors = prefixed("encoder.", trained.state_dict()) | {"proxies": torch.zeros(3, 8)}
        save_file(tensors, tmp_path / "checkpoint.safetensors")
        loads(tmp_path, trained.backbone.state_dict())

    @pytest.mark.parametrize("part", ["teacher", "teacher.backbone", "student"])
    def test_one_of_two_by_name(self, state, tmp_path, part):
        two = {"student": prefixed("module.backbone.", others(state))}
        torch.save(two | {"teacher": prefixed("backbone.", state)}, tmp_path / "dino.pth")
        expected = others(state) if part == "student" else state
        loads(f"{tmp_path / 'dino.pth'}#{part}", expected)

    def test_counters_of_batches_may_be_missing(self, tmp_path):
        """As in files from before torch 0.4.1."""
        model = timm.create_model("test_resnet", num_classes=10)
        old = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
        torch.save(old, tmp_path / "w.pth")
        encoder = Encoder.create("test_resnet", weights=tmp_path / "w.pth")
        torch.testing.assert_close(
            encoder.backbone.state_dict()["conv1.0.weight"], old["conv1.0.weight"]
        )

    def test_names_of_another_library_that_timm_knows(self, tmp_path):
        """ConvNeXt as its authors publish it: stages under other names, a head without `fc`."""
        model = timm.create_model("convnext_atto", num_classes=3)
        ours = model.state_dict()
        theirs = {}
        for key, value in ours.items():
            key = key.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.")
            key = key.replace("head.fc.", "head.").replace(".conv_dw.", ".dwconv.")
            key = key.replace(".mlp.fc1.", ".pwconv1.").replace(".mlp.fc2.", ".pwconv2.")
            for stage in "0123":
                key = key.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
                key = key.replace(f"stages.{stage}.blocks.", f"stages.{stage}.")
            theirs[key] = value
        torch.save({"model": theirs}, tmp_path / "w.pth")
        found = Encoder.create("convnext_atto", weights=tmp_path / "w.pth").backbone.state_dict()
        for key in found:
            torch.testing.assert_close(found[key], ours[key])

    @pytest.mark.slow  # its quick twin, of another encoder, is in test_encoder
    def test_positions_of_14_pixel_patches_at_518(self, tmp_path):
        """DINOv2 is published for 37 × 37 patches, and mostly used at 224 pixels."""
        name = "vit_small_patch14_dinov2"
        source = timm.create_model(name, num_classes=0)
        torch.save({"teacher": prefixed("backbone.", source.state_dict())}, tmp_path / "w.pth")
        encoder = Encoder.create(name, weights=tmp_path / "w.pth", image_size=112)
        expected = resample_abs_pos_embed(source.pos_embed, [8, 8], num_prefix_tokens=1)
        torch.testing.assert_close(encoder.backbone.pos_embed, expected)

    @pytest.mark.parametrize("call", [(spring, "{}"), (os.system, "touch {}")])
    def test_code_in_a_file_is_not_run(self, state, tmp_path, call):
        function, argument = call
        trap = Trap(function, argument.format(tmp_path / "sprung"))
        torch.save({"model": state, "trap": trap}, tmp_path / "w.pth")
        if function is os.system:  # torch does not even list it
            with pytest.raises(EncoderError, match="holds more than tensors"):
                loads(tmp_path / "w.pth", state)
        else:
            loads(tmp_path / "w.pth", state)
        assert not (tmp_path / "sprung").exists()


def write(content):
    """A file with these bytes."""
    return lambda file, state: file.write_bytes(content)


def saved(change):
    """A file with what `change` makes of the state."""
    return lambda file, state: torch.save(change(state), file)


def cut(file, state):
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[:200_000])


def flipped(file, state):
    torch.save(state, file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def bomb(file, state):
    torch.save(state, file)
    with zipfile.ZipFile(file) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content if "data.pkl" in name else bytes(3_000_000))


def packed(file, state):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/model.pth", b"x")


def torchscript(file, state):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), file)


REFUSED = {
    "pointer.safetensors": (
        write(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 23\n"),
        r"holds text, not weights \('version https://git-lfs.*git lfs pull",
    ),
    "page.pth": (write("<!DOCTYPE html>\n<p>é".encode()), "holds text.*web page"),
    "denied.pth": (write(b"Access denied"), "holds text, not weights .'Access denied'"),
    "empty.pth": (write(b""), "is empty"),
    "cut.pth": (cut, "cut short.*Download it again"),
    "flipped.pth": (flipped, r"is damaged \(in .*Download|is damaged \(in .*download"),
    "header.safetensors": (write((2**60).to_bytes(8, "little") + b'{"a":1}'), "damaged, cut short"),
    "bomb.pth": (bomb, "is compressed"),
    "jax.npz": (lambda file, _: np.savez(file, a=np.zeros(3)), "NumPy arrays"),
    "script.pt": (torchscript, r"TorchScript.*torch\.jit\.load\('script\.pt'\)\.state_dict"),
    "model.onnx": (write(b"\x08\x07\x12\x07pytorch\x1a\x05"), "is an ONNX graph"),
    "keras.h5": (write(b"\x89HDF\r\n\x1a\n" + bytes(99)), "is not a file of weights"),
    "packed.zip": (packed, r"archive of 1 files \(weights/model.pth\): unpack"),
    "list.pth": (saved(lambda s: [1, 2]), "holds no tensors"),
    "counter.pth": (saved(lambda s: {"epoch": 3}), "holds no tensors"),
    "two.pth": (
        saved(lambda s: {"student": others(s), "teacher": s}),
        r"2 models that fit test_vit \(student, teacher\): name one.*two\.pth#student'",
    ),
    "ema.pth": (
        saved(lambda s: {"state_dict": s, "state_dict_ema": others(s)}),
        r"\(state_dict, state_dict_ema\): name one",
    ),
    "moco.pth": (
        saved(
            lambda s: prefixed("module.encoder_q.", s) | prefixed("module.encoder_k.", others(s))
        ),
        r"\(module.encoder_q, module.encoder_k\): name one",
    ),
    "shallower.pth": (
        saved(lambda s: {k: v for k, v in s.items() if "blocks.5" not in k}),
        r"12 of 78 tensors are missing \(blocks\.5\.norm1\.weight.*name the encoder",
    ),
    "deeper.pth": (
        saved(lambda s: s | {k.replace("blocks.5", "blocks.6"): s[k] for k in s if "s.5" in k}),
        r"12 do not belong to it \(blocks\.6\.norm1",
    ),
    "wider.pth": (
        saved(lambda s: {k: torch.cat([v, v], -1) if v.ndim == 1 else v for k, v in s.items()}),
        r"have another shape or type \(.*\(128,\), not \(64,\)",
    ),
    "integers.pth": (
        saved(lambda s: {k: (100 * v).to(torch.int8) for k, v in s.items()}),
        r"another shape or type \(cls_token \(1, 1, 64\) int8",
    ),
    "diverged.pth": (
        saved(lambda s: s | {"norm.weight": s["norm.weight"] * float("nan")}),
        r"1 hold numbers that are not finite \(norm\.weight\)",
    ),
    "distilled.pth": (
        saved(lambda s: s | {"dist_token": s["cls_token"], "pos_embed": torch.zeros(1, 102, 64)}),
        r"pos_embed \(1, 102, 64\), not \(1, 101, 64\).*do not belong to it \(dist_token\)",
    ),
    "registers.pth": (
        saved(lambda s: s | {"register_tokens": torch.zeros(1, 4, 64)}),
        r"do not belong to it \(register_tokens\)",
    ),
    "patches.pth": (
        saved(lambda s: s | {"patch_embed.proj.weight": torch.zeros(64, 3, 14, 14)}),
        r"patch_embed\.proj\.weight \(64, 3, 14, 14\), not \(64, 3, 16, 16\)",
    ),
    "transformers.pth": (
        saved(lambda s: prefixed("vit.encoder.", {k.replace("blocks", "layer"): s[k] for k in s})),
        r"\d+ of 78 tensors are missing .* holds 80 tensors \(vit\.encoder\.cls_token",
    ),
    "resnet.pth": (
        saved(lambda s: timm.create_model("test_resnet").state_dict()),
        r"78 of 78 tensors are missing",
    ),
}


class TestRefuses:
    @pytest.mark.parametrize("name", REFUSED)
    def test_with_one_sentence(self, state, tmp_path, name):
        make, message = REFUSED[name]
        make(tmp_path / name, state)
        with pytest.raises(EncoderError, match=message) as caught:
            Encoder.create(TINY, weights=tmp_path / name)
        text = str(caught.value)
        assert text.startswith(str(tmp_path / name)) and len(text) < 500
        assert text.isprintable()  # no second line, no escape codes

    def test_folders(self, state, tmp_path):
        shards(state, tmp_path / "shards", missing=SHARDS[1:])
        (tmp_path / "none").mkdir()
        (tmp_path / "many").mkdir()
        for name in "ab":
            torch.save(state, tmp_path / "many" / f"{name}.pth")
        for name, message in {
            "shards": r"shards lacks 1 shards \(model-00002",
            f"shards/{SHARDS[0]}": "tensors are missing.*give their folder",
            "none": "holds no file of weights",
            "many": r"2 files of weights \(a\.pth, b\.pth\): name one",
            "many/a.pth#teacher": "has no part 'teacher': it holds 80 tensors",
            "https://hub.example/w.pth": "download it",
        }.items():
            weights = name if "://" in name else f"{tmp_path}/{name}"
            with pytest.raises(EncoderError, match=message):
                Encoder.create(TINY, weights=weights)


FUZZ = """
import random, sys, time, warnings
from pathlib import Path
import torch
from sobook.encoder import Encoder
from sobook.errors import SobookError
warnings.simplefilter("ignore")
torch.set_num_threads(1)
folder, count = Path(sys.argv[1]), int(sys.argv[2])
originals = [file.read_bytes() for file in sorted(folder.iterdir())]
rng, slowest, outcomes = random.Random(0), 0.0, {True: 0, False: 0}
for i in range(count):
    content = bytearray(originals[i % len(originals)])
    # Half of the changes hit the header of a safetensors file, or the pickle and the directory.
    for _ in range(rng.choice([1, 1, 3, 30])):
        start = rng.choice([0, 0, len(content) // 2, max(0, len(content) - 9000)])
        at = min(len(content) - 1, start + rng.randrange(9000))
        content[at] = rng.choice([0, 255, rng.randrange(256), content[at] ^ 1 << rng.randrange(8)])
    if rng.random() < 0.2:
        del content[rng.randrange(len(content)) :]
    if rng.random() < 0.1:
        at = rng.randrange(len(content) + 1)
        content[at:at] = rng.randbytes(rng.randrange(64))
    file = folder / "mutated"
    file.write_bytes(content)
    begin = time.monotonic()
    try:
        Encoder.create("test_vit", weights=file)
        outcomes[True] += 1
    except SobookError:
        outcomes[False] += 1
    slowest = max(slowest, time.monotonic() - begin)
    file.unlink()
peak = 0.0  # of this process alone: what getrusage says begins with the memory of the parent
if (status := Path("/proc/self/status")).exists():
    peak = int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**20
print(outcomes, f"slowest {slowest:.1f} s, peak {peak:.2f} GB")
assert slowest < 10 and peak < 1
"""


def fuzz(state, folder, count):
    torch.save({"model": state}, folder / "new.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"teacher": state, "args": NAMESPACE}, folder / "objects.pth")
    save_file(state, folder / "w.safetensors")
    command = [sys.executable, "-c", FUZZ, str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_forty_mutated_files_give_weights_or_a_sentence(state, tmp_path):
    """In a process of their own: a crash of it would be seen, and its memory is measured."""
    fuzz(state, tmp_path, 40)


@pytest.mark.slow
def test_four_hundred_mutated_files(state, tmp_path):
    print(fuzz(state, tmp_path, 400))
