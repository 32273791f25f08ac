"""Parse the columns of CheXpert's 14 labels, which several datasets use."""

from pathlib import Path

import pandas as pd

from fastcxr.data.findings import FINDING_PREFIX, NO_FINDING, make_finding_labels, parse_finding_columns

CHEXPERT_LABELS = (
    NO_FINDING, "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip


def parse_chexpert_labels(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the finding columns and `label` of a table of text with some of the 14 columns; blanks stay unknown.

    Raises:
        DataError: a cell is not 1, 0, -1 or blank (E012).
    """
    parsed = parse_finding_columns(table, [name for name in CHEXPERT_LABELS if name in table], path)
    findings = parsed.drop(columns=FINDING_PREFIX + NO_FINDING, errors="ignore")
    no_finding = parsed[FINDING_PREFIX + NO_FINDING] == 1 if FINDING_PREFIX + NO_FINDING in parsed else None
    return findings.assign(label=make_finding_labels(findings, no_finding))
