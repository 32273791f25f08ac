"""Tests for privacy.py"""

from fastcxr.privacy import hide_places, without_places
from fastcxr.recipe import Recipe


def test_of_an_absolute_path_the_last_part_stays_and_a_relative_one_is_kept():
    recipe = Recipe(data=("/home/ZZTESTNAME/a", "b/c"), weights="/home/ZZTESTNAME/w.pth", patients="/ZZTESTNAME/p.csv")
    shown = without_places(recipe)
    assert (shown.data, shown.weights, shown.patients) == (("a", "b/c"), "w.pth", "p.csv")
    assert without_places(Recipe()) == Recipe()


def test_a_command_keeps_its_words_and_loses_its_absolute_paths(tmp_path):
    place = tmp_path / "ZZTESTNAME" / "my data"
    place.mkdir(parents=True)
    command = f"fastcxr train --data '{place}' --out='{place}' --weights '{place}/new.pth' --patient-regex '/(.*)_' a/b"
    shown = hide_places(command)
    assert shown == "fastcxr train --data 'my data' '--out=my data' --weights new.pth --patient-regex '/(.*)_' a/b"
    assert hide_places(None) is None
