"""A recipe's data flags and an empty folder come in; what could make any model's figures wrong goes out, as a page."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.audit.findings import Finding, worst_first
from fastcxr.audit.image_features import look_at
from fastcxr.audit.manifest_checks import check_tables
from fastcxr.audit.near_duplicates import check_likeness
from fastcxr.audit.shortcut_probes import check_probes
from fastcxr.config.recipe import Recipe
from fastcxr.data.bit_depth import read_depths
from fastcxr.data.fingerprint import sign_contents, sign_rows
from fastcxr.data.manifest import describe_manifest, write_manifest
from fastcxr.io.files import read_json, write_json
from fastcxr.progress.auto import find_progress
from fastcxr.progress.base import Progress
from fastcxr.report.pages import draw_audit
from fastcxr.report.run_reader import read_findings
from fastcxr.workflows.load import read_cohort, split_cohort
from fastcxr.workflows.run_dir import CohortFolder, write_thumbnails

log = logging.getLogger("fastcxr")
PROBED = 2000  # images that probes are fitted on


def audit(recipe: Recipe, folder: str | Path, progress: Progress | None = None, command: str | None = None) -> Path:
    """Check the recipe's data for leaks and shortcuts, into `folder`; returns the path of audit.html.

    Images that cannot be read are left out and listed in skipped.csv. The split is the one that a run would train on.
    Raises a FastcxrError for data or a folder that cannot be used.
    """
    with CohortFolder(folder, command).open(progress or find_progress()) as record:
        manifest = split_cohort(read_cohort(recipe.but(skip_bad=True), record), recipe)
        record.facts = {"cohort": describe_manifest(manifest), "seed": recipe.seed}
        findings = check_cohort(manifest, recipe.seed, record)
        write_manifest(manifest, record.folder / "manifest.csv")
        signed = {"cohort": sign_rows(manifest), "content": sign_contents(manifest)}
        write_findings(record.folder, findings, manifest, **signed)
        write_thumbnails(record.folder, _choose(manifest, findings))
    return draw_audit(folder)


def check_cohort(manifest: pd.DataFrame, seed: int, progress: Progress) -> list[Finding]:
    """All findings, the worst first."""
    looks = look_at(manifest["file"].tolist(), progress, read_depths(manifest))
    chosen = manifest.sample(min(PROBED, len(manifest)), random_state=seed).index.sort_values()
    probed = check_probes(manifest.loc[chosen].reset_index(drop=True), looks.take(chosen.to_numpy()), progress)
    return worst_first([*check_tables(manifest), check_likeness(manifest, looks), *probed])


def write_findings(folder: Path, findings: list[Finding], manifest: pd.DataFrame, **facts: Any) -> None:
    """audit.json: every finding, its images by source and path, and further facts."""
    write_json(folder / "audit.json", {"findings": _name_images(findings, manifest)} | facts)


def check_before_training(folder: Path, manifest: pd.DataFrame) -> None:
    """audit.json of a run: what the quick checks find, and what a finished audit in runs/ found of this very cohort."""
    rows = _name_images(check_tables(manifest), manifest)
    earlier = find_audit(manifest)
    if earlier is not None:
        quick = {row["check"] for row in rows}
        rows += [row for row in read_findings(earlier) if row["check"] not in quick]
        log.info("findings of %s taken over", earlier)
    write_json(folder / "audit.json", {"findings": rows})


def find_audit(manifest: pd.DataFrame, runs: Path = Path("runs")) -> Path | None:
    """The newest finished audit of this very cohort: the same files, labels, splits and patients; None for none."""
    pages = sorted(runs.glob("*/audit.html"), key=lambda page: page.stat().st_mtime, reverse=True)
    signed = sign_rows(manifest) if pages else ""
    for folder in (page.parent for page in pages):
        try:
            facts = read_json(folder / "audit.json")
        except (OSError, ValueError):
            log.warning("audit.json in %s cannot be read: it is not asked what it found", folder)
            continue
        if facts.get("cohort") == signed and facts.get("content") == sign_contents(manifest):
            return folder
    return None


def _name_images(findings: list[Finding], manifest: pd.DataFrame) -> list[dict[str, Any]]:
    places = manifest[["source", "path"]].to_numpy().tolist()
    shown = [{"groups": [[places[row] for row in group] for group in finding.groups]} for finding in findings]
    return [asdict(finding) | groups for finding, groups in zip(findings, shown, strict=True)]


def _choose(manifest: pd.DataFrame, findings: list[Finding]) -> pd.DataFrame:
    """The images that findings speak of; `role` says of which finding and group."""
    chosen = [
        manifest.loc[list(group)].assign(role=f"{finding.check}:{number}")
        for finding in findings
        for number, group in enumerate(finding.groups)
    ]
    return pd.concat(chosen) if chosen else manifest.iloc[:0].assign(role="")
