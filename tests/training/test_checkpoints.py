"""Checkpoints are read back unchanged, and damaged files are rejected."""

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


def is_same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | L):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.equal(other) and one.stride() == other.stride()
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and (one == other).all()
    return one == other or (one != one and other != other)


def test_read_returns_the_written_state(tmp_path):
    Checkpoints(tmp_path).write(STATE)
    assert is_same(Checkpoints(tmp_path).read(), STATE)


def test_unflatten_restores_strides():
    weights = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    tensors: dict = {}
    tree = flatten(weights, tensors)
    assert unflatten(tree, tensors).stride() == weights.stride()
    assert unflatten(tree, tensors).equal(weights)


def test_write_rejects_unsupported_types_before_writing(tmp_path):
    with pytest.raises(TypeError, match="a checkpoint cannot store a function"):
        Checkpoints(tmp_path).write({"loss": lambda x: x})
    assert not list(tmp_path.iterdir())


def test_write_keeps_two_generations(tmp_path):
    for epoch in range(4):
        Checkpoints(tmp_path).write({"epoch": epoch})
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "state-000003.safetensors",
        "state-000004.safetensors",
    ]
    assert len(list(tmp_path.iterdir())) == 4  # with checksum files


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


@pytest.mark.parametrize("damage", DAMAGE)
def test_read_reports_a_damaged_checkpoint_and_returns_the_previous_one(tmp_path, damage, caplog):
    for epoch in (1, 2):
        Checkpoints(tmp_path).write({"epoch": epoch, "weights": torch.ones(50)})
    DAMAGE[damage](tmp_path / "state-000002.safetensors")
    with caplog.at_level(logging.WARNING, "fastcxr"):
        assert Checkpoints(tmp_path).read()["epoch"] == 1
    assert "state-000002.safetensors: the checkpoint is damaged (sha256 differs)" in caplog.text


def test_read_raises_if_all_checkpoints_are_damaged(tmp_path):
    Checkpoints(tmp_path).write({"epoch": 1})
    DAMAGE["half"](tmp_path / "state-000001.safetensors")
    with pytest.raises(ModelError, match="no intact checkpoint in this folder"):
        Checkpoints(tmp_path).read()


def test_read_rejects_another_safetensors_file_with_a_valid_checksum(tmp_path):
    from safetensors.torch import save_file

    from fastcxr.io.files import compute_sha256

    path = tmp_path / "state-000001.safetensors"
    save_file({"a": torch.ones(2)}, path, {"format": "9"})
    path.with_name(f"{path.name}.sha256").write_text(f"{compute_sha256(path)}  {path.name}\n")
    with pytest.raises(ModelError, match="no intact checkpoint in this folder"):
        Checkpoints(tmp_path).read()


def test_read_returns_none_without_checkpoints(tmp_path):
    assert Checkpoints(tmp_path / "state").read() is None
    assert not Checkpoints(tmp_path / "state").has_states()


def test_write_reports_missing_disk_space_and_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    Checkpoints(tmp_path).write({"epoch": 1})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1_000))
    with pytest.raises(
        StorageError, match=r"the checkpoint needs 4\.\d MB, 0\.0 MB are free; the previous checkpoint is kept"
    ):
        Checkpoints(tmp_path).write({"epoch": 2, "weights": torch.ones(1_000_000)})
    assert Checkpoints(tmp_path).read()["epoch"] == 1


def test_write_reports_a_failing_disk_and_keeps_the_previous_checkpoint(tmp_path):
    Checkpoints(tmp_path).write({"epoch": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(
            StorageError, match=r"checkpoint of 4\.\d MB cannot be written .*previous .* kept"
        ) as caught:
            Checkpoints(tmp_path).write({"epoch": 2, "weights": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.exit_code == 74
    assert Checkpoints(tmp_path).read()["epoch"] == 1


def test_write_removes_partial_files_of_a_crash(tmp_path):
    Checkpoints(tmp_path).write({"epoch": 1})
    (tmp_path / ".state-000002.safetensors.x1").write_bytes(b"half")
    (tmp_path / "state-000002.safetensors.sha256").write_text("of a file that was not written")
    assert Checkpoints(tmp_path).read()["epoch"] == 1
    Checkpoints(tmp_path).write({"epoch": 2})
    Checkpoints(tmp_path).write({"epoch": 3})
    assert Checkpoints(tmp_path).read()["epoch"] == 3
    assert not list(tmp_path.glob(".state*"))


def test_a_run_can_be_resumed_from_the_mirror_in_another_folder(tmp_path):
    folder, mirror, other = tmp_path / "run", tmp_path / "mirror", tmp_path / "other"
    for epoch in range(3):
        Checkpoints(folder, mirror).write({"epoch": epoch})
    assert len(list(mirror.glob("*.safetensors"))) == 2
    checkpoints = Checkpoints(other, mirror)
    checkpoints.copy_from_mirror()
    assert checkpoints.read()["epoch"] == 2
    checkpoints.remove()
    assert not mirror.exists()
    assert not other.exists()


def test_an_unavailable_mirror_is_logged_and_does_not_stop_training(tmp_path, caplog):
    (tmp_path / "mirror").write_text("a file instead of a folder")
    Checkpoints(tmp_path / "run", tmp_path / "mirror").write({"epoch": 1})
    assert "the checkpoint is not in the mirror" in caplog.text
    assert Checkpoints(tmp_path / "run").read()["epoch"] == 1


def test_a_damaged_file_in_the_mirror_is_logged(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fastcxr.training.checkpoints.compute_sha256", lambda _: "0" * 64)
    Checkpoints(tmp_path / "run", tmp_path / "mirror").write({"epoch": 1})
    assert "the written file has another checksum" in caplog.text
