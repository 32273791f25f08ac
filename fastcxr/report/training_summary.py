"""Describe how the model of a run was trained, from what the run recorded and not from the recipe alone."""

from collections.abc import Mapping
from typing import Any

from fastcxr.config.tasks import DEFAULTS, MULTI_LABEL, SINGLE_LABEL
from fastcxr.io.formatting import format_learning_rate, join_names, pluralize
from fastcxr.report.html import MONITOR_NAMES, SPLIT_NAMES
from fastcxr.report.label_counts import describe_masked_labels
from fastcxr.report.run_reader import RunRecord

PROBE_STAGE = "probe"  # history.csv has one row for the fit of the head
NEEDS_PRETRAINED_WEIGHTS = ("gradual", "lp_ft")  # else training.trainer trains all layers
OPTIMIZATION_OPTIONS = ("optimizer", "schedule", "batch_size", "loss")


def find_fitted_on(record: RunRecord) -> dict[str, Any]:
    """Return the entry `fitted_on` of model.json (see models.bundle.describe_fitted_images); empty if it is unknown.

    Earlier models do not have it; for their runs it follows from the manifest.
    """
    if record.model.get("fitted_on"):
        return record.model["fitted_on"]
    if not record.model or record.run.get("tested") or "train" not in set(record.manifest["split"].unique()):
        return {}
    is_refitted = has_refitted_head(record.model)
    splits = ["train", "valid"] if is_refitted else ["train"]
    rows = record.manifest[record.manifest["split"].isin(splits)]
    predictor = "train_only_head" if is_refitted else "saved_model"
    n_patients = int(rows["patient"].nunique())
    return {"splits": splits, "images": len(rows), "patients": n_patients, "valid_predictions": predictor}


def has_refitted_head(model: Mapping[str, Any]) -> bool:
    """Return whether the head of a model.json was refitted on training and validation images.

    For earlier models this follows from the best epoch: no epoch was better than the fit of the head.
    """
    if model.get("fitted_on"):
        return model["fitted_on"]["valid_predictions"] == "train_only_head"
    return _has_probe(model) and _get_choices(model).get("best_epoch") == 1


def describe_fitted_on(record: RunRecord) -> str:
    """Return the images that the weights were fitted on, without a full stop; empty if they are unknown."""
    fitted = find_fitted_on(record)
    if not fitted:
        return ""
    sizes = f"{pluralize(fitted['images'], 'image')} of {pluralize(fitted['patients'], 'patient')}"
    names = join_names([str(SPLIT_NAMES.get(split, split)) for split in fitted["splits"]])
    split_text = f"{names} split{'s' * (len(fitted['splits']) > 1)}"
    if "valid" not in fitted["splits"]:
        return f"{sizes} ({split_text})"
    return f"{sizes} ({split_text}: the final head was refitted on both)"


def describe_valid_predictions(record: RunRecord) -> str:
    """Return which network predicted the validation rows; empty if the saved model did, without having seen them."""
    fitted = find_fitted_on(record)
    if "valid" not in fitted.get("splits", []):
        return ""
    if fitted["valid_predictions"] == "train_only_head":
        return "out-of-sample predictions of the head fitted without these images"
    return "not out-of-sample: the weights were also fitted on these images"


def describe_fold_refits(record: RunRecord) -> str:
    """Return how many models of the folds have a refitted head, as a sentence; empty if none or unknown."""
    refitted, n_folds = record.run.get("refitted_heads") or [], len(record.folds)
    if not refitted:
        return ""
    models = "each model" if len(refitted) == n_folds else f"{len(refitted)} of {n_folds} models"
    return f"The final head of {models} was refitted on its training and validation images."


def is_fit_only(record: RunRecord) -> bool:
    """Return whether the head was fitted and no stage with epochs ran."""
    return _has_probe(record.model) and not _get_choices(record.model).get("learning_rates")


def describe_training(record: RunRecord) -> list[str]:
    """Return sentences on the strategy, on each stage that ran, and on the selection of the weights."""
    if _get_choices(record.model).get("own_training"):
        return [f"Trained by own calls of fastai{'' if record.is_shared else '; history.csv has their epochs'}."]
    if len(record.folds):
        unit = "source" if record.recipe.get("leave_one_source_out") else "fold"
        listed = f"; the CLAIM.md of each {unit} lists the stages, learning rates and epochs"
        text = f"One model per {unit}{'' if record.is_shared else listed}."
        return [*_describe_strategy(record.recipe), text, *filter(None, [describe_fold_refits(record)])]
    return [
        *_describe_strategy(record.recipe),
        *_describe_stages(record),
        *_describe_finding_loss(record),
        *_describe_selection(record),
    ]


def _describe_strategy(recipe: Mapping[str, Any]) -> list[str]:
    strategy = recipe.get("strategy")
    if not isinstance(strategy, str):
        return ["Strategy: custom stages."] if strategy else []
    if strategy in NEEDS_PRETRAINED_WEIGHTS and recipe.get("weights") == "none":
        return [f"Strategy full instead of {strategy}, because the initial weights are random."]
    return [f"Strategy {strategy}."]


def _describe_stages(record: RunRecord) -> list[str]:
    history, has_probe, choices = record.history, _has_probe(record.model), _get_choices(record.model)
    rates = [row for row in choices.get("learning_rates") or [] if isinstance(row, dict)]
    recipe = resolve_recipe(record)
    if recipe.get("batch_size") == "auto" and "batch_size" in choices:
        recipe["batch_size"] = choices["batch_size"]
    n_epochs = history["stage"].value_counts(sort=False).to_dict() if "stage" in history else {}
    names = dict.fromkeys(map(str, [*n_epochs, *(row["stage"] for row in rates)]))
    stages = [
        _describe_epochs(recipe, name, n_epochs.get(name), [row for row in rates if row["stage"] == name])
        for name in names
        if not (has_probe and name == PROBE_STAGE)
    ]
    return [_describe_probe(record), *stages] if has_probe else stages


def resolve_recipe(record: RunRecord) -> dict[str, Any]:
    """Return the recipe with the loss, label smoothing and monitored metric of its task where it leaves them open."""
    task = MULTI_LABEL if record.predictions.is_multi_label else SINGLE_LABEL
    defaults = {name: value for name, value in DEFAULTS[task].items() if record.recipe.get(name, "") in (None, "auto")}
    return record.recipe | defaults


def _describe_finding_loss(record: RunRecord) -> list[str]:
    """Return sentences on the loss of findings and its unknown labels; empty for one class per image."""
    recipe = resolve_recipe(record)
    if not record.predictions.is_multi_label or not isinstance(recipe.get("loss"), str):
        return []
    smoothing = recipe.get("label_smoothing")
    smoothing_text = f"label smoothing {smoothing:g}" if smoothing else "no label smoothing"
    loss = f"Loss: {_humanize(recipe['loss'])} over the known labels of all findings, {smoothing_text}."
    return [loss, *filter(None, [describe_masked_labels(record)])]


def _describe_probe(record: RunRecord) -> str:
    probe, recipe = _get_choices(record.model).get("probe") or {}, resolve_recipe(record)
    penalty = "selected by validation loss"
    if probe:
        tried = join_names([f"{l2:g}" for l2 in probe["l2_tried"]])
        penalty = f"{_format_penalty(probe['l2'])}, the one of {tried} with the lowest validation loss"
    views = " of each image and its flipped image" if probe.get("views", 1) > 1 else ""
    return (
        f"Stage {PROBE_STAGE}: {_name_model(recipe)} on standardized features{views} from the frozen backbone, "
        f"fitted by L-BFGS without epochs or a learning rate; ridge (L2) penalty {penalty}."
    )


def _format_penalty(l2: float | Mapping[str, float]) -> str:
    """Return one penalty of all labels, or the range of the penalties of findings."""
    if not isinstance(l2, Mapping):
        return f"{l2:g}"
    low, high = min(l2.values()), max(l2.values())
    return f"{low:g}" if low == high else f"{low:g} to {high:g} by finding"


def _name_model(recipe: Mapping[str, Any]) -> str:
    """Return the statistical model of the head that minimizes the loss of the recipe."""
    loss = recipe.get("loss")
    if loss in ("binary_cross_entropy", "asymmetric"):
        text = "independent logistic regressions, one per finding, fitted together on the known labels"
        return text if loss == "binary_cross_entropy" else f"{text} with {_humanize(loss)} loss"
    if loss == "cross_entropy":
        return "multinomial logistic regression"
    if loss == "label_smoothing":
        return f"multinomial logistic regression with label smoothing {recipe.get('label_smoothing', 'of the recipe')}"
    return f"linear model with {_humanize(loss)} loss"


def _describe_epochs(recipe: Mapping[str, Any], name: str, n_epochs: int | None, rates: list[Mapping[str, Any]]) -> str:
    parts = [pluralize(n_epochs, "epoch")] if n_epochs else []
    parts += [_describe_rate(row) for row in rates]
    if rates:  # without a record of the rate, another function than train ran the stage
        parts += [f"{_humanize(key)} {_humanize(recipe[key])}" for key in OPTIMIZATION_OPTIONS if key in recipe]
    return f"Stage {name}: {', '.join(parts)}."


def _describe_rate(row: Mapping[str, Any]) -> str:
    """Return the peak learning rates of the layer groups, and whether the learning rate finder chose them."""
    rates = row.get("group_rates") or [row["rate"]]
    low, high = (format_learning_rate(choose(rates)) for choose in (min, max))
    text = f"learning rate {high}" if low == high else f"learning rates {low} to {high} by layer group"
    return f"{text} (learning rate finder)" if row.get("found") else text


def _describe_selection(record: RunRecord) -> list[str]:
    choices, history, sentences = _get_choices(record.model), record.history, []
    fitted, valid_text = describe_fitted_on(record), describe_valid_predictions(record)
    best = choices.get("best_epoch")
    if best and not is_fit_only(record):
        is_listed = "stage" in history and best in set(history["epoch"])
        stage = f" of {len(history)} (stage {history.set_index('epoch')['stage'][best]})" if is_listed else ""
        monitor = MONITOR_NAMES.get(str(choices.get("monitor")), "the monitored metric")
        sentences.append(f"Weights of epoch {best}{stage}, selected by {monitor} on validation images.")
    if fitted:
        sentences.append(f"Fitted on {fitted}.")
    if valid_text and "valid" in record.predictions.splits:
        name = "Validation predictions" if record.is_shared else "Validation rows of predictions.csv"
        sentences.append(f"{name}: {valid_text}.")
    return sentences


def _has_probe(model: Mapping[str, Any]) -> bool:
    return bool(_get_choices(model).get("probe")) or bool((model.get("head") or {}).get("multi_scale"))


def _get_choices(model: Mapping[str, Any]) -> Mapping[str, Any]:
    return model.get("choices") or {}


def _humanize(name: Any) -> str:
    return str(name).replace("_", " ")
