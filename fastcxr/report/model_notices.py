"""Conditions of report notices about the model: predictions, external tests, OOD detector, saliency maps and training.

Each function yields, for each notice, its text and the names in its title.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fastcxr.io.formatting import format_percent, format_score, join_names, pluralize
from fastcxr.metrics.predictions import OUT_OF_FOLD
from fastcxr.report.data_notices import (
    Found,
    Metrics,
    find_own_test_images,
    list_failed_checks,
    merge_repeated_messages,
    name_split,
)
from fastcxr.report.headline import get_primary_metrics
from fastcxr.report.run_reader import RunRecord, SaliencyMaps

MAX_FALSE_ALARM_RATE = 0.05  # of the OOD detector, on images from the sources of training
OOD_RATE_MEANING = {
    True: "The images come from the sources of training, so this is the false positive rate of the OOD detector.",
    False: f"An interval above {MAX_FALSE_ALARM_RATE:.0%} indicates a distribution shift.".replace("%", " %"),
}
IMBALANCE_RATIO = 2  # largest class over smallest from which class weights are suggested
MAX_PLAUSIBLE_AUROC = 0.98  # macro AUROC; about 0.8 is usual among similar patients of one hospital
LARGE_DROP = 0.10  # of AUROC, or of the sensitivity of a class
# outcomes of an external test
LARGE, UNCERTAIN, SMALL, SIMILAR, NOT_COMPARABLE = "large", "uncertain", "small", "similar", "not comparable"


def find_implausible_auroc(record: RunRecord, metrics: Metrics) -> Found:
    """Yield an AUROC that is too high for a model without external test."""
    auroc = (get_primary_metrics(record, metrics).get("auroc") or {}).get("macro")
    has_failed_check = any(row["verdict"] == "FAIL" for row in record.findings) or list_failed_checks(record)
    if auroc is None or auroc <= MAX_PLAUSIBLE_AUROC or metrics.get("external_drop") or has_failed_check:
        return
    single_source_text = (
        f"All images have the same source. If each {_name_label(record)} came from a different hospital or device, the "
        "metrics do not measure the disease. Name the sources with --data A --data B or with a column source. "
    )
    yield (
        f"Macro AUROC is {format_score(auroc)}. Models with such values have been found to detect the hospital and not "
        "the disease (DeGrave 2021, doi:10.1038/s42256-021-00338-7). "
        f"{single_source_text if record.table['source'].nunique() <= 1 else ''}"
        "Before publishing, run fastcxr audit on this data and fastcxr evaluate on data of another hospital.",
    )


def find_constant_predictions(record: RunRecord, metrics: Metrics) -> Found:
    """Yield the class that the model predicts for all images."""
    true_counts, predicted = _count_confusion_matrix(record, metrics)
    if len(predicted) == 1:
        split = name_split(record.predictions.primary_split)
        suggestion = (
            "All of them are of this class. Test on other classes too."
            if list(true_counts) == predicted
            else _suggest_fix(record, true_counts)
        )
        n_images = get_primary_metrics(record, metrics)["n_images"]
        text = f"Accuracy on all {n_images:,} images of the {split} equals the prevalence of {predicted[0]}."
        yield f"{text} {suggestion}", predicted[0]


def find_never_predicted_classes(record: RunRecord, metrics: Metrics) -> Found:
    """Yield the classes that the model predicts for no image, unless it predicts one class for all.

    Of findings, those that are present in some image and reach the threshold in none.
    """
    split = name_split(record.predictions.primary_split)
    if record.predictions.is_multi_label:
        primary = get_primary_metrics(record, metrics)
        missed = {
            label: row["positives"]
            for label, row in primary.get("per_class", {}).items()
            if row["positives"] and row["sensitivity"] == 0 and row["specificity"] in (1, None)
        }
        if missed:
            sizes = join_names([f"{label} {n:,}" for label, n in missed.items()])
            text = f"Positive images in the {split}: {sizes}. None reaches the threshold."
            measured = [label for label in missed if primary["auroc"]["per_class"][label] is not None]
            of = f" of {join_names(measured)}" if len(measured) < len(missed) else ""
            hint = f" AUROC{of} shows whether the probabilities separate the images." if measured else ""
            yield text + hint, join_names(list(missed), "or")
        return
    true_counts, predicted = _count_confusion_matrix(record, metrics)
    missed = {label: n for label, n in true_counts.items() if label not in predicted}
    if missed and len(predicted) > 1:
        sizes = join_names([f"{label} {n}" for label, n in missed.items()])
        yield (
            f"In the {split}: {sizes}. None was detected."
            " Accuracy can be high nevertheless, if these classes have few images.",
            join_names(list(missed), "or"),
        )


def find_always_predicted_findings(record: RunRecord, metrics: Metrics) -> Found:
    """Yield the findings that reach the threshold in all images, although they are absent in some."""
    if not record.predictions.is_multi_label:
        return
    primary = get_primary_metrics(record, metrics)
    labels = [
        label
        for label, row in primary.get("per_class", {}).items()
        if row["negatives"] and row["specificity"] == 0 and row["sensitivity"] in (1, None)
    ]
    if labels:
        text = f"Every image of the {name_split(record.predictions.primary_split)} reaches the threshold."
        is_measured = any(primary["auroc"]["per_class"][label] is not None for label in labels)
        hint = "; AUROC may be useful nevertheless" if is_measured else ""
        yield f"{text} The decision has no information{hint}.", join_names(labels)


def find_constant_folds(record: RunRecord, metrics: Metrics) -> Found:
    """Yield the folds whose model predicts one class for all images, unless all folds predict the same class.

    Findings have no such folds: an image may have none of them.
    """
    predictions, constant_labels = record.predictions, {}
    if predictions.is_multi_label:
        return
    for name in predictions.folds if predictions.primary_split == OUT_OF_FOLD else ():
        rows = predictions.for_split(OUT_OF_FOLD).for_fold(name).scorable()
        predicted = set(rows.probability.argmax(axis=1))
        if len(predicted) == 1 and rows.table["label"].nunique() > 1:
            constant_labels[name] = predictions.labels[predicted.pop()]
    if len(constant_labels) == len(predictions.folds) and len(set(constant_labels.values())) == 1:
        return
    unit = "source" if record.recipe.get("leave_one_source_out") else "fold"
    for label in dict.fromkeys(constant_labels.values()):
        names = [name for name, predicted in constant_labels.items() if predicted == label]
        models = f"{pluralize(len(names), 'model')} of {len(predictions.folds)}"
        text = f"{models} always predict{'s' * (len(names) == 1)} one class, which the pooled metrics hide."
        yield f"{text} Check each {unit}.", f"{unit}{'s' * (len(names) > 1)} {join_names(names)}", label


def find_class_mismatch(record: RunRecord, metrics: Metrics) -> Found:
    """Yield the classes or findings of model.json and predictions.csv if they differ."""
    labels = record.model.get("labels")
    if labels and list(labels) != list(record.predictions.labels):
        model_labels, predicted_labels = join_names(list(map(str, labels))), join_names(list(record.predictions.labels))
        units = "findings" if record.predictions.is_multi_label else "classes"
        file = "the predictions have" if record.is_shared else "predictions.csv has"
        yield f"model.json has {model_labels}; {file} {predicted_labels}.", units


def find_unreadable_images(record: RunRecord, metrics: Metrics) -> Found:
    """Yield the number of images of each split that have no prediction."""
    n_unreadable = {split: metrics[split]["n_errors"] for split in record.predictions.splits}
    sizes = [f"{split} {n}" for split, n in n_unreadable.items() if n]
    if sizes:
        listed = "" if record.is_shared else "; predictions.csv lists the reasons"
        yield (f"{join_names(sizes)}. They are excluded from all metrics{listed}.",)


def find_external_tests(outcome: str, record: RunRecord, metrics: Metrics) -> Found:
    """Yield each external test set with this outcome, compared with the internal test set."""
    if any(find_own_test_images(True, record, metrics)):  # there are no external images
        return
    split_metrics = get_primary_metrics(record, metrics)
    if record.predictions.primary_split == OUT_OF_FOLD:  # a confusion matrix of all folds describes no single test set
        split_metrics = {}
    for name, drop in metrics.get("external_drop", {}).items():
        found_outcome, text = _describe_external_test(name, drop, split_metrics)
        if found_outcome == outcome:
            yield text, name


def find_missing_external_test(record: RunRecord, metrics: Metrics) -> Found:
    """Yield that the model was tested on the sources of training only."""
    if metrics.get("external_drop") or not _is_internal_test(record):
        return
    text = "The test images come from the sources of training. Run fastcxr evaluate RUN --data OTHER on external data."
    if record.table["source"].nunique() == 1:
        text += " All images have the same source. "
        text += f"If each {_name_label(record)} came from a different hospital, the model could learn the hospital."
    yield (text,)


def find_ood_images(rate: str, record: RunRecord, metrics: Metrics) -> Found:
    """Yield the OOD rate of the test images: `internal` (false alarms), or of external data `many` or `few`."""
    ood_rate = get_primary_metrics(record, metrics).get("ood")
    if not ood_rate:
        return
    value, low, high = ood_rate["proportion"]
    if rate == ("internal" if _is_internal_test(record) else "many" if low > MAX_FALSE_ALARM_RATE else "few"):
        interval = f"95 % confidence interval {format_percent(low)} to {format_percent(high)}"
        images = f"{ood_rate['n_ood']:,} of {pluralize(ood_rate['n_images'], 'image')}"
        text = f"In the {name_split(record.predictions.primary_split)}: {images} ({format_percent(value)}, {interval})."
        text += f" They get no {_name_prediction(record)}; all other metrics include them."
        yield (f"{text} {OOD_RATE_MEANING[rate == 'internal']}",)


def find_missing_ood_detector(record: RunRecord, metrics: Metrics) -> Found:
    """Yield that the model predicts a class or findings for any image."""
    if not get_primary_metrics(record, metrics).get("ood"):
        yield (f"Any image gets a {_name_prediction(record)}, even one of another body part.",)


def find_withheld_maps(record: RunRecord | SaliencyMaps, metrics: Metrics) -> Found:
    """Yield the reason why the saliency maps failed the sanity check."""
    reason = _get_maps(record).metadata.get("failure_reason")
    if reason:
        yield (f"{str(reason).capitalize()}.",)


def find_border_saliency(record: RunRecord | SaliencyMaps, metrics: Metrics) -> Found:
    """Yield the classes whose saliency concentrates at the image border."""
    # tables loads scikit-learn, which the page of a dataset does not need
    from fastcxr.report.tables import UNIFORM_BORDER_SHARE, make_border_share_rows

    rows = [row for row in make_border_share_rows(_get_maps(record)) if row["is_far"]]
    if rows:
        shares = join_names([f"{row['label']} {row['share']} ({row['images']})" for row in rows])
        text = f"Median share of saliency in the outer 15 % of the model input: {shares}."
        yield (f"{text} A uniform map has {format_percent(UNIFORM_BORDER_SHARE)}.",)


def find_images_without_map(record: RunRecord | SaliencyMaps, metrics: Metrics) -> Found:
    """Yield the number of unreadable images among those selected for saliency maps."""
    n_unreadable = int((_get_maps(record).table["error"] != "").sum())
    if n_unreadable:
        is_shared = isinstance(record, RunRecord) and record.is_shared
        listed = "" if is_shared else "; saliency.csv lists the reasons"
        yield f"The files are unreadable{listed}.", pluralize(n_unreadable, "image")


def find_failed_lr_searches(record: RunRecord, metrics: Metrics) -> Found:
    """Yield the default rate of each stage for which the learning rate finder found none.

    A stage with a logged warning is omitted. The report of a training in Python has no log messages of the training.
    """
    rates = (record.model.get("choices") or {}).get("learning_rates") or []
    logged = " ".join(message["text"] for message in merge_repeated_messages(record))
    failed = [
        row
        for row in rates
        if isinstance(row, dict) and row.get("found") is False and str(row.get("reason")) not in logged
    ]
    # a rate set by the user also has found = False
    if failed and record.recipe.get("learning_rate") == "find":
        stages = [f"{row.get('stage')} used {row.get('rate'):g} ({row.get('reason')})" for row in failed]
        yield (f"{join_names(stages)}.",)


def find_own_training(record: RunRecord, metrics: Metrics) -> Found:
    """Yield which options of the recipe the training did not use, if the user called fastai's fit."""
    if _is_own_training(record):
        listed = "" if record.is_shared else "; history.csv lists the epochs"
        text = f"Strategy, epochs, learning rate and schedule of the recipe were not used{listed}."
        yield (f"{text} The weights are those after the last call.",)


def find_horizontal_flips(record: RunRecord, metrics: Metrics) -> Found:
    """Yield how training treated left and right: augmentation `on` or `off`, or features of `both orientations`."""
    recipe, augment = record.recipe, record.recipe.get("augment")
    if not isinstance(augment, dict) or "do_flip" not in augment:
        return
    strategy = recipe.get("strategy")
    is_fitted_on_features = strategy == "linear_probe" or (strategy == "lp_ft" and recipe.get("weights") != "none")
    is_fitted_on_features &= not _is_own_training(record)
    if is_fitted_on_features and recipe.get("hflip_tta"):
        text = "The head was fitted on images and flipped images; the model hardly distinguishes left and right."
        if record.model.get("hflip_tta"):
            text += " Each prediction is the mean over an image and its flipped image."
        yield text, "both orientations"
    elif augment["do_flip"]:
        yield "Training images, and the heart, were flipped at random; the model ignores left and right.", "on"
    else:
        yield "Training images kept their orientation.", "off"


def find_missing_files(record: RunRecord, metrics: Metrics) -> Found:
    """Yield the expected files that the run folder lacks."""
    if record.missing_files:
        yield (f"{join_names(list(record.missing_files))}. The report omits their content.",)


def _name_label(record: RunRecord) -> str:
    return "finding" if record.predictions.is_multi_label else "class"


def _name_prediction(record: RunRecord) -> str:
    return "decision" if record.predictions.is_multi_label else "predicted class"


def _is_own_training(record: RunRecord) -> bool:
    return bool((record.model.get("choices") or {}).get("own_training"))


def _count_confusion_matrix(record: RunRecord, metrics: Metrics) -> tuple[dict[str, int], list[str]]:
    """Return the images of each true class that has any, and the predicted classes; nothing of findings."""
    split_metrics = get_primary_metrics(record, metrics)
    matrix = split_metrics.get("confusion_matrix", [])
    labels = split_metrics["labels"] if matrix else []
    true_counts = {label: sum(row) for label, row in zip(labels, matrix, strict=True) if sum(row)}
    return true_counts, [label for label, column in zip(labels, zip(*matrix, strict=True), strict=True) if any(column)]


def _suggest_fix(record: RunRecord, true_counts: dict[str, int]) -> str:
    text = "AUROC shows whether the probabilities still separate the classes."
    if record.run.get("tested"):
        return text
    is_weighted = record.recipe.get("class_weights") == "balanced" or record.recipe.get("sampler") == "weighted"
    is_imbalanced = max(true_counts.values()) > IMBALANCE_RATIO * min(true_counts.values())
    if is_imbalanced and not is_weighted:
        return f"{text} Try --class-weights balanced, or another loss."
    return f"{text} Try more epochs, or another learning rate."


def _is_internal_test(record: RunRecord) -> bool:
    """Return whether all test images come from sources of the other splits."""
    sources = record.manifest.groupby("split")["source"].agg(set)
    trained = set().union(*(sources[split] for split in sources.index if split != "test"))
    return bool(trained) and sources.get("test", trained) <= trained


def _get_maps(record: RunRecord | SaliencyMaps) -> SaliencyMaps:
    return record if isinstance(record, SaliencyMaps) else record.saliency_maps


def _describe_external_test(name: str, drop: Mapping[str, Any], split_metrics: Metrics) -> tuple[str, str]:
    """Return the outcome and the text: of macro AUROC, or if classes differ, of the sensitivity that drops most.

    If the findings differ, of the AUROC that drops most.
    """
    estimates = drop["figures"]
    affected = "Means over findings" if "confusion_matrix" not in split_metrics else "AUROC, accuracy and specificity"
    unshared_text = _describe_unshared_classes(drop["only"], affected)
    sensitivities = {
        label: row["drop"][0] for label in drop["classes"] if (row := estimates.get(f"per_class.{label}.sensitivity"))
    }
    aurocs = {label: row["drop"][0] for label in drop["classes"] if (row := estimates.get(f"auroc.per_class.{label}"))}
    if "auroc.macro" in estimates:
        row, metric, formatter, confusion_text = estimates["auroc.macro"], "Macro AUROC", format_score, ""
    elif aurocs:
        label = max(aurocs, key=lambda key: aurocs[key])
        row, metric, formatter, confusion_text = (
            estimates[f"auroc.per_class.{label}"],
            f"AUROC of {label}",
            format_score,
            "",
        )
    elif sensitivities:
        label = max(sensitivities, key=lambda key: sensitivities[key])
        row, metric, formatter = estimates[f"per_class.{label}.sensitivity"], f"Sensitivity for {label}", format_percent
        confusion_text = _describe_confusion(split_metrics, label)
    else:
        return NOT_COMPARABLE, f"{unshared_text} No class has images in both test sets.".strip()
    external, internal = (_format_estimate(row[side], formatter) for side in ("external", "internal"))
    difference_text = _describe_difference(*row["drop"], is_percent=formatter is format_percent)
    sentence = f"{metric} is {external} on {name}, and {internal} on the internal test set: {difference_text}."
    value, low, _ = row["drop"]
    is_significant = low is not None and low > 0
    outcomes = (LARGE, UNCERTAIN) if value > LARGE_DROP else (SMALL, SIMILAR)
    return outcomes[not is_significant], " ".join(filter(None, [sentence, confusion_text, unshared_text]))


def _describe_difference(value: float, low: float | None, high: float | None, *, is_percent: bool) -> str:
    """Return internal less external in words: `lower by 0.242 (95 % confidence interval 0.180 to 0.310)`."""

    def show(number: float) -> str:
        return f"{100 * abs(number):.1f}" if is_percent else f"{abs(number):.3f}"

    unit, direction = " points" if is_percent else "", "lower" if value > 0 else "higher"
    if low is None or high is None:
        return f"{direction} by {show(value)}{unit} (no confidence interval)"
    if low <= 0 <= high:
        interval = f"a drop of up to {show(high)}{unit} cannot be excluded (95 % confidence interval)"
        return f"the difference is not significant; {interval}"
    near, far = sorted((abs(low), abs(high)))
    return f"{direction} by {show(value)}{unit} (95 % confidence interval {show(near)} to {show(far)})"


def _format_estimate(estimate: list[float | None], formatter: Callable[[float | None], str]) -> str:
    value, low, high = map(formatter, estimate)
    return value if estimate[1] is None else f"{value} ({low} to {high})"


def _describe_confusion(split_metrics: Metrics, label: str) -> str:
    """Return the most frequent wrong prediction for a class; empty for a finding."""
    if "confusion_matrix" not in split_metrics:
        return ""
    labels = split_metrics["labels"]
    row = split_metrics["confusion_matrix"][labels.index(label)]
    n, prediction = max(((n, other) for n, other in zip(row, labels, strict=True) if other != label), default=(0, ""))
    return f"{n:,} of {pluralize(sum(row), 'image')} of {label} were predicted as {prediction}." if n else ""


def _describe_unshared_classes(unshared_classes: Mapping[str, list[str]], affected: str) -> str:
    texts = [
        f"The {side} test set has no image of {join_names(unshared_classes[other], 'or')}."
        for side, other in (("external", "internal"), ("internal", "external"))
        if unshared_classes.get(other)
    ]
    return " ".join([*texts, f"{affected} are therefore not comparable."]) if texts else ""
