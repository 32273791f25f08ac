"""Load what a server needs from the folder of a run or an export: model, notices, model card and saliency method."""

import re
from pathlib import Path

from fastcxr.config.fields import InferencePrecision
from fastcxr.export.exported_model import ExportedModel
from fastcxr.inference.occlusion import ImageExplainer, OcclusionExplainer
from fastcxr.inference.scores import Scorer
from fastcxr.io.hub_names import get_model_name
from fastcxr.io.run_folders import find_model_card
from fastcxr.models.hub_download import find_model_dir
from fastcxr.serve.served_model import ServedModel
from fastcxr.workflows.critical_notices import list_critical_notices
from fastcxr.workflows.load_scorer import load_scorer

THUMBNAIL_PATTERN, N_CHECK_IMAGES = "figures/images/*.jpg", 8
MAX_CARD_BYTES = 1_000_000
METADATA = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)  # of README.md of a published model


def load_served_model(
    folder: str | Path, *, precision: InferencePrecision = "trained", device: str = "auto"
) -> ServedModel:
    """Load the model of a run folder or of an export for a server.

    The saliency maps are those of Grad-CAM for a run with one model, else those of occlusion.

    Args:
        folder: folder of a run, of a run with folds, or of an export; or hf://owner/name for a model on the hub.
        precision: of the model of a run; see models.bundle.load_classifier.
        device: see load_scorer.

    Raises:
        InputMissingError: a file of the model is missing.
        ModelError: a file of the model is damaged or invalid.
        PackageError: the model is that of a run, and torch is not installed.
        RecipeError: the device is not available, or an option does not apply to this model.
    """
    folder = find_model_dir(folder)
    scorer = load_scorer(folder, precision=precision, device=device)
    return ServedModel(
        name=get_model_name(folder),
        scorer=scorer,
        notices=list_critical_notices(folder, scorer),
        model_card=read_model_card(folder),
        explainer=make_image_explainer(folder, scorer),
    )


def read_model_card(folder: Path) -> str:
    """Return the model card without metadata, or an empty text if there is none."""
    path = find_model_card(folder)
    if path is None or path.stat().st_size > MAX_CARD_BYTES:
        return ""
    return METADATA.sub("", path.read_text(encoding="utf-8", errors="replace"), count=1)


def make_image_explainer(folder: Path, scorer: Scorer) -> ImageExplainer:
    """Return Grad-CAM for a run with one model, and occlusion for an ensemble and an export."""
    if isinstance(scorer, ExportedModel):
        return OcclusionExplainer(scorer)
    from fastcxr.inference.explain_one import GradCamExplainer
    from fastcxr.inference.torch_scorer import TorchScorer
    from fastcxr.models.bundle import Classifier

    if isinstance(scorer, TorchScorer) and isinstance(scorer.model, Classifier):
        return GradCamExplainer(scorer, sorted(folder.glob(THUMBNAIL_PATTERN))[:N_CHECK_IMAGES])
    return OcclusionExplainer(scorer)
