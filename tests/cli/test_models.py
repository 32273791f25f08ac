"""The commands predict, explain, models and cache."""

import csv
import json
import os
import re
from pathlib import Path

import pytest
from sample_images import make_dicom, make_reference, save_dicom

from fastcxr.cli.model_lists import format_encoder, make_encoder_commands
from fastcxr.data.cache.features import open_feature_array
from fastcxr.data.cache.images import open_image_cache
from fastcxr.models.bundle import load_model
from fastcxr.models.encoders import ENCODERS
from fastcxr.models.registry import describe_encoder


def test_predict_writes_one_row_per_file_and_an_error_for_each_unreadable_file(call, finished, tmp_path):
    run, data, _ = finished
    (tmp_path / "new").mkdir()
    good = sorted((data / "haze").glob("*.png"))[:3]
    for file in good:
        (tmp_path / "new" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "new" / "broken.png").write_bytes(good[0].read_bytes()[:600])
    done = call("predict", run, "new", good[0], "--csv", tmp_path / "out.csv", where=tmp_path)
    assert done.returncode == 2, "some files could not be read"
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    new = sorted(f"new/{name}" for name in [*(f.name for f in good), "broken.png"])
    assert [row["path"] for row in rows] == [*new, good[0].name]
    bad = [row for row in rows if row["error"]]
    assert [row["path"] for row in bad] == ["new/broken.png"]
    assert "FCX-E103" in bad[0]["error"]
    assert sum(float(rows[0][name]) for name in rows[0] if name.startswith("prob_")) == pytest.approx(1)
    assert "4 images classified, 1 unreadable" in done.stderr


def test_predict_without_a_file_writes_to_standard_output(call, finished):
    run, data, _ = finished
    done = call("predict", run, data / "clear")
    assert done.returncode == 0
    assert len(list(csv.DictReader(done.stdout.splitlines()))) == 20


def test_predict_with_hashed_names_writes_the_same_rows_without_names(call, finished):
    run, data, _ = finished
    plain, hashed = call("predict", run, data / "clear"), call("predict", run, data / "clear", "--hash-names")
    tables = [list(csv.DictReader(done.stdout.splitlines())) for done in (plain, hashed)]
    for one, other in zip(*tables, strict=True):
        assert one.pop("path") != other.pop("path") and one.pop("source") != other.pop("source")
        assert one == other
    assert "clear/" not in hashed.stdout + hashed.stderr and ".png" not in hashed.stdout + hashed.stderr


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_a_file_named_after_its_patient_causes_a_warning(call, finished, tmp_path, command):
    save_dicom(tmp_path / "zzdoe.dcm", make_dicom(make_reference(), PatientName="ZZDOE^ZZJOHN"))
    done = call(command, finished[0], "zzdoe.dcm", where=tmp_path)
    assert done.returncode == 0
    assert "FCX-W215 1 image: the path contains the patient name or the birth date" in done.stderr


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_an_empty_image_argument_is_an_error(call, finished, command):
    run, data, _ = finished
    done = call(command, run, "", where=data)
    assert done.returncode == 64
    assert "FCX-E024: an image argument is empty. Pass a file or a folder; . is the current folder" in done.stderr


def test_explain_writes_a_page_a_table_and_maps_and_a_row_for_each_unreadable_file(call, finished, tmp_path):
    run, data, _ = finished
    (tmp_path / "broken.png").write_bytes(b"no image")
    good = sorted((data / "haze").glob("*.png"))[:2]
    done = call("explain", run, *good, "broken.png", "--class", "opacity", "--out", "maps", where=tmp_path)
    assert done.returncode == 2, "one file could not be read"
    assert done.stdout.strip() == str(Path("maps", "explain.html"))
    assert "2 images explained, 1 unreadable" in done.stderr
    with (tmp_path / "maps" / "saliency.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows if row["error"]] == ["broken.png"]
    assert {row["class"] for row in rows if row["path"] == good[0].name} >= {"opacity"}
    before = (tmp_path / "maps" / "explain.html").read_bytes()
    assert call("report", tmp_path / "maps").returncode == 0
    assert (tmp_path / "maps" / "explain.html").read_bytes() == before
    for row in rows:
        assert bool(row["file"]) == (not row["note"]), "a file for each map, or the reason why there is none"
        assert not row["file"] or (tmp_path / "maps" / row["file"]).is_file()


def test_explain_lists_the_classes_if_an_unknown_class_is_given(call, finished, tmp_path):
    run, data, _ = finished
    done = call("explain", run, data / "haze", "--class", "opacitty", "--out", tmp_path / "maps")
    assert done.returncode == 64
    assert "no class called 'opacitty'. Did you mean 'opacity'? Choose from clear, haze, opacity" in done.stderr
    assert not (tmp_path / "maps").exists()


@pytest.mark.slow
@pytest.mark.needs("openvino")
def test_openvino_predicts_the_same_probabilities_as_torch(call, finished):
    run, data, _ = finished
    tables = [call("predict", run, data / "clear", "--engine", name).stdout for name in ("torch", "openvino")]
    eager, graph = (list(csv.DictReader(table.splitlines())) for table in tables)
    assert [row["path"] for row in eager] == [row["path"] for row in graph]
    for one, other in zip(eager, graph, strict=True):
        assert float(one["prob_clear"]) == pytest.approx(float(other["prob_clear"]), abs=0.02)


@pytest.mark.parametrize(("words", "line"), [((), None), (("--precision", "fp32"), "precision: float32 on cpu")])
def test_predict_prints_its_precision_and_accepts_another(call, finished, words, line):
    run, data, _ = finished
    done = call("predict", run, data / "clear", *words, "--device", "cpu")
    trained = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[load_model(run, device="cpu").precision]
    assert (line or f"precision: {trained} on cpu") in done.stderr.splitlines()


@pytest.mark.parametrize("command", ["predict", "explain", "evaluate"])
def test_a_missing_device_is_an_error_of_one_line(call, finished, command):
    run, data, _ = finished
    done = call(command, run, *(["--data"] if command == "evaluate" else []), data, "--device", "cuda:77")
    assert "device 'cuda:77' is not available" in done.stderr.splitlines()[-1]


def test_openvino_rejects_a_gpu(call, finished):
    done = call("predict", finished[0], finished[1] / "clear", "--engine", "openvino", "--device", "cuda")
    assert "Leave one of them out" in done.stderr.splitlines()[-1]


def test_models_lists_parameters_size_and_weights(call):
    lines = call("models", "vgg16").stdout.splitlines()
    assert lines[1].split() == ["vgg16", "timm", "138.4", "M", "224", "yes"]
    assert any(line.startswith("torchvision:vgg16 ") for line in lines)


def test_models_chest_lists_the_encoders_with_access_and_licence(call):
    lines = call("models", "--chest").stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:] if not line.startswith(" ")}
    assert list(rows) == list(ENCODERS)
    assert rows["rad-dino"][:4] == ["86.6", "M", "518", "open"]
    assert rows["chexzero"][:5] == ["87.5", "M", "-", "by", "hand"]
    following = {
        name: lines[number + 1] for number, line in enumerate(lines[1:], 1) if (name := line.split()[0]) in rows
    }
    assert following["ark6"] == "    licence: Arizona State University: non-commercial research, patent pending"
    assert following["biomedclip"] == f"    access, licence: see {ENCODERS['biomedclip'].page}"
    assert all(len(line) <= 80 for line in lines if "https://" not in line)
    assert len(call("models", "*eva*", "--chest").stdout.splitlines()) == 1 + 3 * 2


def test_the_exact_name_of_an_encoder_shows_its_facts_and_the_command_that_trains_with_it(call):
    text = call("models", "rad-dino").stdout
    facts = read_facts(text)
    assert (facts["image size"], facts["mean"], facts["std"]) == ("518 px", "0.5307", "0.2583")
    assert facts["licence"].startswith("MIT") and facts["access"].startswith("open")
    assert facts["interpolation"].startswith("see https://huggingface.co/microsoft/rad-dino") and "bicubic" not in text
    assert facts["read on"].startswith(
        "https://huggingface.co/microsoft/rad-dino (26 and 27 November 2026: licence, access"
    )
    assert facts["reported"].endswith("(arXiv:2505.10823)")
    assert "  fastcxr train rad-dino --data DIR\n" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert read_facts(call("models", "chest:rad-dino").stdout) == facts
    by_hand = call("models", "chexfound").stdout
    assert by_hand.endswith("it:\n  fastcxr train chexfound --data DIR --weights teacher_checkpoint.pth\n")


def test_the_facts_of_an_encoder_fit_a_narrow_terminal(call, monkeypatch):
    wide = read_facts(call("models", "ark6").stdout)
    monkeypatch.setenv("COLUMNS", "60")
    text = call("models", "ark6").stdout
    assert read_facts(text) == wide
    assert all(len(line) <= 60 for line in text.partition("train with it:")[0].splitlines() if "https://" not in line)


def read_facts(text: str) -> dict[str, str]:
    """Return the facts of `models NAME`, with continued lines joined."""
    facts, label = {}, ""
    for line in (line for line in text.splitlines() if line.startswith("  ")):
        label = line[:18].strip() or label
        facts[label] = f"{facts.get(label, '')} {line[18:]}".strip()
    return facts


@pytest.mark.parametrize("name", ENCODERS)
def test_a_fact_of_an_encoder_that_was_not_read_is_not_printed(name):
    encoder, lines = ENCODERS[name], list(format_encoder(describe(name)))
    facts = read_facts("\n".join(lines))
    labels = {"licence": ["licence"], "image_size": ["image size"], "normalization": ["mean", "std"]}
    for fact, names in labels.items():
        for label in names:
            assert facts[label].startswith("see https://") == (fact not in encoder.read_on), label
    assert facts["interpolation"].startswith("see https://")
    assert not any(len(line) > 80 for line in lines if "https://" not in line and ".pt" not in line)


def describe(name: str) -> dict:
    facts = describe_encoder(ENCODERS[name])
    return facts | {"train": make_encoder_commands(facts)}


def test_the_facts_of_an_encoder_are_a_json_document(call):
    facts = json.loads(call("models", "medsiglip", "--json").stdout)
    assert facts["normalization"] == {"value": None, "page": ENCODERS["medsiglip"].page, "read": None}
    assert facts["access"]["value"] == "gated" and facts["access"]["read"] == "26 and 27 November 2026"
    assert facts["train"][0] == "fastcxr train medsiglip --data DIR"
    rows = json.loads(call("models", "--chest", "--json").stdout)
    assert [row["name"] for row in rows] == list(ENCODERS) and rows[0]["native_size"] == 518
    row = next(row for row in rows if row["name"] == "medsiglip")
    assert facts["cached"] is row["cached"] and bool(facts["cached_file"]) == facts["cached"]


def test_the_exact_name_of_a_network_of_timm_is_a_list(call):
    assert call("models", "resnet18").stdout.splitlines()[0].startswith("name ")


def test_the_cache_is_shown_and_cleared(call, toy_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "the cache is empty" in call("cache").stderr
    files = sorted(map(str, toy_folder.glob("*/*.png")))
    open_image_cache(files, 48)
    used = open_image_cache(files, 200)
    shown = call("cache")
    assert shown.stdout.strip() == str(tmp_path / "fastcxr" / "images")
    assert [line.split()[:3] for line in shown.stderr.splitlines()[1:]] == [["200", "px", "30"], ["48", "px", "30"]]
    cleared = call("cache", "--clear").stderr
    assert re.search(r"freed 0\.\d MB\n", cleared)
    assert "in use by a running process, not removed" in cleared and "200 px" in cleared and "48 px" not in cleared
    assert used.read([0]).any()
    del used
    assert re.search(r"freed 1\.\d MB\n", call("cache", "--clear").stderr)
    assert "the cache is empty" in call("cache").stderr


def test_cached_features_are_one_row_and_are_cleared(call, toy_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, then in (("a", 1_000_000_000), ("b", 1_600_000_000)):
        with open_feature_array(name, (1000, 700)) as array:
            array.values[:] = 1
            array.finish_rows(1000)
        file = next((tmp_path / "fastcxr" / "features").glob(f"{name}-*.npy"))
        os.utime(file, (then, then))
    row = call("cache").stderr.splitlines()[-1].split()
    assert row[:4] == ["features", "2", "files", "5.6"]
    assert row[4] in ("2020-09-13", "2020-09-14"), "the last use of any"
    with open_feature_array("c", (1000, 700)) as array:
        array.finish_rows(10)
        assert "unfinished features" in call("cache", "--clear").stderr, "in use"
    assert call("cache").stderr.splitlines()[-1].split()[:5] == ["unfinished", "features", "1", "file", "2.8"]
    open_image_cache(sorted(map(str, toy_folder.glob("*/*.png"))), 48)
    assert [line.split()[0] for line in call("cache").stderr.splitlines()] == ["size", "48", "unfinished"]
    assert re.search(r"freed [23]\.\d MB\n", call("cache", "--clear").stderr)
    assert "the cache is empty" in call("cache").stderr
    assert not (tmp_path / "fastcxr" / "features").exists()


def test_embed_writes_a_row_for_each_readable_image(call, finished, tmp_path):
    run, data, _ = finished
    (tmp_path / "new").mkdir()
    for file in sorted((data / "haze").glob("*.png"))[:3]:
        (tmp_path / "new" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "new" / "broken.png").write_bytes(b"no image")
    done = call("embed", run, "new", "--to", "features.npz", where=tmp_path)
    assert done.returncode == 2, "one file could not be read"
    assert done.stdout == "features.npz\n"
    assert "broken.png" in done.stderr and "3 rows with vectors of " in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("written to features.npz, 1 unreadable")
    document = json.loads(call("embed", run, "new", "--to", "features.npz", "--json").stdout)
    counts = [document[name] for name in ("file", "n_images", "n_unreadable")]
    assert counts == ["features.npz", 3, 1] and [one["path"] for one in document["unreadable"]] == ["broken.png"]
    assert document["metadata"]["run"] == "run" and document["metadata"]["dimension"] == document["n_features"]


@pytest.mark.parametrize(
    ("note", "text"),
    [
        ("352 of 700 images are done", "interrupted: 352 of 700 images are done. Repeat the command to continue"),
        (None, "interrupted. Repeat the command"),
    ],
)
def test_an_interrupted_embed_command_states_what_is_done(call, toy_folder, monkeypatch, note, text):
    def stop(*args, **kwargs):
        interrupt = KeyboardInterrupt()
        if note:
            interrupt.add_note(note)
        raise interrupt

    monkeypatch.setattr("fastcxr.workflows.embed.embed", stop)
    done = call("embed", "resnet18", "toys", "--to", "x.npz", where=toy_folder.parent)
    assert done.returncode == 130 and done.stderr.splitlines()[-1] == f"fastcxr: {text}"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["no_such_network", "toys", "--to", "x.npz"], "unknown backbone 'no_such_network'"),
        (["resnet18", "--to", "x.npz"], "no images given"),
        (["resnet18", "toys", "--to", "x.csv"], "does not end in .parquet or .npz"),
        (["resnet18", "toys"], "--to has no value"),
        ([], "Example: fastcxr embed rad-dino my_xrays --to"),
    ],
)
def test_an_invalid_embed_command_is_an_error_of_one_line(call, toy_folder, words, text):
    done = call("embed", *words, where=toy_folder.parent)
    assert done.returncode == 64 or "no images" in text
    assert text in done.stderr.splitlines()[-1]
