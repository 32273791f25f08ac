"""Damaged and malicious model files, generated from a seed."""

import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
from safetensors.torch import save

from fastcxr.config.recipe import Recipe
from fastcxr.io.files import compute_sha256
from fastcxr.models.backbones import describe_backbone, find_backbone, make_network
from fastcxr.models.bundle import load_model, save_model
from fastcxr.models.preprocessing import InputSpec
from fastcxr.models.state import LearnerState, LoadersState
from fastcxr.models.weights import load_weights

BACKBONE = "mobilenetv2_035"
HTML = b"<!doctype html><html><title>404 Not Found</title></html>"


@dataclass(frozen=True)
class Case:
    """A file that must be rejected: a run folder with a model, or a file for --weights."""

    name: str
    path: Path

    def open(self) -> None:
        """Load the file as the commands do."""
        if self.path.is_dir():
            load_model(self.path)
        else:
            load_weights(make_body(), self.path)


def make_body(classes: int = 3) -> torch.nn.Module:
    return make_network(find_backbone(BACKBONE, "none"), classes, "none", 64)


def write_good_model(folder: Path) -> Path:
    """Write a run folder with a valid model with random weights."""
    folder.mkdir(parents=True)
    pixels = InputSpec(image_size=64, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    model = make_body()
    learner = SimpleNamespace(
        model=model,
        dls=SimpleNamespace(
            vocab=["a", "b", "c"],
            fastcxr=LoadersState(
                input_spec=pixels, manifest=pd.DataFrame(columns=["patient", "split"]), image_cache=None
            ),
        ),
        fastcxr=LearnerState(backbone=describe_backbone(find_backbone(BACKBONE, "none"), "none", model)),
    )
    save_model(folder, learner, Recipe(BACKBONE, weights="none", image_size=64), {"precision": "fp32"})
    return folder


def draw_cases(good: Path, place: Path, count: int, seed: int = 0) -> Iterator[Case]:
    """Yield `count` hostile cases below `place`; if their code is run, it creates the file `marker` there."""
    dice, makers = random.Random(seed), [*WEIGHTS, *FACTS, *LINKS, *CHECKPOINTS]
    for number in range(count):
        make = makers[number % len(makers)]
        here = place / f"{number:04d}"
        here.mkdir(parents=True)
        if make in CHECKPOINTS:
            yield Case(make.__name__, make(here, dice, place / "marker"))
            continue
        folder = shutil.copytree(good, here / "run")
        make(folder, dice, place / "marker")
        yield Case(make.__name__, folder)


class Code:
    """An object whose unpickling runs a command."""

    def __init__(self, marker: Path, dice: random.Random):
        self.call = dice.choice([
            (os.system, (f"touch '{marker}'",)),
            (exec, (f"open({str(marker)!r}, 'w').close()",)),
            (eval, (f"open({str(marker)!r}, 'w').close()",)),
            (Path.touch, (marker,)),
            (os.mkdir, (str(marker),)),
        ])  # fmt: skip

    def __reduce__(self):
        return self.call


def change_weights(folder: Path, content: bytes, *, update_checksum: bool = False) -> None:
    """Replace the weights; `update_checksum`: also the checksum in model.json, as an attacker would."""
    (folder / "model.safetensors").write_bytes(content)
    if update_checksum:
        checksum = compute_sha256(folder / "model.safetensors")
        change_facts(folder, lambda facts: facts.update(files={"model.safetensors": checksum}))


def change_facts(folder: Path, change: Callable[[dict], None]) -> None:
    facts = json.loads((folder / "model.json").read_text())
    change(facts)
    (folder / "model.json").write_text(json.dumps(facts))


# --- the weights of a run


def flipped_bit(folder, dice, marker):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    change_weights(folder, bytes(content))


def truncated(folder, dice, marker):
    content = (folder / "model.safetensors").read_bytes()
    change_weights(folder, content[: dice.randrange(len(content))], update_checksum=dice.random() < 0.5)


def web_page(folder, dice, marker):
    change_weights(folder, HTML * dice.randrange(1, 50), update_checksum=dice.random() < 0.5)


def pickled_weights(folder, dice, marker):
    change_weights(folder, pickle.dumps(Code(marker, dice)), update_checksum=True)


def endless_header(folder, dice, marker):
    length = dice.choice([2**62, 2**63, 2**64 - 1, 2**31, 10**8, 0])
    change_weights(folder, struct.pack("<Q", length) + b"{}" * dice.randrange(100), update_checksum=True)


def contradictory_header(folder, dice, marker):
    shape = dice.choice([[2**62], [2**31, 2**31], [-1], [10**9], []])
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * 2 ** dice.randrange(60)]}})
    change_weights(folder, struct.pack("<Q", len(header)) + header.encode() + b"\0" * 64, update_checksum=True)


def deep_header(folder, dice, marker):
    header = b'{"a":' * 100_000
    change_weights(folder, struct.pack("<Q", len(header)) + header, update_checksum=True)


def other_network(folder, dice, marker):
    change_weights(folder, save({f"layer.{dice.randrange(9)}": torch.zeros(3, 3)}), update_checksum=True)


def wrong_classes(folder, dice, marker):
    classes = dice.choice([2, 4, 5, 100])
    change_facts(folder, lambda facts: facts.update(labels=[f"class {k}" for k in range(classes)]))


WEIGHTS = [
    flipped_bit, truncated, web_page, pickled_weights, endless_header, contradictory_header, deep_header, other_network,
    wrong_classes,
]  # fmt: skip

# --- model.json


def nonsense(folder, dice, marker):
    name, value = dice.choice(NONSENSE)
    change_facts(folder, lambda facts: facts.update({name: value}))


def missing_key(folder, dice, marker):
    name = dice.choice(["labels", "input_spec", "backbone", "files", "format", "choices"])
    change_facts(folder, lambda facts: facts.pop(name))


def invalid_json(folder, dice, marker):
    content = dice.choice([
        b"", b"null", b"[]", b"{" * 200_000, b"[" * 200_000, HTML, b"\xff\xfe\x00", pickle.dumps(Code(marker, dice)),
        b'{"format": ' + b"9" * 5000 + b"}", b'{"format": NaN}', b'{"a": 1}' + b" " * 65_000_000,
        b'{"format": 2, "files": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ])  # fmt: skip
    (folder / "model.json").write_bytes(content)


def path_as_a_name(folder, dice, marker):
    outside = folder.parent / "outside"
    outside.write_bytes(b"exists, and has the right checksum")
    names = ["../outside", str(outside), "../run/../outside", "..", ".", "", "C:\\x", "a\0b", "~/x"]
    change_facts(folder, lambda facts: facts["files"].update({dice.choice(names): compute_sha256(outside)}))


def path_as_a_backbone(folder, dice, marker):
    bad = dice.choice(["../../etc/passwd", "local-dir:/etc", "hf-hub:someone/something", "resnet18/../x", "x" * 10_000])
    part = dice.choice(["library", "name"])
    change_facts(folder, lambda facts: facts["backbone"].update({part: bad}))


NONSENSE = [
    ("format", 2**63), ("format", "2"), ("format", True), ("format", [1]),
    ("labels", ["a"]), ("labels", ["a", "a", "b"]), ("labels", "abc"), ("labels", [1, 2, 3]),
    ("labels", ["", "a", "b"]),
    ("labels", [str(k) for k in range(10**6)]), ("labels", {"a": 1}), ("labels", None),
    ("input_spec", {"image_size": 10**9, "mean": [0.5], "std": [0.2]}), ("input_spec", []),
    ("input_spec", {"image_size": -64, "mean": [0.5] * 3, "std": [0.2] * 3}),
    ("input_spec", {"image_size": 64, "mean": [0.5] * 3, "std": [0.0] * 3}),
    ("input_spec", {"image_size": 64, "mean": ["0.5"] * 3, "std": [0.2] * 3}),
    ("input_spec", {"image_size": 64, "mean": [0.5] * 10**5, "std": [0.2] * 10**5}),
    ("input_spec", {"image_size": 64.5, "mean": [0.5] * 3, "std": [0.2] * 3}),
    ("head", {"hidden": [10**9]}), ("head", {"hidden": [99_999, 99_999]}), ("head", {"hidden": [-1]}),
    ("head", {"hidden": [8] * 10**4}), ("head", {"dropout": 2}), ("head", {"multi_scale": "yes"}), ("head", {"x": 1}),
    ("backbone", None), ("backbone", "resnet18"), ("backbone", {"library": "timm"}), ("backbone", {"name": ["a"]}),
    ("backbone", {"library": "timm", "name": "vit_giant_patch14_dinov2"}),
    ("backbone", {"library": "os", "name": "system"}), ("choices", []), ("choices", None),
    ("files", {"model.safetensors": None}), ("files", []), ("files", {"model.safetensors": "0" * 64}),
    ("bit_depths", [12]), ("bit_depths", {"default": 12}), ("bit_depths", {"sources": {"a": 99}, "default": 12}),
    ("bit_depths", {"sources": {"a": "12"}, "default": 12}), ("bit_depths", {"sources": {}, "default": 10**9}),
    ("fitted_on", ["train"]), ("fitted_on", {"splits": ["train"]}),
    ("fitted_on", {"splits": "train", "images": 1, "patients": 1, "valid_predictions": "saved_model"}),
    ("fitted_on", {"splits": ["train"], "images": -1, "patients": 1, "valid_predictions": "saved_model"}),
    ("calibration", {"temperature": 0}), ("calibration", {"temperature": "1"}), ("calibration", [1]),
]  # fmt: skip
FACTS = [nonsense, missing_key, nonsense, invalid_json, nonsense, path_as_a_name, nonsense, path_as_a_backbone]

# --- links, folders and devices in place of files


def link_to_outside(folder, dice, marker):
    """The right content, but through a link, whose target may change after the check."""
    name = dice.choice(["model.safetensors", "model.json"])
    (folder / name).rename(folder.parent / "outside")
    (folder / name).symlink_to(folder.parent / "outside")


def no_file(folder, dice, marker):
    name = dice.choice(["model.safetensors", "model.json"])
    (folder / name).unlink()
    dice.choice([os.mkfifo, os.mkdir, lambda path: os.symlink(path, path), lambda path: os.symlink("/dev/zero", path)])(
        folder / name
    )


LINKS = [link_to_outside, no_file]

# --- files for --weights


def code_in_a_checkpoint(place, dice, marker):
    torch.save({"state_dict": make_body().state_dict(), "more": Code(marker, dice)}, place / "w.pth")
    return place / "w.pth"


def bare_pickle(place, dice, marker):
    path = place / dice.choice(["export.pkl", "w.pth", "w.pt", "w.safetensors"])
    path.write_bytes(pickle.dumps(Code(marker, dice), protocol=dice.randrange(6)))
    return path


def damaged_checkpoint(place, dice, marker):
    torch.save(make_body().state_dict(), place / "w.pth")
    content = bytearray((place / "w.pth").read_bytes())
    content[dice.randrange(1000, len(content) - 30_000)] ^= 1 << dice.randrange(8)  # not in padding at either end
    (place / "w.pth").write_bytes(content if dice.random() < 0.5 else content[: dice.randrange(len(content))])
    return place / "w.pth"


def packed_checkpoint(place, dice, marker):
    """A file of some kilobytes that decompresses to a hundred megabytes."""
    from zipfile import ZIP_DEFLATED, ZipFile

    torch.save({"w": torch.zeros(25_000_000)}, place / "big.pth")
    with ZipFile(place / "big.pth") as big, ZipFile(place / "w.pth", "w", ZIP_DEFLATED) as packed:
        for entry in big.infolist():
            packed.writestr(entry.filename, big.read(entry))
    (place / "big.pth").unlink()
    return place / "w.pth"


def no_state_dict(place, dice, marker):
    value = dice.choice([[1, 2], None, torch.zeros(3), {1: torch.zeros(2)}, {"state_dict": {2: 1}}, "text", {}])
    torch.save(value, place / "w.pth")
    return place / "w.pth"


def endless_numbers(place, dice, marker):
    state = make_body().state_dict()
    state["conv_stem.weight"][0] = dice.choice([float("nan"), float("inf")])
    torch.save(state, place / "w.pth")
    return place / "w.pth"


CHECKPOINTS = [
    code_in_a_checkpoint, bare_pickle, damaged_checkpoint, bare_pickle, no_state_dict, endless_numbers,
    packed_checkpoint, damaged_checkpoint, code_in_a_checkpoint,
]  # fmt: skip
