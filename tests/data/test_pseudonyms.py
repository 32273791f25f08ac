"""Tests of patient pseudonyms and their salt."""

import re
import subprocess
import sys

import pytest
from toy_datasets import write_file

from fastcxr.data.patients import find_salt_file, make_salt_id, pseudonymize, read_salt
from fastcxr.errors import DataError, OutputError


@pytest.fixture(autouse=True)
def config_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("FASTCXR_SALT", raising=False)
    return tmp_path / "config"


def test_a_pseudonym_depends_on_salt_and_patient_and_reveals_neither():
    one, two = b"first secret", b"second secret"
    assert re.fullmatch(r"dicom-[0-9a-f]{4}-[0-9a-f]{16}", pseudonymize("ZZTESTID", one))
    assert pseudonymize("ZZTESTID", one) == pseudonymize(" ZZTESTID ", one) != pseudonymize("ZZTESTID2", one)
    assert pseudonymize("ZZTESTID", one).split("-")[1] == make_salt_id(one) != make_salt_id(two)


def test_the_salt_is_created_once_and_readable_only_by_its_owner(config_home):
    salt = read_salt()
    assert salt == read_salt()
    assert len(salt) >= 32
    assert find_salt_file() == config_home / "fastcxr/salt"
    assert find_salt_file().stat().st_mode & 0o777 == 0o600
    assert [file.name for file in (config_home / "fastcxr").iterdir()] == ["salt"]


def test_processes_that_start_together_use_one_salt():
    code = "from fastcxr.data.patients import read_salt; print(read_salt().decode())"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate()[0] for process in processes}) == 1
    assert read_salt()


def test_the_environment_variable_takes_precedence_over_the_file(config_home, monkeypatch):
    monkeypatch.setenv("FASTCXR_SALT", "shared by two machines")
    assert read_salt() == b"shared by two machines"
    assert not config_home.exists()


def test_a_relative_configuration_folder_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_salt_file() == tmp_path / ".config/fastcxr/salt"


def test_a_damaged_salt_and_an_unwritable_folder_are_rejected_with_a_fix(config_home, tmp_path):
    write_file(tmp_path / "config", "a file")
    with pytest.raises(OutputError, match="cannot be stored or read.*Set FASTCXR_SALT to a secret text"):
        read_salt()
    (tmp_path / "config").unlink()
    read_salt()
    write_file(find_salt_file(), "")
    with pytest.raises(DataError, match="is damaged. Restore the file, set FASTCXR_SALT"):
        read_salt()
