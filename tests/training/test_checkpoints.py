"""A state comes back as it was written, and nothing that happens to its file is taken for a state."""

import logging
import math
import random
import resource
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from fastcore.foundation import L

from fastcxr.errors import ModelError, StorageError
from fastcxr.training.checkpoints import Checkpoints, flatten, unflatten

STATE = {
    "epoch": 3,
    "rows": [{"loss": 0.1 + 0.2, "auroc": math.nan, "stage": "head", "best": True}],
    "python": random.Random(1).getstate(),
    "numpy": np.random.RandomState(1).get_state(),
    "optimizer": {"state": [{}, {"grad_avg": torch.randn(2, 3), "step": 4}], "hypers": L({"lr": np.float64(1e-3)})},
    "by number": {0: (math.inf, None)},
}


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | L):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.equal(other) and one.stride() == other.stride()
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and (one == other).all()
    return one == other or (one != one and other != other)


def test_a_state_comes_back_whole(tmp_path):
    Checkpoints(tmp_path).write(STATE)
    assert same(Checkpoints(tmp_path).read(), STATE)


def test_a_tensor_lies_in_memory_as_it_lay():
    weights = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    kept: dict = {}
    tree = flatten(weights, kept)
    assert unflatten(tree, kept).stride() == weights.stride()
    assert unflatten(tree, kept).equal(weights)


def test_what_no_state_can_hold_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="no state can hold a function"):
        Checkpoints(tmp_path).write({"loss": lambda x: x})
    assert not list(tmp_path.iterdir())


def test_two_generations_are_kept(tmp_path):
    for epoch in range(4):
        Checkpoints(tmp_path).write({"epoch": epoch})
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "state-000003.safetensors",
        "state-000004.safetensors",
    ]
    assert len(list(tmp_path.iterdir())) == 4  # each with its checksum


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)


DAMAGE = {
    "bit": flip_a_bit,
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "page": lambda path: path.write_text("<html>404 not found</html>"),
    "exchanged": lambda path: shutil.copy(path.with_name("state-000001.safetensors"), path),
    "no checksum": lambda path: path.with_name(f"{path.name}.sha256").unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_state_is_named_and_the_one_before_it_is_used(tmp_path, kind, caplog):
    for epoch in (1, 2):
        Checkpoints(tmp_path).write({"epoch": epoch, "weights": torch.ones(50)})
    DAMAGE[kind](tmp_path / "state-000002.safetensors")
    with caplog.at_level(logging.WARNING, "fastcxr"):
        assert Checkpoints(tmp_path).read()["epoch"] == 1
    assert "state-000002.safetensors: sha256 differs: damaged" in caplog.text


def test_without_an_intact_state_nothing_is_guessed(tmp_path):
    Checkpoints(tmp_path).write({"epoch": 1})
    DAMAGE["half"](tmp_path / "state-000001.safetensors")
    with pytest.raises(ModelError, match="no state in this folder is intact"):
        Checkpoints(tmp_path).read()


def test_a_whole_file_that_is_no_state_is_not_used_either(tmp_path):
    from safetensors.torch import save_file

    from fastcxr.io.files import compute_sha256

    place = tmp_path / "state-000001.safetensors"
    save_file({"a": torch.ones(2)}, place, {"format": "9"})
    place.with_name(f"{place.name}.sha256").write_text(f"{compute_sha256(place)}  {place.name}\n")
    with pytest.raises(ModelError, match="no state in this folder is intact"):
        Checkpoints(tmp_path).read()


def test_there_is_none_before_the_first(tmp_path):
    assert Checkpoints(tmp_path / "state").read() is None
    assert not Checkpoints(tmp_path / "state").has_states()


def test_a_full_disk_is_told_with_numbers_and_leaves_the_last_state(tmp_path, monkeypatch):
    Checkpoints(tmp_path).write({"epoch": 1})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1_000))
    with pytest.raises(StorageError, match=r"the state needs 4\.\d MB, 0\.0 MB are free; the one before it is kept"):
        Checkpoints(tmp_path).write({"epoch": 2, "weights": torch.ones(1_000_000)})
    assert Checkpoints(tmp_path).read()["epoch"] == 1


def test_a_disk_that_fails_in_the_middle_is_told_with_numbers_and_leaves_the_last_state(tmp_path):
    Checkpoints(tmp_path).write({"epoch": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(
            StorageError, match=r"the state needs 4\.\d MB and cannot be written .*before it is kept"
        ) as told:
            Checkpoints(tmp_path).write({"epoch": 2, "weights": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told.value.exit_code == 74
    assert Checkpoints(tmp_path).read()["epoch"] == 1


def test_what_a_crash_left_of_a_file_goes_with_the_next_state(tmp_path):
    Checkpoints(tmp_path).write({"epoch": 1})
    (tmp_path / ".state-000002.safetensors.x1").write_bytes(b"half")
    (tmp_path / "state-000002.safetensors.sha256").write_text("of a file that never came")
    assert Checkpoints(tmp_path).read()["epoch"] == 1
    Checkpoints(tmp_path).write({"epoch": 2})
    Checkpoints(tmp_path).write({"epoch": 3})
    assert Checkpoints(tmp_path).read()["epoch"] == 3
    assert not list(tmp_path.glob(".state*"))


def test_the_mirror_has_what_is_needed_to_go_on_elsewhere(tmp_path):
    here, mirror, elsewhere = tmp_path / "here", tmp_path / "mirror", tmp_path / "elsewhere"
    for epoch in range(3):
        Checkpoints(here, mirror).write({"epoch": epoch})
    assert len(list(mirror.glob("*.safetensors"))) == 2
    found = Checkpoints(elsewhere, mirror)
    found.copy_from_mirror()
    assert found.read()["epoch"] == 2
    found.remove()
    assert not mirror.exists()
    assert not elsewhere.exists()


def test_a_mirror_out_of_reach_stops_nothing_and_is_told(tmp_path, caplog):
    (tmp_path / "mirror").write_text("a file in its place")
    Checkpoints(tmp_path / "here", tmp_path / "mirror").write({"epoch": 1})
    assert "the mirror has no copy of this state" in caplog.text
    assert Checkpoints(tmp_path / "here").read()["epoch"] == 1


def test_a_mirror_that_reads_back_otherwise_is_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fastcxr.training.checkpoints.compute_sha256", lambda _: "0" * 64)
    Checkpoints(tmp_path / "here", tmp_path / "mirror").write({"epoch": 1})
    assert "reads back otherwise" in caplog.text
