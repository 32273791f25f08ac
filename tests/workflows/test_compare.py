"""Runs become one page and one JSON file; a run is known by as much of its path as it takes."""

import json

import numpy as np
import pandas as pd
import pytest

from fastcxr.errors import InputMissingError, OutputError
from fastcxr.metrics.predictions import make_predictions, write_predictions
from fastcxr.workflows.compare import compare

LABELS = ("clear", "haze")


@pytest.fixture
def runs(tmp_path):
    """Two runs of one name in two folders: a good one and a poor one."""
    truth = np.arange(120) % 2
    rows = pd.DataFrame({
        "source": "s", "path": [f"{i}.png" for i in range(120)], "label": np.array(LABELS)[truth],
        "patient": [f"p{i // 3}" for i in range(120)], "split": "test",
    })  # fmt: skip
    places = []
    for seed, noise in ((1, 0.6), (2, 6.0)):
        odds = 2 * truth - 1 + noise * np.random.default_rng(seed).normal(size=120)
        place = tmp_path / f"study-{seed}" / "run"
        place.mkdir(parents=True)
        score = 1 / (1 + np.exp(-odds))
        write_predictions(
            make_predictions(rows, np.stack([1 - score, score], axis=1), LABELS), place / "predictions.csv"
        )
        places.append(place)
    return places


def test_the_page_and_the_numbers_say_the_same(runs, tmp_path):
    page = compare(reversed(runs), tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["name"] for row in facts["rows"]] == ["study-1/run", "study-2/run"]
    assert facts["n_shared_images"] == 120 and facts["patients"] == 40
    text = page.read_text()
    assert "Evaluated on 120 shared images of 40 patients." in text
    value, low, high = facts["rows"][0]["auroc"]
    assert f"{value:.3f}" in text and f"{low:.3f}–{high:.3f}" in text
    assert "&lt; 0.001" in text and (tmp_path / "out" / "figures" / "roc_1.svg").exists()


def test_the_same_comparison_gives_the_same_page(runs, tmp_path):
    pages = [compare(runs, tmp_path / name).read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_what_cannot_be_compared_is_told_before_anything_is_written(runs, tmp_path):
    with pytest.raises(InputMissingError, match="at least two"):
        compare(runs[:1], tmp_path / "out")
    with pytest.raises(InputMissingError, match="the same run twice"):
        compare([runs[0], runs[0] / ".." / "run"], tmp_path / "out")
    with pytest.raises(InputMissingError, match="no such file"):
        compare([runs[0], tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="not empty"):
        compare(runs, runs[0])
