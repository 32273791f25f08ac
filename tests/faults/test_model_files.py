"""Tests that hostile or damaged model files are rejected in one line and run no code."""

import argparse
import os
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from hostile_files import (
    CHECKPOINTS,
    FACTS,
    LINKS,
    NONSENSE,
    WEIGHTS,
    Case,
    change_facts,
    draw_cases,
    packed_checkpoint,
    write_good_model,
)
from torch.torch_version import TorchVersion

from fastcxr.errors import FastcxrError, WeightsError
from fastcxr.io.files import compute_sha256
from fastcxr.models.bundle import load_model
from fastcxr.models.checkpoint_file import read_state_dict


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = write_good_model(tmp_path_factory.mktemp("good") / "run")
    assert len(load_model(folder).labels) == 3
    return folder


def read_error(case: Case) -> str:
    with pytest.raises(FastcxrError) as caught:
        case.open()
    message = str(caught.value)
    assert "\n" not in message, case
    assert caught.value.fix, case
    return message


def test_every_type_of_hostile_file_is_rejected_and_runs_no_code(good, tmp_path):
    n_types = len([*WEIGHTS, *FACTS, *LINKS, *CHECKPOINTS])
    for case in draw_cases(good, tmp_path, 2 * n_types, seed=5):
        read_error(case)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_invalid_values_in_model_json_are_rejected_before_a_network_is_built(good, tmp_path, name, value, monkeypatch):
    if name in ("input_spec", "labels", "head") or value == {"library": "timm", "name": "vit_giant_patch14_dinov2"}:
        monkeypatch.setattr("fastcxr.models.bundle.make_network", lambda *_: pytest.fail("a network was built"))
    (tmp_path / "run").mkdir()
    for file in good.iterdir():
        (tmp_path / "run" / file.name).write_bytes(file.read_bytes())
    change_facts(tmp_path / "run", lambda facts: facts.update({name: value}))
    read_error(Case(name, tmp_path / "run"))


def test_a_link_to_a_file_in_the_folder_is_accepted(good, tmp_path):
    (tmp_path / "kept").mkdir()
    for file in good.iterdir():
        (tmp_path / "kept" / file.name).write_bytes(file.read_bytes())
        (tmp_path / file.name).symlink_to(tmp_path / "kept" / file.name)
    assert len(load_model(tmp_path).labels) == 3


@pytest.mark.parametrize("name", ["../outside", "{}/outside", "run/../../outside"])
def test_a_path_outside_the_folder_is_rejected(good, tmp_path, name):
    folder = shutil.copytree(good, tmp_path / "run")
    (tmp_path / "outside").write_bytes(b"x")
    listed = {name.format(tmp_path): compute_sha256(tmp_path / "outside")}
    change_facts(folder, lambda facts: facts["files"].update(listed))
    assert "invalid value of 'files'" in read_error(Case("path", folder))


def test_a_compressed_checkpoint_is_rejected_before_decompression(tmp_path, monkeypatch):
    path = packed_checkpoint(tmp_path, None, None)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was decompressed"))
    with pytest.raises(WeightsError, match="decompressed size is unknown.*Copy or download"):
        read_state_dict(path)


def test_a_fastai_export_is_rejected_with_a_fix(tmp_path):
    (tmp_path / "export.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match="which can run code when it is loaded.*load_learner.*state_dict"):
        read_state_dict(tmp_path / "export.pkl")


def test_a_vulnerable_torch_version_reads_no_checkpoint(tmp_path, monkeypatch):
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1"))
    with pytest.raises(WeightsError, match="torch 2.9.1 can run code.*pip install 'torch>=2.10'"):
        read_state_dict(tmp_path / "w.pth")


def test_a_changed_bit_in_a_checkpoint_is_found_and_the_old_format_is_read(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[content.index(b"\0" * 3000) + 2000] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="wrong checksum of.*Copy or download"):
        read_state_dict(tmp_path / "w.pth")
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert read_state_dict(tmp_path / "w.pth")["w"].tolist() == [1, 1]


def test_options_and_numpy_numbers_beside_the_weights_are_read(tmp_path):
    beside = {"args": argparse.Namespace(lr=1e-3, layers=[1, 2]), "best": np.float64(0.9), "epoch": np.int64(3)}
    allowed = set(torch.serialization.get_safe_globals())
    for zipped in (True, False):
        torch.save({"w": torch.ones(2)} | beside, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        assert read_state_dict(tmp_path / "w.pth")["w"].tolist() == [1, 1]
    assert set(torch.serialization.get_safe_globals()) == allowed
    assert argparse.Namespace not in allowed


class Command:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("value", "name"), [(Fraction(1, 2), "fractions.Fraction"), (np.zeros(2), r"numpy\.\w+\.multiarray\._reconstruct")]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_another_class_is_refused_by_its_name(tmp_path, value, name, zipped):
    torch.save({"w": torch.ones(2), "other": value}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=rf"E206 .*other objects than tensors \({name}\), which can run code"):
        read_state_dict(tmp_path / "w.pth")


def test_a_call_of_the_system_is_refused_by_its_name_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it was run"))
    with monkeypatch.context() as patch:
        patch.setattr(os.system, "__module__", "posix")
        patch.setattr(os.system, "__qualname__", "system")
        patch.setattr("posix.system", os.system)
        torch.save({"args": argparse.Namespace(command=Command())}, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"E206 .*other objects than tensors \(posix.system\)"):
            read_state_dict(tmp_path / "w.pth")


def test_a_torchscript_archive_is_refused_with_its_own_advice(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="E206 .*TorchScript archive.*torch.jit.load"):
        read_state_dict(tmp_path / "w.pt")
