"""Load the model in a folder, a run or an export, for scoring: only a run needs torch."""

from pathlib import Path
from typing import Literal

from fastcxr.config.fields import InferencePrecision
from fastcxr.errors import RecipeError, require_type
from fastcxr.export.exported_model import load_export
from fastcxr.inference.scores import Scorer
from fastcxr.io.formats import reject_other_format
from fastcxr.io.packages import TORCH_MODULES, find_missing, make_package_error
from fastcxr.io.run_folders import is_export, require_run_file
from fastcxr.models.hub_download import find_model_dir
from fastcxr.models.model_json import MODEL_JSON_FILE, list_models_below

Engine = Literal["torch", "openvino"]
EXPORT_OR_INSTALL_FIX = (
    "Run `pip install fastcxr`, which installs all its dependencies; or export the run with `fastcxr export` on a "
    "machine that has them, and pass the folder of the export"
)


def load_scorer(
    folder: str | Path, *, precision: InferencePrecision = "trained", device: str = "auto", engine: Engine = "torch"
) -> Scorer:
    """Load the model of a run folder or of an export.

    Args:
        folder: folder of a run, of a run with folds, or of an export; or hf://owner/name for a model on the hub.
        precision: of the model of a run; see models.bundle.load_classifier. An export has fp32.
        device: name of a torch device; of an export auto, cpu or cuda.
        engine: inference engine of the model of a run; an export is run with onnxruntime.

    Raises:
        InputMissingError: a file of the model is missing.
        ModelError: a file of the model is damaged or invalid.
        PackageError: the model is that of a run, and torch is not installed.
        RecipeError: the device is not available, or an option does not apply to this model.
    """
    require_type("folder", folder, str, Path)
    folder = find_model_dir(folder)
    if is_export(folder):
        validate_export_options(precision, engine)
        return load_export(folder, device)
    require_torch(folder)
    return _load_run_scorer(folder, precision, device, engine)


def validate_export_options(precision: InferencePrecision, engine: Engine = "torch") -> None:
    """Raise RecipeError for an option that applies to the model of a run only."""
    for name, value, accepted in (("precision", precision, ("trained", "fp32")), ("engine", engine, ("torch",))):
        if value not in accepted:
            problem = f"an export is run in float32 with onnxruntime: got `{name}={value!r}`"
            raise RecipeError(problem, "Leave it out, or pass the run folder that was exported")


def require_torch(folder: str | Path) -> None:
    """Raise PackageError if a package is not installed that the model of a run needs.

    Raises InputMissingError for a folder that is not a run, and ModelError for a run of another format, which are the
    more specific errors.
    """
    reject_other_format(folder)
    if not list_models_below(folder, "fold"):
        require_run_file(folder, MODEL_JSON_FILE, expected="a finished run or of an export")
    if missing := find_missing(TORCH_MODULES):
        raise make_package_error(missing, f"the model of the run {Path(folder).resolve().name}", EXPORT_OR_INSTALL_FIX)


def _load_run_scorer(folder: str | Path, precision: InferencePrecision, device: str, engine: Engine) -> Scorer:
    from fastcxr.inference.torch_scorer import TorchScorer  # torch takes seconds to import
    from fastcxr.models.bundle import load_model

    if engine == "torch":
        return TorchScorer(load_model(folder, precision=precision, device=device))
    from fastcxr.inference.openvino import model_to_openvino

    if device not in ("auto", "cpu"):
        problem = f"`engine='openvino'` runs on the CPU only: got `device={device!r}`"
        raise RecipeError(problem, "Leave one of them out")
    model = load_model(folder, precision=precision, device="cpu")
    return TorchScorer(model_to_openvino(model), dtype_and_device=model.dtype_and_device)
