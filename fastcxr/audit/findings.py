"""Result of one audit check: verdict, value with its chance level, affected images, and what to do."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["PASS", "WARN", "FAIL"]
FILE_FIX = "Convert the original files of all classes in the same way, or collect them in the same way."
VERDICT_ORDER = {"FAIL": 0, "WARN": 1, "PASS": 2}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of one check.

    Attributes:
        value: The number that determines the verdict, or None.
        chance_level: The value expected by chance, or None.
        groups: Related images to show together, as row numbers of the manifest.
    """

    check: str
    title: str
    verdict: Verdict
    message: str
    fix: str = ""
    value: float | None = None
    chance_level: float | None = None
    groups: tuple[tuple[int, ...], ...] = ()


def sort_by_verdict(findings: list[Finding]) -> list[Finding]:
    """Return failures first, then warnings, then passed checks, each in their original order."""
    return sorted(findings, key=lambda finding: VERDICT_ORDER[finding.verdict])


def format_count(n: int, noun: str = "image") -> str:
    """Return `1 image` or `1,234 images`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
