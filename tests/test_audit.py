"""An audit is one page and one JSON file, and a failed check stands on every report of that cohort."""

import json
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
from toys import write_toys

from fastcxr.audit import audit
from fastcxr.evaluation.notices import _one_with_class
from fastcxr.recipe import Recipe
from fastcxr.run import run


@pytest.fixture
def leaky(tmp_path):
    """Toys in given splits, one picture of train in test again."""
    toys = write_toys(tmp_path / "toys", per_class=16)
    for label in sorted(toys.iterdir()):
        for number, file in enumerate(sorted(label.glob("*.png"))):
            place = tmp_path / "data" / ("train", "train", "valid", "test")[number // 2 % 4] / label.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place / file.name)
    clear = tmp_path / "data" / "train" / "clear"
    shutil.copy(min(clear.iterdir()), tmp_path / "data" / "test" / "clear" / "again.png")
    return tmp_path / "data"


def test_the_page_names_what_failed_and_shows_it_side_by_side(leaky, tmp_path):
    page = audit(Recipe(data=str(leaky)), tmp_path / "audit")
    findings = json.loads((tmp_path / "audit" / "audit.json").read_text())["findings"]
    assert findings[0]["verdict"] == "FAIL"
    copies = next(finding for finding in findings if finding["check"] == "copies")
    assert copies["verdict"] == "FAIL"
    assert "test/clear/again.png" in {path for group in copies["groups"] for _, path in group}
    text = page.read_text()
    assert "again.png" in text.replace("<wbr>", "") and text.count("data:image/jpeg;base64") >= 2
    assert "1 picture several times across splits." in text


@pytest.mark.parametrize("reason", [None, "the copy is known"])
def test_a_report_of_such_a_cohort_is_stamped_unless_somebody_says_why_not(leaky, tmp_path, reason):
    recipe = Recipe("mobilenetv2_035", data=str(leaky), weights="none", image_size=64, epochs=1, strategy="deep")
    text = run(recipe.but(accept_confounding=reason), tmp_path / "run").read_text()
    assert ("Confounded: do not use these figures" in text) == (reason is None)
    assert ("The reason given: the copy is known" in text) == (reason is not None)
    assert (tmp_path / "run" / "audit.json").exists()


def test_images_that_cannot_be_read_are_counted_on_the_page(leaky, tmp_path):
    (leaky / "train" / "clear" / "broken.png").write_bytes(b"no image")
    page = audit(Recipe(data=str(leaky)), tmp_path / "audit")
    assert "1 image left out" in page.read_text()


def test_a_failed_check_of_something_else_hides_no_warning_of_sources():
    for check, is_there in (("copies", True), ("sources", False)):
        record = SimpleNamespace(
            findings=[{"check": check, "verdict": "FAIL"}],
            files=pd.DataFrame(columns=["label", "kind", "width", "height", "images"]),
            table=pd.DataFrame({"source": ["s", "t"] * 9, "label": ["a", "b"] * 9}),
        )
        titles = [notice.title for notice in _one_with_class(record)]
        assert ("Class and source are one" in titles) == is_there
