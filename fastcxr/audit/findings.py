"""What a check found: a verdict, its figure beside what chance gives, the images it speaks of, and what to do."""

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["PASS", "WARN", "FAIL"]
ORDER = {"FAIL": 0, "WARN": 1, "PASS": 2}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check of a cohort.

    figure: the number that the verdict rests on, null: what chance gives, both None where there is none. groups: images
    that belong side by side, by their row in the manifest.
    """

    check: str
    title: str
    verdict: Verdict
    words: str
    remedy: str = ""
    figure: float | None = None
    null: float | None = None
    groups: tuple[tuple[int, ...], ...] = field(default=())


def worst_first(findings: list[Finding]) -> list[Finding]:
    """Failures, then warnings, then the rest, each in the order of the checks."""
    return sorted(findings, key=lambda finding: ORDER[finding.verdict])


def count_images(n: int, noun: str = "image") -> str:
    """1 image, 1,234 images."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
