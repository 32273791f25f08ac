"""The two tasks: one class per image, or several findings per image; options that a task sets or refuses."""

from typing import Any

from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError

SINGLE_LABEL, MULTI_LABEL = "single_label", "multi_label"
DEFAULTS = {
    SINGLE_LABEL: {"loss": "label_smoothing", "label_smoothing": 0.1, "monitor": "valid_loss"},
    MULTI_LABEL: {"loss": "binary_cross_entropy", "label_smoothing": 0.0, "monitor": "auroc"},
}
FINDING_LOSSES = ("binary_cross_entropy", "focal", "asymmetric")
SEARCHED_OPTIONS = (  # by tuning, as far as the strategy and the task use them
    "learning_rate", "layer_lr_ratio", "weight_decay", "augment", "image_size", "loss", "label_smoothing",
    "focal_gamma", "class_weights", "hflip_tta",
)  # fmt: skip
# options without meaning for findings, with the reason; each has the value of the first item unless it is used
REFUSED_FOR_FINDINGS = {
    "oversample": ((), "an image with several findings has no single class", "Pass `sampler='weighted'`"),
    "abstain_rate": (0.0, "each finding is decided separately", "Leave it out"),
}


def resolve_task(recipe: Recipe, task: str) -> Recipe:
    """Return the recipe with the loss, label smoothing and monitored metric of a task where they are not given.

    `task`: single_label or multi_label. Raises RecipeError for an option that has no meaning for the task.
    """
    given = {"loss": recipe.loss, "label_smoothing": recipe.label_smoothing, "monitor": recipe.monitor}
    chosen = {name: DEFAULTS[task][name] if value in (None, "auto") else value for name, value in given.items()}
    resolved = recipe.replace(**chosen)
    if task == MULTI_LABEL:
        _reject_single_label_options(resolved)
    elif resolved.loss == "asymmetric":
        raise RecipeError("the loss asymmetric is for findings", "Pass `loss='focal'`")
    return resolved


def describe_model(model: Any, image_size: int) -> str:
    """Return the text of a loaded model in Python: of a Classifier, an Ensemble or an ExportedModel.

    `model`: has labels, task, dtype_and_device and has_ood_detector. `image_size`: in pixels.
    """
    labels, result = ("findings", "decisions") if model.task == MULTI_LABEL else ("classes", "a class")
    parts = [
        f"{len(model.labels)} {labels}: {', '.join(model.labels)}",
        f"{image_size} x {image_size} pixels",
        model.dtype_and_device,
        "with OOD detector" if model.has_ood_detector else f"no OOD detector: every image gets {result}",
    ]
    return f"<{type(model).__name__}: {'; '.join(parts)}>"


def _reject_single_label_options(recipe: Recipe) -> None:
    if recipe.loss not in FINDING_LOSSES:
        problem = f"the loss {recipe.loss} is for one class per image, and the data has findings"
        raise RecipeError(
            problem, f"Pass `loss=` {', '.join(map(repr, FINDING_LOSSES[:-1]))} or {FINDING_LOSSES[-1]!r}"
        )
    if recipe.monitor == "accuracy":
        raise RecipeError("accuracy is not defined for findings", "Pass `monitor='auroc'` or `monitor='valid_loss'`")
    for name, (neutral, reason, fix) in REFUSED_FOR_FINDINGS.items():
        if getattr(recipe, name) != neutral:
            raise RecipeError(f"`{name}` has no meaning for findings: {reason}", fix)
