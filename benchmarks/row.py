"""A row of the table that faults.py prints."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One fault: how often it was injected and survived, and what that cost, in words."""

    fault: str
    injected: int
    survived: int
    lost: str
