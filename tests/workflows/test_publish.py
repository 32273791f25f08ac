"""A run is published: what arrives at the hub, what a download gives, and what is refused."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hub_server import make_commit
from huggingface_hub import ModelCard
from published_run import add_folds, build_published_run, write_model
from random_classifiers import MULTI_SCALE, make_random_classifier, make_random_images
from safetensors.numpy import load_file

from fastcxr import load_model, pull, push
from fastcxr.config.recipe import Recipe
from fastcxr.errors import ArgumentTypeError, FastcxrError, HubError, InputMissingError, ModelError, RecipeError
from fastcxr.export.hub_card import TASK, find_base_model
from fastcxr.export.published_files import share_with_timm, write_model_files
from fastcxr.inference.torch_scorer import TorchScorer
from fastcxr.io.files import compute_sha256, read_json
from fastcxr.models.checkpoint_file import find_weights_file
from fastcxr.models.hub_download import MAX_BYTES
from fastcxr.models.preprocessing import normalize
from fastcxr.report.notices import Notice, make_notices
from fastcxr.report.run_reader import read_run_record
from fastcxr.report.shared_record import make_shared_record
from fastcxr.report.weights_notices import find_unknown_weights_overlap
from fastcxr.workflows import publish
from fastcxr.workflows.critical_notices import read_run_notices
from fastcxr.workflows.initial_model import describe_initial_model
from fastcxr.workflows.list_runs import describe_runs
from fastcxr.workflows.load_learner import load_learner_from_run
from fastcxr.workflows.load_scorer import load_scorer
from fastcxr.workflows.published_model import read_published_facts
from fastcxr.workflows.verify import list_unverified, verify

pytestmark = pytest.mark.usefixtures("few_draws")
REPO = "me/model"
FILES = {
    "README.md", "SHA256SUMS", "config.json", "metrics.json", "model.json", "model.safetensors", "ood.safetensors",
    "published.json", "recipe.json", "report-no-images.html",
}  # fmt: skip
IMAGES = make_random_images(4, 64, seed=3)


@pytest.fixture(scope="module")
def no_figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.report.run_page.make_run_figures", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory, few_draws, no_figures):
    """A run folder with identifiers in all files, and the texts that must not be published."""
    return build_published_run(tmp_path_factory.mktemp("planted") / "run")


TEXTS = ("render_image_free_report", "make_shared_card", "make_shared_metrics", "read_run_record")


@pytest.fixture(scope="module")
def run(planted):
    return planted[0]


@pytest.fixture(scope="module")
def run_texts(run):
    """The functions that read the tables of a run, which do so once in this module."""
    return {name: cache(getattr(publish, name)) for name in TEXTS}


@pytest.fixture
def known_texts(run, run_texts, monkeypatch):
    """Publish the texts of the planted run, also for a copy of its folder."""
    for name, function in run_texts.items():
        monkeypatch.setattr(publish, name, lambda folder, function=function: function(run))


@pytest.fixture(scope="module")
def staged(run, run_texts):
    """The files to publish, in a folder that exists until the end of the module."""
    with pytest.MonkeyPatch.context() as patch:
        for name, function in run_texts.items():
            patch.setattr(publish, name, function)
        with publish.stage_model(run, REPO) as staged:
            yield staged


@pytest.fixture(scope="module")
def files(staged):
    """The content of each published file, by its path."""
    return {name: (staged.folder / name).read_bytes() for name in staged.files}


@pytest.fixture
def staged_once(staged, monkeypatch):
    """Prepare the files of a push once for several tests, which are about the requests."""
    monkeypatch.setattr(publish, "validate_push", lambda run, repo, licence: repo)
    monkeypatch.setattr(publish, "stage_model", lambda run, repo, **_: nullcontext(replace(staged, repo=repo)))


@pytest.fixture
def published(hub, files):
    """The hub, with the published run."""
    hub.make_repo(REPO)
    hub.add_files(REPO, files)
    return hub


def find_leaks(contents, forbidden):
    texts = [text.encode() for text in forbidden]
    return {text for content in contents for text in texts if text in content}


def score(model):
    return TorchScorer(model).score(IMAGES).probability


@pytest.mark.usefixtures("known_texts")
def test_what_arrives_has_no_image_path_file_name_or_patient(hub, planted):
    folder, forbidden = planted
    published = push(folder, REPO, licence="Apache-2.0")
    files = hub.get_files(REPO)
    assert set(files) == set(published.files) == FILES
    assert hub.repos[REPO]["private"] is published.is_private is True
    assert find_leaks(files.values(), forbidden) == set()
    of_names = {text for text in forbidden if len(text) > 4}  # base64 has short texts by chance
    assert len(of_names) > 100
    assert find_leaks(hub.received, of_names) == set()
    metadata = ModelCard(files["README.md"].decode()).data
    assert (metadata.license, metadata.library_name, metadata.pipeline_tag) == ("apache-2.0", "fastcxr", TASK)
    results = {result.metric_type: (result.metric_value, result.dataset_split) for result in metadata.eval_results}
    expected = read_json(folder / "metrics.json")["test"]
    assert results["accuracy"] == (round(expected["accuracy"], 4), "test")
    assert results["roc_auc"] == (round(expected["auroc"]["macro"], 4), "test")
    assert metadata.eval_results[0].dataset_name == "dataset-of-a-study + dataset-of-a-study"
    card = files["README.md"].decode()
    assert "| clear | 0.300 |" in card
    assert "pip install fastcxr" not in card and "[Install fastcxr](https://github.com/fastcxr/fastcxr#readme)" in card
    assert "Its input is 8-bit gray, the same in its 3 channels, padded" in card
    assert ("Images per class (WARN)" in card) + ("Few images of a class" in card) <= 1  # one fact, stated once
    assert "weights-of-a-study.pth" in files["model.json"].decode()


@pytest.mark.parametrize("findings", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_trained_run_arrives_without_images_paths_and_patients(hub, request, findings):
    folder, data = request.getfixturevalue("finding_run" if findings else "toy_run")
    push(folder, REPO)
    images = [path.relative_to(data.parent).as_posix() for path in data.parent.rglob("*.png")]
    forbidden = {str(data.parent), str(folder), *images} | {Path(path).stem for path in images}
    forbidden |= {Path(path).name.partition("_")[0] for path in images if findings}  # patients
    forbidden |= {"data:image", "iVBORw0KGgo", "\x89PNG"}
    assert len(forbidden) > 60
    assert find_leaks(hub.get_files(REPO).values(), forbidden) == set()


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory, few_draws, no_figures, without_maps):
    """A run trained on one label per image, and a file of its data."""
    from toy_images import write_toys

    from fastcxr.workflows.train import run as train_run

    folder = tmp_path_factory.mktemp("trained")
    data = write_toys(folder / "toys")
    recipe = Recipe("tiny_test_resnet", data=str(data), weights="none", image_size=64, epochs=1, strategy="full")
    train_run(recipe.replace(batch_size=8, precision="fp32"), folder / "run")
    return folder / "run", data / "table.csv"


def test_a_download_gives_the_same_predictions_and_no_page(published, run, tmp_path):
    published.add_files(REPO, {
        "report.html": b"<script>", "evil.pkl": b"\x80", "code.py": b"", "fold-1/x.py": b"", "a/model.json": b"",
        "model.html": b"", ".git/config": b"",
    })  # fmt: skip
    pulled = pull(REPO, tmp_path / "pulled")
    names = {path.relative_to(pulled.folder).as_posix() for path in pulled.folder.rglob("*") if path.is_file()}
    assert names == FILES - {"report-no-images.html"}
    assert not any(name in request for request in published.requests for name in (".html", "evil", ".py", "/a/"))
    np.testing.assert_array_equal(score(load_model(pulled.folder)), score(load_model(run)))
    assert verify(pulled.folder) == ([], len(names) - 1)
    assert Recipe.from_json(pulled.folder).backbone == "mobilenetv2_100"


def test_the_name_on_the_hub_loads_the_model_also_without_a_connection(published, run, monkeypatch, caplog):
    expected = score(load_model(run))
    np.testing.assert_array_equal(score(load_model(f"hf://{REPO}")), expected)
    n_requests = len(published.requests)
    np.testing.assert_array_equal(score(load_model(Path(f"hf://{REPO}@main"))), expected)
    assert not [line for line in published.requests[n_requests:] if line.startswith("GET") and "/resolve/" in line]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    np.testing.assert_array_equal(score(load_model(f"hf://{REPO}")), expected)
    assert "cannot be reached" in caplog.text and "Using commit" in caplog.text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    np.testing.assert_array_equal(score(load_model(f"hf://{REPO}")), expected)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids requests .* does not have this model"):
        load_model("hf://me/other")


@pytest.mark.usefixtures("known_texts")
def test_a_dry_run_makes_no_request_and_needs_no_token(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    published = push(run, REPO, dry_run=True, public=True)
    assert set(published.files) == FILES
    assert published.files["model.safetensors"] > 1000
    assert (published.url, published.commit) == (None, None)
    assert hub.requests == []


def test_timm_loads_the_network_or_its_backbone_from_the_hub(published, run, tmp_path, monkeypatch):
    other = make_random_classifier(head=MULTI_SCALE)
    (tmp_path / "run").mkdir()
    write_model(tmp_path / "run", other)
    write_model_files(tmp_path / "run", tmp_path / "files")
    assert share_with_timm(other, tmp_path / "files") == "backbone"
    published.make_repo("me/other")
    published.add_files("me/other", {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()})
    download = partial(timm.models._hub.hf_hub_download, endpoint=published.url, cache_dir=tmp_path / "timm")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    model = load_model(run)
    batch = normalize(torch.from_numpy(IMAGES)[:, None], model.input_spec)
    with torch.no_grad():
        logits = timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()(batch)
        features = timm.create_model("hf-hub:me/other", pretrained=True).eval()(batch)
        np.testing.assert_allclose(logits.numpy(), model.network(batch).numpy(), atol=1e-5)
        expected = other.network.forward_features(batch).mean(dim=(2, 3))
    np.testing.assert_allclose(features.numpy(), expected.numpy(), atol=1e-5)
    weights = [path for path in (tmp_path / "files").glob("*.safetensors") if path.name != "ood.safetensors"]
    names = [name for path in weights for name in load_file(path)]
    assert sorted(names) == sorted(other.network.state_dict())  # no weights are published twice
    np.testing.assert_array_equal(score(load_model(tmp_path / "files")), score(other))


@pytest.mark.usefixtures("known_texts")
def test_a_run_with_folds_is_published_as_the_mean_of_its_models(hub, run, tmp_path):
    folds = add_folds(shutil.copytree(run, tmp_path / "run"))
    push(folds, REPO)
    files = set(hub.get_files(REPO))
    assert {f"fold-{n}/{name}" for n in (1, 2) for name in ("model.json", "model.safetensors")} < files
    assert "config.json" not in files and "model.json" not in files
    pulled = pull(REPO, tmp_path / "pulled").folder
    assert len(load_model(pulled).members) == 2
    np.testing.assert_allclose(score(load_model(pulled)), score(load_model(run)), atol=1e-9)


def change_weights(files):
    return {"model.safetensors": files["model.safetensors"][:-1] + b"\x01"}


def change_labels(files):
    return {"model.json": files["model.json"].replace(b'"clear"', b'"other"')}


def change_labels_and_checksum(files):
    """Give the model a label twice, with the right checksum."""
    changed = files["model.json"].replace(b'"haze"', b'"clear"')
    old, new = (hashlib.sha256(content).hexdigest().encode() for content in (files["model.json"], changed))
    return {"model.json": changed, "SHA256SUMS": files["SHA256SUMS"].replace(old, new)}


def change_thresholds(files):
    return {"model.json": files["model.json"].replace(b"0.3", b"0.9")}


def change_facts(files):
    return {"published.json": b"{}"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (change_weights, "model.safetensors does not have its checksum in SHA256SUMS"),
        pytest.param(change_labels, "model.json does not have its checksum in SHA256SUMS", marks=pytest.mark.slow),
        (change_labels_and_checksum, "hf://me/model model.json: invalid value of 'labels'"),
        (change_thresholds, "model.json does not have its checksum in SHA256SUMS"),
        pytest.param(change_facts, "does not have its checksum", marks=pytest.mark.slow),
        pytest.param(lambda files: {"SHA256SUMS": b"\xff"}, "SHA256SUMS is damaged", marks=pytest.mark.slow),
        pytest.param(
            lambda files: {"SHA256SUMS": b""}, "config.json does not have its checksum", marks=pytest.mark.slow
        ),
        (lambda files: {"SHA256SUMS": None}, "a published model without SHA256SUMS: its files cannot be checked"),
        (lambda files: {"metrics.json": None}, "metrics.json is missing, which SHA256SUMS lists"),
    ],
)
def test_a_tampered_download_is_refused_in_each_way_of_loading_it(published, files, tmp_path, change, problem):
    changed = files | change(files)
    assert changed != files
    published.repos[REPO]["commits"].append({name: data for name, data in changed.items() if data is not None})
    (tmp_path / "cloned").mkdir()
    for name, data in published.get_files(REPO).items():
        (tmp_path / "cloned" / name).write_bytes(data)
    with pytest.raises(ModelError, match=problem):
        pull(REPO, tmp_path / "new" / "pulled")
    assert not (tmp_path / "new").exists()
    of_a_folder = problem.removeprefix("hf://me/model model.json: ")
    loaders = (load_model, load_scorer, load_learner_from_run, find_weights_file)
    for load in loaders if "sha" in problem.lower() else loaders[:-1]:
        with pytest.raises(ModelError, match=of_a_folder):
            load(f"hf://{REPO}")
    for load in loaders[:-1]:
        with pytest.raises(ModelError, match=of_a_folder):
            load(tmp_path / "cloned")


def test_a_folder_of_another_downloader_works_like_that_of_pull(run, files, tmp_path):
    hidden = tmp_path / ".cache" / "huggingface" / "download" / "model.json.metadata"
    hidden.parent.mkdir(parents=True)
    hidden.write_text("commit")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(score(load_model(tmp_path)), score(load_model(run)))
    assert verify(tmp_path) == ([], len(FILES) - 1)
    assert [text.partition(":")[0] for text in list_unverified(tmp_path)] == [
        "a published model has no predictions.csv"
    ]
    (tmp_path / "README.md").write_text("of its owner")
    load_model(tmp_path)
    assert verify(tmp_path) == ([], len(FILES) - 2)
    assert list_unverified(tmp_path)[1].startswith("README.md is not counted: it was edited after the push")
    (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(InputMissingError, match="SHA256SUMS is missing, without which the files of a published model"):
        verify(tmp_path)
    assert list_unverified(run) == []


def test_a_changed_model_card_is_no_error(published, run, tmp_path, caplog):
    published.add_files(REPO, {"README.md": b"# Better"})
    with caplog.at_level("INFO", "fastcxr"):
        folder = pull(REPO, tmp_path / "pulled").folder
    assert "README.md was changed after the push" in caplog.text
    assert verify(folder)[0] == []


def test_the_limits_on_number_and_size_of_files_hold_before_a_download(published, run, monkeypatch):
    monkeypatch.setitem(MAX_BYTES, ".safetensors", 1000)
    with pytest.raises(ModelError, match=r"\.safetensors of me/model has [\d,]+ bytes, expected at most 1,000"):
        load_model(f"hf://{REPO}")
    published.add_files(REPO, {f"fold-{n}/model.json": b"{}" for n in range(1, 501)})
    with pytest.raises(ModelError, match="me/model has 509 files of a model, expected at most 500"):
        load_model(f"hf://{REPO}")
    published.make_repo("me/empty")
    with pytest.raises(ModelError, match=r"no published\.json: it is not a model that fastcxr published"):
        load_model("hf://me/empty")
    assert not [request for request in published.requests if "/resolve/" in request]


@pytest.mark.usefixtures("known_texts")
def test_a_leak_in_a_file_stops_the_push(hub, run, monkeypatch):
    patient = (run / "manifest.csv").read_text().splitlines()[1].split(",")[1]
    for leak in (f"see {patient}", "data:image/png;base64,AAAA", f"in {run.resolve()}"):
        monkeypatch.setattr(publish, "make_shared_card", lambda folder, leak=leak: f"# Card\n\n{leak}\n")
        with pytest.raises(ModelError, match=r"README\.md contains .* Nothing is sent") as error:
            push(run, REPO)
        assert error.value.code == "E706"
    assert {request.partition(" ")[0] for request in hub.requests} == {"GET"}


@pytest.mark.usefixtures("staged_once")
def test_a_public_repository_is_used_on_request_only(hub, run):
    hub.make_repo("me/open", private=False)
    hub.make_repo("me/closed")
    with pytest.raises(HubError, match="me/open exists and is public: everyone could read .* `public=True`"):
        push(run, "me/open", yes=True)
    with pytest.raises(HubError, match="me/closed exists and is private; a push does not change that"):
        push(run, "me/closed", public=True, yes=True)
    with pytest.raises(RecipeError, match="consent is needed: me/new is public: everyone can download the model"):
        push(run, "me/new", public=True)
    assert "me/new" not in hub.repos
    assert push(run, "me/new", public=True, yes=True).is_private is False
    assert len(hub.repos["me/open"]["commits"]) == len(hub.repos["me/closed"]["commits"]) == 1


@pytest.mark.usefixtures("staged_once")
def test_a_repository_that_becomes_public_before_the_upload_gets_nothing(hub, run, monkeypatch):
    make_repo = hub.make_repo
    monkeypatch.setattr(hub, "make_repo", lambda name, private: make_repo(name, private=False))
    with pytest.raises(HubError, match="me/model is public on the hub, expected private: nothing is sent"):
        push(run, REPO)
    assert hub.get_files(REPO) == {}


@pytest.mark.usefixtures("known_texts")
def test_terms_of_a_credentialed_dataset_need_consent(hub, run, monkeypatch):
    monkeypatch.setattr(publish, "read_json", lambda path: {"public_datasets": ["mimic_cxr_jpg", "nih"]})
    with pytest.raises(RecipeError, match=r"consent is needed: MIMIC-CXR-JPG \(PhysioNet credentialed, https://.*sens"):
        push(run, REPO)
    assert not hub.repos
    push(run, REPO, yes=True)
    assert json.loads(hub.get_files(REPO)["published.json"])["public_datasets"] == ["mimic_cxr_jpg", "nih"]


@pytest.mark.usefixtures("known_texts")
def test_the_full_report_needs_consent_and_the_next_push_removes_it(hub, run):
    with pytest.raises(RecipeError, match=r"report\.html shows \d+ images of patients .* and names of image files"):
        push(run, REPO, with_images=True)
    assert not hub.repos
    push(run, REPO, with_images=True, yes=True)
    assert hub.get_files(REPO)["report.html"] == (run / "report.html").read_bytes()
    hub.add_files(REPO, {"LICENSE": b"of the owner"})
    push(run, REPO)
    assert set(hub.get_files(REPO)) == FILES | {"LICENSE"}


@pytest.mark.usefixtures("staged_once")
def test_an_interrupted_upload_shows_nothing_and_is_continued(hub, run):
    hub.small_bytes = 20_000  # the weights are large files
    hub.failures.append(("POST /api/models/me/model/commit/", 403))
    with pytest.raises(HubError, match=r"me/model: the owner of the token may not write to it \(403\)"):
        push(run, REPO)
    assert hub.get_files(REPO) == {}
    n_sent = sum(request.startswith("PUT") for request in hub.requests)
    push(run, REPO)
    assert n_sent == 2  # weights and report
    assert sum(request.startswith("PUT") for request in hub.requests) == n_sent  # the hub has the large files already
    assert set(hub.get_files(REPO)) == FILES
    assert len(hub.repos[REPO]["commits"]) == 2


@pytest.mark.usefixtures("staged_once")
@pytest.mark.parametrize(
    "remains", ["edited", "without checksum", pytest.param("damaged checksums", marks=pytest.mark.slow)]
)
def test_a_model_card_that_its_owner_completed_is_kept(hub, run, tmp_path, caplog, remains):
    push(run, REPO)
    written = hub.get_files(REPO)["README.md"]
    hub.add_files(REPO, {"README.md": written + b"Completed by its owner."})
    if remains != "edited":
        hub.repos[REPO]["commits"][-1]["SHA256SUMS"] = b"\xff" if remains.startswith("damaged") else b""
    hub.repos[REPO]["commits"][-1]["metrics.json"] = b"{}"
    kept = push(run, REPO)
    files = hub.get_files(REPO)
    assert files["README.md"] == written + b"Completed by its owner."
    assert "README.md of me/model was edited on the hub and is kept" in caplog.text
    assert "`replace_card=True` replaces it" in caplog.text
    assert kept.has_kept_card and "README.md" not in kept.files
    sums = dict(line.split()[::-1] for line in files["SHA256SUMS"].decode().splitlines())
    assert sums == {name: hashlib.sha256(files[name]).hexdigest() for name in FILES - {"README.md", "SHA256SUMS"}}
    assert verify(pull(REPO, tmp_path / "pulled").folder)[0] == []
    assert push(run, REPO).is_unchanged  # the next push keeps it too
    assert not push(run, REPO, replace_card=True).has_kept_card
    assert hub.get_files(REPO)["README.md"] == written


@pytest.mark.usefixtures("staged_once")
def test_a_push_without_changes_makes_no_commit(hub, run):
    hub.small_bytes = 20_000  # the weights are large files, with another checksum on the hub
    assert not push(run, REPO).is_unchanged
    again = push(run, REPO)
    assert again.is_unchanged and not again.has_kept_card
    assert again.commit == make_commit(REPO, 1)
    assert len(hub.repos[REPO]["commits"]) == 2
    hub.add_files(REPO, {"model.json": b"{}"})  # without a change of SHA256SUMS
    assert not push(run, REPO).is_unchanged
    hub.add_files(REPO, {"report.html": b"of an earlier push"})
    assert not push(run, REPO).is_unchanged
    assert set(hub.get_files(REPO)) == FILES


@pytest.mark.usefixtures("staged_once")
def test_a_commit_in_the_meantime_stops_the_push(hub, run, monkeypatch):
    hub.make_repo(REPO)
    create = publish.create_repository

    def create_and_commit(repo, private):
        repository = create(repo, private=private)
        hub.add_files(REPO, {"README.md": b"new"})
        return repository

    monkeypatch.setattr(publish, "create_repository", create_and_commit)
    with pytest.raises(HubError, match=r"me/model has changed in the meantime \(412\)"):
        push(run, REPO)
    assert hub.get_files(REPO) == {"README.md": b"new"}


@pytest.mark.usefixtures("staged_once")
@pytest.mark.parametrize(
    ("status", "error_class", "problem"),
    [
        (401, HubError, "does not accept the token .401.. Run `hf auth login`, or set HF_TOKEN"),
        (403, HubError, "the owner of the token may not write to it .403."),
        (500, HubError, "the hub answers with 500 .planned failure.. Repeat the command later"),
    ],
)
def test_errors_of_the_hub_are_one_line(hub, run, status, error_class, problem):
    hub.failures.append(("POST /api/repos/create", status))
    with pytest.raises(error_class, match=problem) as error:
        push(run, REPO)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 69


@pytest.mark.usefixtures("known_texts")
def test_names_tokens_and_repositories_that_cannot_be_used(hub, run, tmp_path, monkeypatch):
    hub.datasets.add("me/images")
    for repo in ("model", "me/", "a/b/c", "me/mo del", "../x", "me/a--b"):
        with pytest.raises(RecipeError, match="expected owner/name"):
            push(run, repo)
    with pytest.raises(RecipeError, match="a push has no revision"):
        push(run, "me/model@main")
    with pytest.raises(RecipeError, match="'my own' is no identifier of a licence"):
        push(run, REPO, licence="my own")
    with pytest.raises(InputMissingError, match="me/images is a dataset on the hub, expected a model"):
        pull("me/images", tmp_path / "pulled")
    with pytest.raises(InputMissingError, match="me/none: the hub has no such model, or it is private"):
        pull("me/none", tmp_path / "pulled")
    hub.make_repo(REPO)
    with pytest.raises(InputMissingError, match="me/model has no such branch, tag or commit"):
        pull(REPO, tmp_path / "pulled", revision="v2")
    with pytest.raises(ArgumentTypeError, match="`repo` is of type PosixPath, expected str"):
        push(run, Path("me/model"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="me/model: no token of the hub is found. Run `hf auth login`, or set HF_TOKEN"):
        push(run, REPO)


def test_commands_that_need_the_run_refuse_a_published_model(published, run, tmp_path):
    from fastcxr.report.run_page import write_run_report
    from fastcxr.workflows.compare import compare
    from fastcxr.workflows.run_state import read_run_config

    folder = pull(REPO, tmp_path / "pulled").folder
    uses = (
        lambda: compare([folder, run], tmp_path / "out"),
        lambda: write_run_report(folder),
        lambda: read_run_config(folder),
        lambda: push(folder, "me/copy"),
    )
    for use in uses:
        with pytest.raises(InputMissingError, match=r"a published model, which has no \w+\.csv. Pass the run folder"):
            use()
    with pytest.raises(InputMissingError, match="on the hub, which has no data of its training. Pass the run folder"):
        compare([f"hf://{REPO}", run], tmp_path / "out")
    with pytest.raises(InputMissingError, match="hf://me/model: a model on the hub, expected a folder that holds run"):
        describe_runs(Path(f"hf://{REPO}"))
    with pytest.raises(InputMissingError, match="no list of the images that it was trained on: got `data`"):
        load_learner_from_run(folder, tmp_path)
    assert [row["state"] for row in describe_runs(tmp_path)] == ["published"]
    learner = load_learner_from_run(f"hf://{REPO}")
    assert list(learner.dls.vocab) == list(load_model(run).labels)


@pytest.mark.usefixtures("known_texts")
def test_critical_notices_are_published_and_shown_for_the_download(hub, run, tmp_path, monkeypatch, caplog):
    notice = Notice("critical", "Image-level split", "Patients may be in two splits.")
    monkeypatch.setattr(publish, "make_notices", lambda *_: [notice, Notice("warning", "Few images")])
    push(run, REPO)
    card = hub.get_files(REPO)["README.md"].decode().partition("\n---\n")[2]
    assert ModelCard(hub.get_files(REPO)["README.md"].decode()).data.eval_results is None
    assert card.lstrip().startswith("> **CRITICAL: Image-level split.** Patients may be in two splits.\n\n# Model card")
    pulled = pull(REPO, tmp_path / "pulled")
    assert pulled.notices == (notice,)
    assert read_run_notices(pulled.folder) == [asdict(notice)]
    for weights in (f"hf://{REPO}", str(pulled.folder / "model.safetensors")):
        caplog.clear()
        entry = describe_initial_model(weights)
        assert entry == {"initial_model": {"notices": [{"title": notice.title, "text": notice.text}]}}
        unknown, critical = (record.message for record in caplog.records if record.levelname == "WARNING")
        assert "does not contain the list of training images" in unknown
        assert "has a critical notice: Image-level split. Patients may be in two splits." in critical
    assert describe_initial_model(str(run / "model.safetensors")) == describe_initial_model("pretrained") == {}
    model = read_json(run / "model.json")
    texts = [{"level": "warning", "text": text} for text in (unknown, f"fold-1: {critical}", "Other.")]
    record = replace(read_run_record(run), run=entry | {"messages": texts})
    found = {made.title: made.text for made in make_notices(record, read_json(run / "metrics.json"))}
    assert found["Overlap with the training images of the initial weights: unknown"] == unknown
    title = "The published model of the initial weights has a critical notice: Image-level split"
    assert found[title] == notice.text
    assert found["Logged warning"] == "Other."
    own_code = replace(record, run={}, model=model | {"backbone": model["backbone"] | {"weights": f"hf://{REPO}"}})
    assert f"(hf://{REPO}) does not contain" in next(find_unknown_weights_overlap(own_code, {}))[0]
    assert make_shared_record(record).run["initial_model"] == entry["initial_model"]


@pytest.mark.parametrize(
    "content",
    [
        b"[]", b"{", b'{"format": 1}', b'{"format": 1, "notices": [{}], "public_datasets": []}',
        b'{"format": 1, "notices": [], "public_datasets": [1]}', b'{"format": true}',
    ],
)  # fmt: skip
def test_damaged_facts_are_an_error(tmp_path, content):
    (tmp_path / "published.json").write_bytes(content)
    with pytest.raises(ModelError, match="not a published.json of fastcxr|another version of fastcxr"):
        read_published_facts(tmp_path)


def test_control_characters_of_a_notice_do_not_reach_the_terminal(tmp_path):
    notice = {"level": "critical", "title": "a\x1b[2Jb", "text": "c"}
    content = {"format": 1, "notices": [notice], "public_datasets": []}
    (tmp_path / "published.json").write_text(json.dumps(content))
    assert read_published_facts(tmp_path).notices == (Notice("critical", "a\ufffd[2Jb", "c"),)


def test_an_unknown_level_of_a_notice_counts_as_critical(tmp_path):
    notices = [{"level": level, "title": level, "text": ""} for level in ("crit", "Critical", "note", "warning")]
    (tmp_path / "published.json").write_text(json.dumps({"format": 1, "notices": notices, "public_datasets": []}))
    assert [notice["title"] for notice in read_run_notices(tmp_path)] == ["crit", "Critical"]


def test_weights_of_a_published_model_start_a_training(published, run, tmp_path):
    from fastcxr.models.backbones import describe_backbone, find_backbone, make_network

    backbone = find_backbone("tiny_test_resnet", "none")
    network = make_network(backbone, 5, f"hf://{REPO}", 64)
    expected = load_model(run).network.state_dict()
    assert torch.equal(network.state_dict()["layer1.0.conv1.weight"], expected["layer1.0.conv1.weight"])
    entry = describe_backbone(backbone, f"hf://{REPO}", network)
    assert (entry["weights"], entry["weights_sha256"]) == (f"hf://{REPO}", compute_sha256(run / "model.safetensors"))


@pytest.mark.parametrize(
    ("library", "name", "tag", "weights", "repo"),
    [
        ("timm", "mobilenetv2_100", "ra_in1k", "mobilenetv2_100.ra_in1k", "timm/mobilenetv2_100.ra_in1k"),
        ("timm", "mobilenetv2_100", None, "file.safetensors", None),
        ("timm", "mobilenetv2_100", None, "random weights", None),
        ("timm", "resnet50", None, "hf://me/model@main", "me/model"),
        ("chest", "rad-dino", None, "model.safetensors", "microsoft/rad-dino"),
        ("torchvision", "resnet50", "IMAGENET1K_V2", "IMAGENET1K_V2", None),
    ],
)
def test_the_repository_of_the_initial_weights_is_named(library, name, tag, weights, repo):
    assert find_base_model({"library": library, "name": name, "tag": tag, "weights": weights}) == repo


def test_a_link_out_of_a_folder_is_refused_outside_the_cache_of_the_hub(published, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "linked")
    for name in ("model.json", "model.safetensors"):
        (folder / name).unlink()
        (folder / name).symlink_to(run / name)
        with pytest.raises(FastcxrError, match="a link to a file outside the run folder"):
            load_model(folder)
        (folder / name).unlink()
        shutil.copyfile(run / name, folder / name)
    load_model(f"hf://{REPO}")
    snapshot = next((tmp_path / "hub").glob("models--*/snapshots/*"))
    assert (snapshot / "model.json").is_symlink()
    shutil.copyfile(snapshot / "model.json", tmp_path / "model.json")  # with the same checksum
    (snapshot / "model.json").unlink()
    (snapshot / "model.json").symlink_to(tmp_path / "model.json")
    with pytest.raises(FastcxrError, match="a link to a file outside the run folder"):
        load_model(snapshot)


@pytest.mark.usefixtures("known_texts")
def test_the_published_facts_are_those_of_the_run(hub, run):
    push(run, REPO)
    files = hub.get_files(REPO)
    facts = json.loads(files["published.json"])
    assert facts["timm"] == "classifier"
    assert json.loads(files["metrics.json"]) == read_json(run / "metrics.json")
    assert json.loads(files["model.json"])["calibration"] == read_json(run / "model.json")["calibration"]


def test_the_client_of_the_hub_sends_no_telemetry():
    script = "import fastcxr; from huggingface_hub.utils import build_hf_headers as make; print(make()['user-agent'])"
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9"}
    sent = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "hf_hub/" in sent.stdout and "torch/" not in sent.stdout  # with it, a list of programs would be requested
