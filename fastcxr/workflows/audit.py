"""A recipe's data flags and an empty folder come in; what could make any model's figures wrong goes out, as a page."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.audit.findings import Finding, sort_by_verdict
from fastcxr.audit.image_features import extract_features
from fastcxr.audit.manifest_checks import check_manifest
from fastcxr.audit.near_duplicates import check_near_duplicates
from fastcxr.audit.shortcut_probes import check_shortcuts
from fastcxr.config.recipe import Recipe
from fastcxr.data.bit_depth import read_depths
from fastcxr.data.fingerprint import content_fingerprint, manifest_fingerprint
from fastcxr.data.manifest import describe_manifest, write_manifest
from fastcxr.io.files import read_json, write_json
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.report.pages import write_audit_page
from fastcxr.report.run_reader import read_findings
from fastcxr.workflows.load import assign_recipe_splits, load_dataset
from fastcxr.workflows.run_dir import OutputDir, write_thumbnails

log = logging.getLogger("fastcxr")
MAX_PROBE_IMAGES = 2000  # images that probes are fitted on


def audit(recipe: Recipe, folder: str | Path, progress: Progress | None = None, command: str | None = None) -> Path:
    """Check the recipe's data for leaks and shortcuts, into `folder`; returns the path of audit.html.

    Images that cannot be read are left out and listed in skipped.csv. The split is the one that a run would train on.
    Raises a FastcxrError for data or a folder that cannot be used.
    """
    with OutputDir(folder, command).open(progress or make_default_progress()) as output_dir:
        manifest = assign_recipe_splits(load_dataset(recipe.replace(skip_bad=True), output_dir), recipe)
        output_dir.extra_metadata = {"cohort": describe_manifest(manifest), "seed": recipe.seed}
        findings = run_checks(manifest, recipe.seed, output_dir)
        write_manifest(manifest, output_dir.folder / "manifest.csv")
        fingerprints = {"cohort": manifest_fingerprint(manifest), "content": content_fingerprint(manifest)}
        write_findings(output_dir.folder, findings, manifest, **fingerprints)
        write_thumbnails(output_dir.folder, _select_finding_images(manifest, findings))
    return write_audit_page(folder)


def run_checks(manifest: pd.DataFrame, seed: int, progress: Progress) -> list[Finding]:
    """All findings, the worst first."""
    features = extract_features(manifest["file"].tolist(), progress, read_depths(manifest))
    sampled_rows = manifest.sample(min(MAX_PROBE_IMAGES, len(manifest)), random_state=seed).index.sort_values()
    probe_findings = check_shortcuts(
        manifest.loc[sampled_rows].reset_index(drop=True), features.select_rows(sampled_rows.to_numpy()), progress
    )
    return sort_by_verdict([*check_manifest(manifest), check_near_duplicates(manifest, features), *probe_findings])


def write_findings(folder: Path, findings: list[Finding], manifest: pd.DataFrame, **metadata: Any) -> None:
    """audit.json: every finding, its images by source and path, and further facts."""
    write_json(folder / "audit.json", {"findings": _add_image_paths(findings, manifest)} | metadata)


def check_before_training(folder: Path, manifest: pd.DataFrame) -> None:
    """audit.json of a run: what the quick checks find, and what a finished audit in runs/ found of this very cohort."""
    rows = _add_image_paths(check_manifest(manifest), manifest)
    earlier = find_audit(manifest)
    if earlier is not None:
        quick_checks = {row["check"] for row in rows}
        rows += [row for row in read_findings(earlier) if row["check"] not in quick_checks]
        log.info("findings of %s taken over", earlier)
    write_json(folder / "audit.json", {"findings": rows})


def find_audit(manifest: pd.DataFrame, runs: Path = Path("runs")) -> Path | None:
    """The newest finished audit of this very cohort: the same files, labels, splits and patients; None for none."""
    reports = sorted(runs.glob("*/audit.html"), key=lambda page: page.stat().st_mtime, reverse=True)
    fingerprint = manifest_fingerprint(manifest) if reports else ""
    for folder in (page.parent for page in reports):
        try:
            saved = read_json(folder / "audit.json")
        except (OSError, ValueError):
            log.warning("audit.json in %s cannot be read: it is not asked what it found", folder)
            continue
        if saved.get("cohort") == fingerprint and saved.get("content") == content_fingerprint(manifest):
            return folder
    return None


def _add_image_paths(findings: list[Finding], manifest: pd.DataFrame) -> list[dict[str, Any]]:
    image_ids = manifest[["source", "path"]].to_numpy().tolist()
    group_paths = [{"groups": [[image_ids[row] for row in group] for group in finding.groups]} for finding in findings]
    return [asdict(finding) | groups for finding, groups in zip(findings, group_paths, strict=True)]


def _select_finding_images(manifest: pd.DataFrame, findings: list[Finding]) -> pd.DataFrame:
    """The images that findings speak of; `role` says of which finding and group."""
    selected = [
        manifest.loc[list(group)].assign(role=f"{finding.check}:{number}")
        for finding in findings
        for number, group in enumerate(finding.groups)
    ]
    return pd.concat(selected) if selected else manifest.iloc[:0].assign(role="")
