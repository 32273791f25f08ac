"""Tables of a dataset with several labels per image: images of each finding, and number of findings per image."""

from collections import Counter
from typing import Any

import pandas as pd

from fastcxr.data.findings import NO_FINDING, count_findings, explode_labels, list_findings, split_labels
from fastcxr.io.formatting import format_percent, join_names, pluralize
from fastcxr.report.data_tables import list_splits
from fastcxr.report.run_reader import DatasetRecord

MAX_ROWS = 40  # findings in a table; PadChest has 174
MAX_COUNTED = 5  # images with more findings are counted together
STATES = ("absent", "blank", "uncertain", "unknown")
STATE_HEADINGS = {"blank": "blank, read as absent"}


def make_finding_table(record: DatasetRecord) -> dict[str, Any] | None:
    """Return the images of each finding, the most frequent first; None for a dataset with one label per image.

    rows: label, splits (images with the finding in each split), the counts of count_findings, and the prevalence (None
    without any known label). total: the same of all images, with the number of images in `present`. states: those of
    STATES that occur. by_split: the rows without `splits` of each split.
    """
    table = record.table
    if not list_findings(table):
        return None
    splits = list_splits(table)
    labelled = explode_labels(table)
    by_split = labelled.groupby(["label", "split"]).size().unstack(fill_value=0).reindex(columns=splits, fill_value=0)
    counts = count_findings(table).sort_values(["present", "uncertain"], ascending=False, kind="stable")
    rows = [
        {"label": name, "splits": by_split.reindex([name], fill_value=0).iloc[0].tolist()} | row
        for name, row in _make_rows(counts).items()
    ]
    is_normal = labelled["label"] == NO_FINDING
    if is_normal.any():
        present = {"present": int(is_normal.sum()), "patients": labelled.loc[is_normal, "patient"].nunique()}
        rows.append({"label": NO_FINDING, "splits": by_split.loc[[NO_FINDING]].iloc[0].tolist()} | present)
    sizes = [int((table["split"] == split).sum()) for split in splits]
    total = {"label": "all images", "splits": sizes, "present": len(table), "patients": table["patient"].nunique()}
    totals = counts.sum().to_dict()
    states = [name for name in STATES if totals[name]]
    states_by_split = {
        split: _make_rows(count_findings(table[table["split"] == split]).loc[counts.index]) for split in splits
    }
    document = {"splits": splits, "states": states, "rows": rows, "total": total, "by_split": states_by_split}
    return document | _count_per_image(table)


def _make_rows(counts: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return the counts of each finding with its prevalence: of the images that are present, absent or blank."""
    rows = {}
    for name, row in counts.iterrows():
        n_known = int(row["present"] + row["absent"] + row["blank"])
        rows[name] = row.to_dict() | {"prevalence": row["present"] / n_known if n_known else None}
    return rows


def _count_per_image(table: pd.DataFrame) -> dict[str, Any]:
    n_findings = Counter(len(set(split_labels(label)) - {NO_FINDING}) for label in table["label"])
    return {"n_findings": dict(sorted(n_findings.items())), "n_unlabelled": int((table["label"] == "").sum())}


def make_finding_context(table: dict[str, Any]) -> dict[str, Any]:
    """Return the table for the page and the terminal: at most MAX_ROWS findings, the other findings as a text.

    others: the number of findings left out, empty if all are shown. remarks: sentences on the findings per image and on
    the prevalence. headings: the name of each state.
    """
    normal = [row for row in table["rows"] if row["label"] == NO_FINDING]
    findings = [row for row in table["rows"] if row["label"] != NO_FINDING]
    shown, hidden = findings[:MAX_ROWS], findings[MAX_ROWS:]
    others = ""
    if hidden:
        most = pluralize(hidden[0]["present"], "image")
        others = f"{pluralize(len(hidden), 'more finding')}, each present in at most {most}"
    headings = {state: STATE_HEADINGS.get(state, state) for state in table["states"]}
    remarks = [*_describe_per_image(table), *_describe_prevalence(table["states"])]
    return table | {"rows": shown + normal, "others": others, "remarks": remarks, "headings": headings}


def _describe_prevalence(states: list[str]) -> list[str]:
    """Return which labels the prevalence counts, if some are blank, uncertain or unknown."""
    counted = [name for name in ("present", "absent", "blank") if name in ("present", *states)]
    left_out = [name for name in ("uncertain", "unknown") if name in states]
    if not left_out and "blank" not in counted:
        return []
    text = f"Prevalence: present of {join_names(counted)}"
    return [f"{text}; {join_names(left_out)} labels are left out" if left_out else text]


def _describe_per_image(table: dict[str, Any]) -> list[str]:
    """Return `Images by number of findings: 20 with 0 and 40 with 1`, and the images without a known finding."""
    sizes, n_unlabelled = table["n_findings"], table["n_unlabelled"]
    counts = [f"{size:,} with {n}" for n, size in sizes.items() if n < MAX_COUNTED]
    if n_many := sum(size for n, size in sizes.items() if n >= MAX_COUNTED):
        counts.append(f"{n_many:,} with {MAX_COUNTED} or more")
    remarks = [f"Images by number of findings: {join_names(counts)}"]
    if n_unlabelled:
        share = format_percent(n_unlabelled / table["total"]["present"])
        remarks.append(f"Images without any known finding, not labelled {NO_FINDING}: {n_unlabelled:,} ({share})")
    return remarks


def make_finding_tiles(table: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the numbers on the findings at the top of the page as (name, value, explanation)."""
    findings, n_images = [row for row in table["rows"] if row["label"] != NO_FINDING], table["total"]["present"]
    n_several = sum(size for n, size in table["n_findings"].items() if n > 1)
    most = f"most frequent: {findings[0]['label']}, {format_percent(findings[0]['present'] / n_images)}"
    several = ("Several findings", format_percent(n_several / n_images), pluralize(n_several, "image"))
    return [("Findings", f"{len(findings):,}", most), several]


def select_classes(table: dict[str, Any], min_patients: int = 20) -> list[str]:
    """Return two labels for training one label per image.

    "No Finding", if the dataset states it, and the most frequent findings of at least `min_patients` patients; without
    such findings the most frequent ones.
    """
    findings = [row for row in table["rows"] if row["label"] != NO_FINDING]
    useful = [row for row in findings if row["patients"] >= min_patients] or findings
    states_normal = len(findings) < len(table["rows"])
    return [*[NO_FINDING] * states_normal, *(row["label"] for row in useful)][:2]
