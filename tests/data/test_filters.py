"""Tests of relabelling, class selection and row filters."""

import logging

import pandas as pd
import pytest
from toy_datasets import check_message

from fastcxr.data.filters import filter_tables
from fastcxr.errors import RecipeError


def table(source: str = "here", labels: str = "aabbc", **columns) -> pd.DataFrame:
    paths = [f"{i}.png" for i in range(len(labels))]
    return pd.DataFrame({"source": source, "path": paths, "label": list(labels), **columns}, dtype="str")


def catch_error(tables, **choices) -> str:
    with pytest.raises(RecipeError) as caught:
        filter_tables(tables, **choices)
    assert caught.value.code == "E022"
    return check_message(caught.value)


def test_labels_are_renamed_in_one_step_and_the_input_is_unchanged(caplog):
    given = table()
    with caplog.at_level(logging.INFO, "fastcxr"):
        (found,) = filter_tables([given], relabel=("a=b", "b=a", "c=x"))
    assert found["label"].tolist() == ["b", "b", "a", "a", "x"]
    assert given["label"].tolist() == list("aabbc")
    assert "relabelled: a to b (2), b to a (2), c to x (1)" in caplog.text


def test_a_label_may_contain_an_equals_sign():
    (found,) = filter_tables([table().replace("a", "p=0.5")], relabel=("p=0.5=a",))
    assert found["label"].tolist() == list("aabbc")


def test_classes_are_selected_after_renaming_and_excluded_images_are_counted(caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        (found,) = filter_tables([table()], relabel=("c=b",), classes=("b",))
    assert found["label"].tolist() == ["b"] * 3
    assert isinstance(found.index, pd.RangeIndex)
    assert "classes left out: a (2) (2 images)" in caplog.text


def test_rows_are_filtered_by_their_columns(caplog):
    given = table(view=["PA", "AP", "L", None, "PA"], sex=list("MFMFM"))
    with caplog.at_level(logging.INFO, "fastcxr"):
        (found,) = filter_tables([given], filter=("view=PA,AP", "sex=M"))
    assert found["path"].tolist() == ["0.png", "4.png"]
    assert "left out by view: L (1), an empty cell (1) (2 images)" in caplog.text


def test_filters_of_one_column_are_combined_and_an_empty_value_means_an_empty_cell():
    given = table(view=["PA", "AP", "L", None, "PA, AP"])
    paths = [f"{i}.png" for i in range(5)]
    assert filter_tables([given], filter=("view=PA", "view=L"))[0]["path"].tolist() == [paths[0], paths[2]]
    assert filter_tables([given], filter=("view=,L",))[0]["path"].tolist() == [paths[2], paths[3]]
    assert filter_tables([given], filter=("view=PA, AP",))[0]["path"].tolist() == [paths[4]], (
        "the whole text is a value"
    )


def test_a_source_without_values_in_the_column_keeps_all_rows(caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        found = filter_tables([table("one"), table("two", view=list("PLPLP"))], filter=("view=P",))
    assert [len(part) for part in found] == [5, 3]
    assert "no values of view in one: all 5 images are kept" in caplog.text


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"relabel": ("Covid19=x",)}, "no class is called 'Covid19' (did you mean 'COVID-19'?). Choose from COVID-19"),
        ({"relabel": ("normal",)}, "does not have the form theirs=ours. Pass `relabel=['theirs=ours']`"),
        ({"relabel": ("normal=",)}, "does not have the form theirs=ours"),
        ({"relabel": ("normal=a", "normal=b")}, "two names, 'a' and 'b'. Give each class one name"),
        ({"classes": ("normals",)}, "no class is called 'normals' (did you mean 'normal'?). Choose from COVID-19, n"),
        ({"filter": ("views=PA",)}, "filter: no column is called 'views' (did you mean 'view'?). Choose from source"),
        ({"filter": ("view=PAA",)}, "filter view: no value is called 'PAA' (did you mean 'PA'?). Choose from AP, PA"),
        ({"filter": ("view",)}, "Pass `filter=['column=value,value']`"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_rejected_with_the_existing_names(choices, expected):
    given = pd.DataFrame({"source": "here", "path": ["a", "b"], "label": ["COVID-19", "normal"], "view": ["PA", "AP"]})
    assert expected in catch_error([given], **choices)
