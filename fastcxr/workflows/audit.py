"""Data audit: check a dataset for leakage and shortcuts before training, and write the results."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.audit.findings import Finding, sort_by_verdict
from fastcxr.audit.image_features import ImageFeatures, extract_features
from fastcxr.audit.label_probes import check_label_shortcuts
from fastcxr.audit.manifest_checks import check_manifest
from fastcxr.audit.near_duplicates import check_near_duplicates
from fastcxr.audit.shortcut_probes import check_shortcuts
from fastcxr.config.recipe import Recipe
from fastcxr.data.bit_depth import read_depths
from fastcxr.data.findings import is_multi_label
from fastcxr.data.fingerprint import content_fingerprint, manifest_fingerprint
from fastcxr.data.manifest import describe_manifest
from fastcxr.data.manifest_file import write_manifest
from fastcxr.io.files import read_json, write_json
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.report.pages import write_audit_page
from fastcxr.report.run_reader import read_findings
from fastcxr.workflows.load import assign_recipe_splits, load_dataset
from fastcxr.workflows.run_dir import OutputDir, write_thumbnails

log = logging.getLogger("fastcxr")
AUDITS_DIR = Path("runs")  # training reuses the findings of the audits in this folder
MAX_PROBE_IMAGES = 2000  # images that probes are fitted on


def audit(recipe: Recipe, folder: str | Path, progress: Progress | None = None, command: str | None = None) -> Path:
    """Check the data of a recipe for leakage and shortcuts; return the path of audit.html.

    Unreadable images are left out and listed in skipped.csv. The splits are those of a training run. Raises
    FastcxrError for data or a folder that cannot be used.
    """
    with OutputDir(folder, command).open(progress or make_default_progress()) as output_dir:
        manifest = assign_recipe_splits(load_dataset(recipe.replace(skip_bad=True), output_dir), recipe)
        output_dir.announce()
        output_dir.extra_metadata = {"cohort": describe_manifest(manifest), "seed": recipe.seed}
        findings = run_checks(manifest, recipe.seed, output_dir)
        write_manifest(manifest, output_dir.folder / "manifest.csv")
        fingerprints = {"cohort": manifest_fingerprint(manifest), "content": content_fingerprint(manifest)}
        write_findings(output_dir.folder, findings, manifest, **fingerprints)
        write_thumbnails(output_dir.folder, _select_finding_images(manifest, findings))
    return write_audit_page(folder)


def run_checks(manifest: pd.DataFrame, seed: int, progress: Progress) -> list[Finding]:
    """Run all checks of a manifest with splits; return the findings, failed checks first."""
    features = extract_features(manifest["file"].tolist(), progress, read_depths(manifest))
    findings = [*check_manifest(manifest), check_near_duplicates(manifest, features)]
    return sort_by_verdict([*findings, *run_probes(manifest, features, seed, progress)])


def run_probes(manifest: pd.DataFrame, features: ImageFeatures, seed: int, progress: Progress) -> list[Finding]:
    """Return the findings of the shortcut probes, which are fitted on a sample of MAX_PROBE_IMAGES images."""
    sampled_rows = manifest.sample(min(MAX_PROBE_IMAGES, len(manifest)), random_state=seed).index.sort_values()
    check = check_label_shortcuts if is_multi_label(manifest) else check_shortcuts
    sampled = manifest.loc[sampled_rows].reset_index(drop=True)
    return check(sampled, features.select_rows(sampled_rows.to_numpy()), progress)


def write_findings(folder: Path, findings: list[Finding], manifest: pd.DataFrame, **metadata: Any) -> None:
    """Write audit.json: the findings, their images by source and path, and further metadata."""
    write_json(folder / "audit.json", {"findings": _add_image_paths(findings, manifest)} | metadata)


def check_before_training(folder: Path, manifest: pd.DataFrame, *, reuse_audit: bool = True) -> None:
    """Write audit.json of a run: the findings of the manifest checks and of a finished audit of the same data.

    `reuse_audit`: whether an earlier audit is used, which audit.json then names with its date.
    """
    rows = _add_image_paths(check_manifest(manifest), manifest)
    content: dict[str, Any] = {"findings": rows}
    if reuse_audit and (earlier_audit := find_audit(manifest)):
        audit_folder, date = earlier_audit
        manifest_checks = {row["check"] for row in rows}
        rows += [row for row in read_findings(audit_folder) if row["check"] not in manifest_checks]
        content["reused_audit"] = {"folder": audit_folder.name, "date": date}
        log.info("results of the audit in %s of %s are reused (`reuse_audit=False` ignores it)", audit_folder, date)
    write_json(folder / "audit.json", content)


def is_reusable_audit(folder: Path) -> bool:
    """Return whether the folder is one of those in which find_audit searches."""
    return folder.resolve().parent == AUDITS_DIR.resolve()


def find_audit(manifest: pd.DataFrame) -> tuple[Path, str] | None:
    """Return folder and date of the newest finished audit with the same files, labels, splits and patients, or None."""
    reports = sorted(AUDITS_DIR.glob("*/audit.html"), key=lambda page: page.stat().st_mtime, reverse=True)
    fingerprint = manifest_fingerprint(manifest) if reports else ""
    for folder in (page.parent for page in reports):
        try:
            saved, date = read_json(folder / "audit.json"), read_json(folder / "run.json")["started"][:10]
        except (OSError, ValueError, KeyError):
            log.warning("the audit in %s cannot be read: the run does not use its results", folder)
            continue
        if saved.get("cohort") == fingerprint and saved.get("content") == content_fingerprint(manifest):
            return folder, date
    return None


def _add_image_paths(findings: list[Finding], manifest: pd.DataFrame) -> list[dict[str, Any]]:
    image_ids = manifest[["source", "path"]].to_numpy().tolist()
    return [
        asdict(finding) | {"groups": [[image_ids[row] for row in group] for group in finding.groups]}
        for finding in findings
    ]


def _select_finding_images(manifest: pd.DataFrame, findings: list[Finding]) -> pd.DataFrame:
    """Return the images of all findings; `role` is the check and the number of the group."""
    selected = [
        manifest.loc[list(group)].assign(role=f"{finding.check}:{number}")
        for finding in findings
        for number, group in enumerate(finding.groups)
    ]
    return pd.concat(selected) if selected else manifest.iloc[:0].assign(role="")
