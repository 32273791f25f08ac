"""What a check found: a verdict, its figure beside what chance gives, the images it speaks of, and what to do."""

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["PASS", "WARN", "FAIL"]
VERDICT_ORDER = {"FAIL": 0, "WARN": 1, "PASS": 2}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check of a cohort.

    figure: the number that the verdict rests on, null: what chance gives, both None where there is none. groups: images
    that belong side by side, by their row in the manifest.
    """

    check: str
    title: str
    verdict: Verdict
    message: str
    fix: str = ""
    value: float | None = None
    chance_level: float | None = None
    groups: tuple[tuple[int, ...], ...] = field(default=())


def sort_by_verdict(findings: list[Finding]) -> list[Finding]:
    """Failures, then warnings, then the rest, each in the order of the checks."""
    return sorted(findings, key=lambda finding: VERDICT_ORDER[finding.verdict])


def format_count(n: int, noun: str = "image") -> str:
    """1 image, 1,234 images."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
