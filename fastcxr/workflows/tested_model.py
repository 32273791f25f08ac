"""The model of an evaluation, of a run or of an export, with what its folder states about the training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcxr.config.fields import InferencePrecision
from fastcxr.config.recipe import Recipe
from fastcxr.errors import ModelError
from fastcxr.export.export_json import COPY_AGAIN_FIX, ONNX_FILE
from fastcxr.export.exported_model import ExportedModel, load_export
from fastcxr.inference.scores import Scorer
from fastcxr.io.formats import FORMAT_KEY, MODEL_FORMAT
from fastcxr.io.hub_names import get_model_name, is_published
from fastcxr.io.run_folders import EXPORT_JSON_FILE, is_export
from fastcxr.models.hub_download import find_model_dir
from fastcxr.models.model_json import find_invalid_entries, read_model_json
from fastcxr.report.run_reader import read_findings
from fastcxr.workflows.load_scorer import require_torch, validate_export_options
from fastcxr.workflows.published_model import read_published_facts
from fastcxr.workflows.run_dir import describe_machine

if TYPE_CHECKING:  # torch takes seconds to import
    from fastcxr.models.bundle import Classifier


@dataclass(frozen=True, kw_only=True)
class TestedModel:
    """A model, and the facts on its training.

    Attributes:
        scorer: the model.
        classifier: the model with the network, for saliency maps; None for an export.
        recipe: recipe of the training, without folders.
        model_json: content of model.json for the report, without files.
        run: run folder with the images of the training and the predictions of its test split; None for an export and
            for a published model.
        tested: entry `tested` of run.json: name of the run, the checks of its data that failed, and of an export
            its name, the SHA-256 checksums of its ONNX file and the critical notices of the run.
        machine: the machine, with the name of the GPU if torch runs the model.
        public_datasets: public datasets that a published model was trained on.
    """

    scorer: Scorer
    classifier: "Classifier | None"
    recipe: Recipe
    model_json: Mapping[str, Any]
    run: Path | None
    tested: Mapping[str, Any]
    machine: str
    public_datasets: tuple[str, ...] = ()


def load_tested_model(folder: str | Path, precision: InferencePrecision, device: str) -> TestedModel:
    """Load the model of a run folder with one model, of an export, or of a model on the hub.

    Raises:
        InputMissingError: a file of the model is missing.
        ModelError: a file of the model is damaged or invalid.
        PackageError: the model is that of a run, and torch is not installed.
        RecipeError: the device or the precision is not available.
    """
    folder = find_model_dir(folder)
    if is_export(folder):
        validate_export_options(precision)
        return _describe_export(load_export(folder, device))
    require_torch(folder)
    tested = _load_tested_run(Path(folder), precision, device)
    return _describe_published(tested) if is_published(folder) else tested


def _load_tested_run(run: Path, precision: InferencePrecision, device: str) -> TestedModel:
    from fastcxr.inference.torch_scorer import TorchScorer  # torch takes seconds to import
    from fastcxr.models.bundle import load_classifier
    from fastcxr.models.devices import describe_gpu

    classifier = load_classifier(run, precision=precision, device=device)
    failed_messages = [row["message"] for row in read_findings(run) if row["verdict"] == "FAIL"]
    return TestedModel(
        scorer=TorchScorer(classifier),
        classifier=classifier,
        recipe=Recipe.from_json(run / "recipe.json"),
        model_json=read_model_json(run),
        run=run,
        tested={"run": run.resolve().name, "failed": failed_messages},
        machine=f"{describe_machine()}, {describe_gpu()}",
    )


def _describe_published(tested: TestedModel) -> TestedModel:
    """Return a published model, whose folder has neither the images of the training nor predictions."""
    assert tested.run is not None, "the folder of the model"
    facts, name = read_published_facts(tested.run), get_model_name(tested.run)
    entry = {"run": name, "failed": [], "published": name, "notices": [asdict(one) for one in facts.notices]}
    return replace(tested, run=None, tested=entry, public_datasets=facts.public_datasets)


def _select_shared_entries(model_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry `model` of export.json; of several folds the entries that describe all of their networks."""
    if "members" not in model_json:
        return dict(model_json)
    return {name: model_json["members"][0][name] for name in ("backbone", "head", "input_spec", "hflip_tta")}


def _describe_export(model: ExportedModel) -> TestedModel:
    content, path = model.description, model.folder / EXPORT_JSON_FILE
    try:
        recipe = Recipe.from_content(content["recipe"], path)
        run_name, model_json = str(content["run"]["name"]), _select_shared_entries(content["model"])
        notices = [{name: str(row[name]) for name in ("title", "text")} for row in content["notices"]]
        if invalid := find_invalid_entries(model_json):
            raise ValueError(invalid[0])
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        problem = f"the facts on the training cannot be read ({type(error).__name__})"
        raise ModelError(problem, COPY_AGAIN_FIX, path=path, code="E301") from error
    files = {name: checksum for name, checksum in content["files"].items() if name.startswith(ONNX_FILE)}
    of_the_export = {"labels": list(model.labels), "kind": model.task, "calibration": dict(model.thresholds)}
    return TestedModel(
        scorer=model,
        classifier=None,
        recipe=recipe,
        model_json={FORMAT_KEY: MODEL_FORMAT} | model_json | of_the_export,
        run=None,
        tested={
            "run": run_name,
            "failed": [],
            "export": model.folder.resolve().name,
            "files": files,
            "notices": notices,
        },
        machine=describe_machine(),
    )
