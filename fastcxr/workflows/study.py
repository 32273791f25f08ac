"""Tables that compare the metrics of a study's variants with the published ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.io.files import read_json
from fastcxr.io.formatting import MISSING, format_percent, format_score
from fastcxr.io.tables import find_column
from fastcxr.report.notices import read_critical_notices

PublishedMetrics = Mapping[str, Mapping[str, float]]
# heading and format of a metric; other metrics are formatted as percent under their own name
METRIC_FORMATS = {
    "auroc": ("AUROC", format_score),
    "average_precision": ("average precision", format_score),
    "top2_accuracy": ("top-2 accuracy", format_percent),
    "f1": ("F1", format_percent),
}


def compare_with_paper(run_dirs: Mapping[str, Path | None], paper: PublishedMetrics) -> list[Table]:
    """Return a table with one row per variant, published and own metrics; then one for each class of the paper.

    `run_dirs`: the run folder of each variant; a variant without one, or without metrics, gets dashes.
    """
    metrics_by_variant = {variant: read_primary_metrics(run_dir) for variant, run_dir in run_dirs.items()}
    paper = {variant: paper.get(variant, {}) for variant in run_dirs}
    has_findings = any(is_multi_label(part) for part in metrics_by_variant.values())
    names_by_class: dict[str, list[str]] = {"": ["auroc"] if has_findings else ["accuracy", "auroc"]}
    n_labels = max((len(part.get("labels", ())) for part in metrics_by_variant.values()), default=0)
    if n_labels > 2 and not has_findings:  # it is always 1 for two classes
        names_by_class[""].append("top2_accuracy")
    for name in dict.fromkeys(name for metrics in paper.values() for name in metrics):
        names_by_class.setdefault(split_metric_name(name)[0], []).append(name)
    tables = []
    for label, names in names_by_class.items():
        columns = make_columns(list(dict.fromkeys(names)), metrics_by_variant, paper)
        if not label:
            columns["images"] = [f"{part['n_images']:,}" if part else MISSING for part in metrics_by_variant.values()]
        tables.append(make_table(label, columns, run_dirs))
    return tables


def make_columns(
    names: Sequence[str], metrics_by_variant: Mapping[str, dict[str, Any]], paper: PublishedMetrics
) -> dict[str, list[str]]:
    """Return the cells of each metric by heading; published values precede own values."""
    columns = {}
    for name in names:
        metric = split_metric_name(name)[1]
        heading, formatter = METRIC_FORMATS.get(metric, (metric, format_percent))
        if any(name in metrics for metrics in paper.values()):
            columns[f"paper {heading}"] = [formatter(metrics.get(name)) for metrics in paper.values()]
        columns[heading] = [formatter(find_metric(part, name)) for part in metrics_by_variant.values()]
    return columns


def make_table(title: str, columns: Mapping[str, Sequence[str]], variants: Mapping[str, Any]) -> Table:
    """Return a table with one row per variant; of a class, only variants with any metric."""
    table = Table(box=None, pad_edge=False, title=escape(title) or None, title_justify="left")
    table.add_column("variant", no_wrap=True)
    for heading in columns:
        table.add_column(escape(heading), justify="right")
    for variant, *cells in zip(variants, *columns.values(), strict=True):
        if not title or set(cells) != {MISSING}:
            table.add_row(escape(variant), *cells)
    return table


def split_metric_name(name: str) -> tuple[str, str]:
    """Return class and metric of a name such as "COVID-19 recall"; the class of "accuracy" is empty."""
    label, _, metric = name.rpartition(" ")
    return label, metric


def find_metric(split_metrics: Mapping[str, Any], name: str) -> float | None:
    """Return a metric of a split by name, or None; the class may differ in case and punctuation."""
    label, metric = split_metric_name(name)
    if not label:
        return split_metrics.get(metric)
    per_class = split_metrics.get("per_class", {})
    class_name = label if label in per_class else find_column(per_class, [label])
    if metric == "auroc":
        return split_metrics.get("auroc_per_class", {}).get(class_name)
    return per_class.get(class_name, {}).get(metric)


def is_multi_label(split_metrics: Mapping[str, Any]) -> bool:
    """Return whether the metrics are those of findings."""
    return split_metrics.get("task") == MULTI_LABEL


def group_critical_notices(run_dirs: Mapping[str, Path | None]) -> dict[str, list[str]]:
    """Return the finished variants of each critical notice, by the title of the notice."""
    variants_by_title: dict[str, list[str]] = {}
    for variant, run_dir in run_dirs.items():
        for notice in read_critical_notices(run_dir) if run_dir and read_primary_metrics(run_dir) else ():
            variants_by_title.setdefault(notice.title, []).append(variant)
    return variants_by_title


def read_primary_metrics(run_dir: Path | None) -> dict[str, Any]:
    """Return the metrics of the test split, else of the pooled folds, else of validation; {} for an unfinished run.

    `auroc` is the macro average, `auroc_per_class` has the values of the classes or findings.
    """
    if run_dir is None or not (run_dir / "metrics.json").is_file():
        return {}
    metrics = read_json(run_dir / "metrics.json")
    split_metrics = next(metrics[split] for split in ("test", "oof", "valid") if split in metrics)
    auroc = split_metrics["auroc"]
    return split_metrics | {"auroc": auroc["macro"], "auroc_per_class": auroc.get("per_class", {})}
