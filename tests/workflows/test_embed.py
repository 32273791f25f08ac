"""Feature vectors of an encoder and of a run, their files, and the choice between datasets and plain images."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tiny_encoders import TINY_ENCODERS
from tiny_network import NAME
from toy_findings import write_finding_toys
from toy_images import write_toys
from training_probes import RECIPE, SILENT, fit, make

from fastcxr import embed
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.manifest import read_manifest
from fastcxr.errors import BadImagesError, DataError, InputMissingError, OutputError, RecipeError
from fastcxr.models import backbones, encoders
from fastcxr.models.bundle import save_model
from fastcxr.models.heads import find_head
from fastcxr.models.preprocessing import InputSpec, normalize
from fastcxr.training import feature_cache
from fastcxr.training.feature_cache import make_feature_cache
from fastcxr.workflows import embed as module_under_test

SMALL = {"image_size": 64, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def learner(toy_manifest):
    """A learner with a fitted linear probe."""
    return fit(toy_manifest)[0]


@pytest.fixture(scope="module")
def weights(learner, tmp_path_factory) -> Path:
    """A weights file of the backbone of the learner."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    state = learner.model.state_dict()
    save_file({name: value.contiguous() for name, value in state.items() if not name.startswith("fc.")}, path)
    return path


@pytest.fixture(scope="module")
def run(learner, tmp_path_factory) -> Path:
    """A run folder with the model of the learner."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    folder.mkdir()
    save_model(folder, learner, RECIPE, {"precision": "fp32"})
    return folder


@torch.no_grad()
def compute_last_features(network, images, input_spec) -> np.ndarray:
    batch = normalize(torch.from_numpy(images)[:, None], input_spec)
    network = network.cpu().eval()
    return network.forward_head(network.forward_features(batch), pre_logits=True).numpy()


@pytest.fixture(scope="module")
def expected(learner) -> np.ndarray:
    """The pooled output of the last layer for each toy image."""
    state = learner.dls.fastcxr
    images = state.image_cache.read(range(len(state.image_cache.files)))
    return compute_last_features(learner.model, images, state.input_spec)


def test_an_encoder_gives_the_pooled_features_of_its_last_layer_with_patients_and_labels(
    toy_folder, toy_manifest, weights, expected
):
    found = embed(NAME, toy_folder, weights=str(weights), **SMALL)
    assert list(found.table) == ["path", "patient", "label", "source"]
    for name in ("path", "patient", "label", "source"):
        assert found.table[name].tolist() == toy_manifest[name].tolist()
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
    metadata = found.metadata
    assert metadata["encoder"] == f"timm:{NAME}" and metadata["weights"] == "tiny.safetensors"
    assert len(metadata["weights_sha256"]) == 64 and metadata["precision"] == "fp32"
    assert (metadata["image_size"], metadata["mean"], metadata["dimension"]) == (64, [0.5] * 3, 8)


@pytest.mark.parametrize("name", TINY_ENCODERS)
def test_a_chest_encoder_gives_the_input_of_its_linear_head(toy_manifest, name, monkeypatch):
    for module in (encoders, backbones):
        monkeypatch.setattr(module, "ENCODERS", dict(TINY_ENCODERS))
    networks, make_plain_network = [], backbones.make_network

    def make_and_keep(*given):
        networks.append(make_plain_network(*given))
        return networks[-1]

    monkeypatch.setattr(module_under_test, "make_network", make_and_keep)
    found = embed(name, toy_manifest[:5], weights="none", device="cpu", precision="fp32")
    encoder, inputs = TINY_ENCODERS[name], []
    find_head(networks[-1]).register_forward_pre_hook(lambda head, given: inputs.append(given[0]))
    images = open_image_cache(toy_manifest["file"][:5], encoder.image_size).read(range(5))
    spec = InputSpec(image_size=encoder.image_size, mean=encoder.mean, std=encoder.std)
    with torch.no_grad():
        networks[-1].eval()(normalize(torch.from_numpy(images)[:, None], spec))
    np.testing.assert_allclose(found.vectors, inputs[0].flatten(1), atol=1e-4)
    assert found.metadata["encoder"] == f"chest:{name}" and found.metadata["mean"] == list(encoder.mean)
    assert found.metadata["image_size"] == encoder.image_size


@pytest.mark.parametrize("strategy", ["linear_probe", "full"])
def test_a_run_gives_the_vectors_of_its_network(toy_folder, toy_manifest, tmp_path, strategy):
    recipe = RECIPE.replace(strategy=strategy)
    learner = make(toy_manifest, recipe)
    save_model(tmp_path, learner, recipe, {"precision": "fp32"})
    found = embed(tmp_path, toy_folder, device="cpu", precision="fp32")
    state = learner.dls.fastcxr
    images = state.image_cache.read(range(30))
    np.testing.assert_allclose(found.vectors, compute_last_features(learner.model, images, state.input_spec), atol=1e-5)
    assert found.metadata["run"] == tmp_path.name and found.metadata["weights"] == "model.safetensors"
    checksum = json.loads((tmp_path / "model.json").read_text())["files"]["model.safetensors"]
    assert found.metadata["weights_sha256"] == checksum


def test_a_run_of_a_chest_encoder_has_its_licence_and_citation(toy_manifest, run, tmp_path):
    assert "licence" not in embed(run, toy_manifest[:2], device="cpu").metadata
    folder, terms = shutil.copytree(run, tmp_path / "run"), {"licence": "MIT (page)", "citation": "EVA-X, 2025"}
    model_json = json.loads((folder / "model.json").read_text())
    model_json["backbone"] |= terms
    (folder / "model.json").write_text(json.dumps(model_json))
    metadata = embed(folder, toy_manifest[:2], device="cpu").metadata
    assert {key: metadata[key] for key in terms} == terms


def test_vectors_and_a_linear_probe_share_their_computation(toy_folder, weights, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    filled, fill = [], feature_cache.fill_feature_cache
    monkeypatch.setattr(
        feature_cache,
        "fill_feature_cache",
        lambda arrays, *rest: (filled.append([array.n_finished for array in arrays]), fill(arrays, *rest)),
    )
    first, again = (embed(NAME, toy_folder, weights=str(weights), **SMALL) for _ in range(2))
    assert np.array_equal(first.vectors, again.vectors)
    manifest = read_manifest(toy_folder).assign(split=["train", "valid"] * 15)
    recipe = RECIPE.replace(weights=str(weights), device="cpu")
    make_feature_cache(make(manifest, recipe), recipe, SILENT)
    embed(run, toy_folder, device="cpu", precision="fp32")
    assert filled == [[0], [30, 0]], "the probe computes only the flipped images, the run of these weights nothing"


@pytest.mark.needs("pyarrow")
def test_a_parquet_file_has_a_row_for_each_image_and_the_metadata(toy_folder, run, tmp_path):
    import pyarrow.parquet

    found = embed(run, toy_folder, tmp_path / "features.parquet", device="cpu")
    table = pd.read_parquet(tmp_path / "features.parquet")
    assert list(table) == ["path", "patient", "label", "source", "vector"]
    assert table["path"].tolist() == found.table["path"].tolist()
    assert table["patient"].tolist() == found.table["patient"].tolist()
    assert np.array_equal(np.stack(table["vector"]), found.vectors) and table["vector"][0].dtype == np.float32
    schema = pyarrow.parquet.read_schema(tmp_path / "features.parquet")
    assert json.loads(schema.metadata[b"fastcxr"]) == found.metadata


def test_an_npz_file_has_the_same_arrays_and_replaces_an_older_file(toy_folder, run, tmp_path):
    (tmp_path / "features.npz").write_text("old")
    found = embed(run, toy_folder, tmp_path / "features.npz", device="cpu")
    with np.load(tmp_path / "features.npz") as arrays:
        assert np.array_equal(arrays["vector"], found.vectors) and arrays["vector"].dtype == np.float32
        for name in ("path", "patient", "label", "source"):
            assert arrays[name].tolist() == found.table[name].tolist()
        assert json.loads(str(arrays["metadata"])) == found.metadata
    assert [path.name for path in tmp_path.iterdir()] == ["features.npz"]


@pytest.mark.needs("pyarrow")
def test_findings_have_a_column_each(run, tmp_path):
    table = write_finding_toys(tmp_path / "toys")
    found = embed(run, table, tmp_path / "features.parquet", device="cpu")
    embed(run, table, tmp_path / "features.npz", device="cpu")
    manifest = read_manifest(table, only_test=True)
    columns = [name for name in manifest if name.startswith("finding_")]
    stored = pd.read_parquet(tmp_path / "features.parquet")
    assert list(stored) == ["path", "patient", "label", "source", *columns, "vector"]
    expected = manifest[columns].replace(-2, 0).to_numpy(float, na_value=np.nan)
    assert np.isnan(expected).any() and (expected == 1).any()
    np.testing.assert_array_equal(stored[columns].to_numpy(float, na_value=np.nan), expected)
    np.testing.assert_array_equal(found.table[columns].to_numpy(float, na_value=np.nan), expected)
    with np.load(tmp_path / "features.npz") as arrays:
        np.testing.assert_array_equal(arrays["findings"], expected)
        assert json.loads(str(arrays["metadata"]))["findings"] == [name.removeprefix("finding_") for name in columns]


@pytest.mark.parametrize("kind", ["dataset", "images"])
def test_unreadable_images_are_named_and_have_no_row(toy_folder, run, tmp_path, kind):
    shutil.copytree(toy_folder, tmp_path / "toys")
    bad = sorted((tmp_path / "toys" / "haze").iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:500])
    folder = tmp_path / "toys" if kind == "dataset" else bad.parent
    found = embed(run, folder, device="cpu")
    name = f"haze/{bad.name}" if kind == "dataset" else bad.name
    assert [error.path for error in found.errors] == [name]
    assert len(found.table) == len(found.vectors) == (29 if kind == "dataset" else 9)
    assert name not in found.table["path"].tolist()
    readable = embed(run, [path for path in sorted(bad.parent.iterdir()) if path != bad], device="cpu")
    is_haze = found.table["path"].str.contains(bad.parent.name) if kind == "dataset" else np.ones(9, bool)
    np.testing.assert_allclose(found.vectors[is_haze], readable.vectors, atol=1e-6)


def test_without_any_readable_image_nothing_is_written(run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(BadImagesError, match="bad.png"):
        embed(run, tmp_path / "bad.png", tmp_path / "features.npz", device="cpu")
    assert not (tmp_path / "features.npz").exists()


def test_images_and_flat_folders_have_no_patients_and_labels(toy_folder, run):
    folder = toy_folder / "haze"
    found = embed(run, folder, device="cpu")
    assert found.table["path"].tolist() == sorted(path.name for path in folder.iterdir())
    assert set(found.table["patient"]) == set(found.table["label"]) == {""}
    assert set(found.table["source"]) == {"haze"}
    files = [str(path) for path in sorted(folder.iterdir())]
    assert np.array_equal(embed(run, files, device="cpu").vectors, found.vectors)


def test_a_manifest_is_used_as_it_is(run, toy_manifest):
    found = embed(run, toy_manifest[5:8], device="cpu")
    assert found.table["path"].tolist() == toy_manifest["path"][5:8].tolist()


def test_hashed_names_hide_the_files(toy_folder, run):
    plain, hashed = (embed(run, toy_folder, hash_names=hide, device="cpu") for hide in (False, True))
    assert np.array_equal(plain.vectors, hashed.vectors)
    assert hashed.table["path"].str.startswith("file-").all() and hashed.table["path"].is_unique
    assert hashed.table["label"].equals(plain.table["label"])


def write_table(folder: Path, columns: str) -> Path:
    """Write a table of other columns beside the images of a folder."""
    rows = [f"{file.name},1" for file in sorted(folder.glob("*.png"))]
    (folder / "table.csv").write_text("\n".join([columns, *rows]))
    return folder


def test_an_ambiguous_path_is_an_error_of_one_line(toy_folder, run, tmp_path):
    named = write_table(shutil.copytree(toy_folder / "haze", tmp_path / "named"), "image_name,age")
    with pytest.raises(DataError, match=r"the table table.csv names these images\. .*pass the images") as error:
        embed(run, named, device="cpu")
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"haze has no labels, and .*toys is a dataset with labels"):
        embed(run, [toy_folder / "haze", toy_folder], device="cpu")
    only = write_toys(tmp_path / "only", labels=("haze",), per_class=2)
    shutil.copy(next(only.glob("*/*.png")), only / "first.png")
    text = (
        r"only one class, the folder 'haze'. Pass `data_format='folders'` if this is the label. "
        r"For vectors without labels, pass the folders that contain the images"
    )
    with pytest.raises(DataError, match=text):
        embed(run, only, device="cpu")
    assert set(embed(run, only, device="cpu", data_format="folders").table["label"]) == {"haze"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputMissingError, match=r"0 images.* For vectors without labels, pass the folders"):
        embed(run, tmp_path / "empty", device="cpu")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weights": "none"}, "a run has its own weights and image size"),
        ({"image_size": 64}, "a run has its own weights and image size"),
        ({"epochs": 3}, "embed has no option called 'epochs'"),
    ],
)
def test_options_without_meaning_are_errors(toy_folder, run, options, text):
    with pytest.raises(RecipeError, match=text):
        embed(run, toy_folder, **options)


def test_a_run_with_folds_is_refused(toy_folder, run, tmp_path):
    for fold in (1, 2):
        shutil.copytree(run, tmp_path / f"fold-{fold}")
    with pytest.raises(InputMissingError, match="2 subfolders are runs with a model. Pass one of them"):
        embed(tmp_path, toy_folder)


def test_a_name_that_is_a_backbone_and_a_run_is_refused(toy_folder, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / NAME)
    with pytest.raises(RecipeError, match=f"Pass ./{NAME} for the run"):
        embed(NAME, toy_folder)
    assert embed(f"./{NAME}", toy_folder, device="cpu").metadata["run"] == NAME
    with pytest.raises(InputMissingError, match="Pass a run folder, or the name of a backbone"):
        embed("runs/missing", toy_folder)
    with pytest.raises(RecipeError, match="Did you mean 'resnet18'"):
        embed("resnet81", toy_folder)


def test_a_file_that_cannot_be_written_is_an_error_before_any_computation(toy_folder, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match=r"does not end in .parquet or .npz"):
        embed("no_network", toy_folder, tmp_path / "features.csv")
    with pytest.raises(OutputError, match="this folder does not exist"):
        embed("no_network", toy_folder, tmp_path / "missing" / "features.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(OutputError, match=r"folder.npz: cannot be written \(Is a directory\)"):
        embed("no_network", toy_folder, tmp_path / "folder.npz")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(OutputError, match=r"FCX-E203.*pip install 'fastcxr\[parquet\]'"):
        embed("no_network", toy_folder, tmp_path / "features.parquet")
