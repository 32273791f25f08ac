"""Tests for filters.py"""

import logging

import pandas as pd
import pytest
from toy_datasets import check_message

from fastcxr.data.filters import filter_tables
from fastcxr.errors import RecipeError


def table(source: str = "here", labels: str = "aabbc", **columns) -> pd.DataFrame:
    paths = [f"{i}.png" for i in range(len(labels))]
    return pd.DataFrame({"source": source, "path": paths, "label": list(labels), **columns}, dtype="str")


def refuse(tables, **choices) -> str:
    with pytest.raises(RecipeError) as caught:
        filter_tables(tables, **choices)
    assert caught.value.code == "E022"
    return check_message(caught.value)


def test_labels_are_renamed_all_at_once_and_the_given_table_stays(caplog):
    given = table()
    with caplog.at_level(logging.INFO, "fastcxr"):
        (found,) = filter_tables([given], relabel=("a=b", "b=a", "c=x"))
    assert found["label"].tolist() == ["b", "b", "a", "a", "x"]
    assert given["label"].tolist() == list("aabbc")
    assert "relabelled: a to b (2), b to a (2), c to x (1)" in caplog.text


def test_a_label_may_hold_the_sign_itself():
    (found,) = filter_tables([table().replace("a", "p=0.5")], relabel=("p=0.5=a",))
    assert found["label"].tolist() == list("aabbc")


def test_classes_are_chosen_after_renaming_and_the_others_are_counted(caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        (found,) = filter_tables([table()], relabel=("c=b",), classes=("b",))
    assert found["label"].tolist() == ["b"] * 3
    assert isinstance(found.index, pd.RangeIndex)
    assert "classes left out: a (2) (2 images)" in caplog.text


def test_rows_are_chosen_by_their_columns(caplog):
    given = table(view=["PA", "AP", "L", None, "PA"], sex=list("MFMFM"))
    with caplog.at_level(logging.INFO, "fastcxr"):
        (found,) = filter_tables([given], filter=("view=PA,AP", "sex=M"))
    assert found["path"].tolist() == ["0.png", "4.png"]
    assert "left out by view: L (1), an empty cell (1) (2 images)" in caplog.text


def test_choices_of_one_column_add_up_and_an_empty_value_is_an_empty_cell():
    given = table(view=["PA", "AP", "L", None, "PA, AP"])
    paths = [f"{i}.png" for i in range(5)]
    assert filter_tables([given], filter=("view=PA", "view=L"))[0]["path"].tolist() == [paths[0], paths[2]]
    assert filter_tables([given], filter=("view=,L",))[0]["path"].tolist() == [paths[2], paths[3]]
    assert filter_tables([given], filter=("view=PA, AP",))[0]["path"].tolist() == [paths[4]], (
        "the whole text is a value"
    )


def test_a_source_that_says_nothing_of_the_column_is_kept_whole(caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        found = filter_tables([table("one"), table("two", view=list("PLPLP"))], filter=("view=P",))
    assert [len(part) for part in found] == [5, 3]
    assert "nothing is said of view by one: all 5 images stay" in caplog.text


@pytest.mark.parametrize(
    ("choices", "remedy"),
    [
        ({"relabel": ("Covid19=x",)}, "no class is called 'Covid19' (did you mean 'COVID-19'?). There are COVID-19"),
        ({"relabel": ("normal",)}, "relabel 'normal' is not of the form theirs=ours. Write --relabel 'theirs=ours'"),
        ({"relabel": ("normal",)}, "Write --relabel 'theirs=ours'"),
        ({"relabel": ("normal=",)}, "not of the form theirs=ours"),
        ({"relabel": ("normal=a", "normal=b")}, "two names, 'a' and 'b'. Give each class one name"),
        ({"classes": ("norml",)}, "no class is called 'norml' (did you mean 'normal'?). There are COVID-19, n"),
        ({"filter": ("veiw=PA",)}, "filter: no column is called 'veiw' (did you mean 'view'?). There are source, path"),
        ({"filter": ("view=PAA",)}, "filter view: no value is called 'PAA' (did you mean 'PA'?). There are AP, PA"),
        ({"filter": ("view",)}, "Write --filter 'column=value,value'"),
    ],
)  # fmt: skip
def test_a_name_that_is_not_there_is_refused_with_what_there_is(choices, remedy):
    given = pd.DataFrame({"source": "here", "path": ["a", "b"], "label": ["COVID-19", "normal"], "view": ["PA", "AP"]})
    assert remedy in refuse([given], **choices)
