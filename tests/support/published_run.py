"""A run folder with a model of random weights and identifiers in all of its files, without training."""

import json
import shutil
from pathlib import Path

from finding_run import build_finding_run, make_finding_manifest
from planted_run import plant_identifiers
from random_classifiers import LABELS, make_random_classifier
from safetensors.torch import save_file
from synthetic_run import build_run, make_manifest

from fastcxr.io.files import compute_sha256
from fastcxr.models.bundle import Classifier, write_ood_detector
from fastcxr.report.run_page import write_run_report

SIZE = 64


def build_published_run(folder: Path, *, findings: bool = False, **options) -> tuple[Path, set[str]]:
    """Write the folder of a run with a report; return it and the texts that must not be published.

    `options`: of make_random_classifier.
    """
    classifier = make_random_classifier(size=SIZE, has_lines=findings, **options)
    if findings:
        build_finding_run(folder, LABELS, make_finding_manifest(LABELS, 120, share=0.4))
    else:
        build_run(folder, make_manifest(LABELS, n=120), LABELS)
    write_model(folder, classifier)
    forbidden = plant_identifiers(folder)
    write_run_report(folder, figures=False)
    return folder, forbidden


def write_model(folder: Path, classifier: Classifier) -> None:
    """Write the model of a classifier into a run folder, with the other entries of its model.json."""
    path = folder / "model.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    state = {name: tensor.contiguous() for name, tensor in classifier.network.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    spec, backbone = classifier.input_spec, content.get("backbone", {})
    content |= {
        "format": 2,
        "kind": classifier.task,
        "labels": list(LABELS),
        "backbone": backbone
        | {"library": "timm", "name": "tiny_test_resnet", "tag": None, "weights_sha256": "12" * 32},
        "head": find_head_entry(classifier),
        "input_spec": {"image_size": spec.image_size, "mean": list(spec.mean), "std": list(spec.std)},
        "calibration": {"temperature": classifier.temperature, **classifier.thresholds},
        "ood": write_ood_detector(folder, classifier.ood_detector),
        "files": {"model.safetensors": compute_sha256(folder / "model.safetensors")},
    }
    path.write_text(json.dumps({"choices": {}} | content))


def find_head_entry(classifier: Classifier) -> dict:
    """Return the entry `head` of model.json: of one linear layer, or of a multi-scale head."""
    return {"hidden": [], "dropout": 0.0, "multi_scale": any("fc.linear" in n for n in classifier.network.state_dict())}


def add_folds(folder: Path, n_folds: int = 2) -> Path:
    """Turn a run into one with folds: the same model in each fold."""
    for number in range(1, n_folds + 1):
        fold = folder / f"fold-{number}"
        fold.mkdir()
        for name in ("model.json", "model.safetensors", "ood.safetensors"):
            shutil.copyfile(folder / name, fold / name)
    for name in ("model.json", "model.safetensors", "ood.safetensors"):
        (folder / name).unlink()
    recipe = json.loads((folder / "recipe.json").read_text()) | {"folds": n_folds}
    for name in ("notes of a user", "reuse_split", "split_file"):  # which a run with folds cannot have
        recipe.pop(name, None)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder
