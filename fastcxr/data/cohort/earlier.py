"""A manifest, and that of an earlier run, come in; the place that each unit had then, where it had one, goes out."""

import pandas as pd

from fastcxr.data.cohort.tables import name_some
from fastcxr.errors import DataError

SPLITS = ("train", "valid", "test")
NEEDED = ("source", "path", "patient", "split")


def find_kept(manifest: pd.DataFrame, keys: pd.Series, earlier: pd.DataFrame, unit: str) -> dict[str, str]:
    """The earlier split of every unit that was there, by image, or by patient for an image that was not there.

    Raises DataError (E018) if there is nothing in common, or if a patient, or copies of an image, stood in several
    splits.
    """
    earlier = _check_columns(earlier)
    images = _name_images(manifest)
    by_image = images.map(_choose(earlier, _name_images(earlier)))
    if unit == "image":
        if not by_image.notna().any():
            raise _refuse("no image in common", "Choose a run on the same images")
        known = by_image.notna()
        _refuse_torn(keys[known], by_image[known], "images with exact copies", "Split anew without --split-from")
        return dict(zip(keys[known], by_image[known], strict=True))
    by_patient = manifest["patient"].map(_choose(earlier, earlier["patient"]))
    if not by_patient.notna().any():
        raise _refuse(f"no patient in common{_hint_salt(manifest, earlier)}", "Choose a run on the same patients")
    # by image first: patients who are one by now, for a table or a copy says so, were perhaps two then
    found = by_image.where(by_image.notna(), by_patient)
    known = found.notna()
    fix = "Use --split image to keep every image's place, or split anew without --split-from"
    _refuse_torn(keys[known], found[known], "patients", fix)
    return dict(zip(keys[known], found[known], strict=True))


def _check_columns(earlier: pd.DataFrame) -> pd.DataFrame:
    if missing := [name for name in NEEDED if name not in earlier]:
        raise _refuse(f"no columns {name_some(map(repr, missing))}", "Choose the manifest.csv of a run folder")
    earlier = earlier[earlier["split"].notna()]
    if not earlier["split"].isin(SPLITS).all():
        raise _refuse("splits of another name than train, valid and test", "Choose the manifest.csv of a run folder")
    return earlier


def _choose(earlier: pd.DataFrame, keys: pd.Series) -> pd.Series:
    """The split of each key; several are written as one name, so that they are noticed."""
    return earlier["split"].groupby(keys).agg(lambda splits: " and ".join(sorted(set(splits))))


def _name_images(table: pd.DataFrame) -> pd.Series:
    return table["source"] + "\n" + table["path"]


def _refuse_torn(keys: pd.Series, found: pd.Series, units: str, fix: str) -> None:
    places = found.groupby(keys).agg(set)
    torn = places.index[places.map(lambda splits: len(splits) > 1 or not splits <= set(SPLITS))]
    if len(torn):
        what = f"{len(torn):,} {units} stood in several splits (such as {name_some(torn, 5)})"
        raise _refuse(what, fix)


def _hint_salt(manifest: pd.DataFrame, earlier: pd.DataFrame) -> str:
    now, then = (_find_salts(table["patient"]) for table in (manifest, earlier))
    if not now or not then or now & then:
        return ""
    return f"; both name patients by hashed DICOM tags, with other salts ({name_some(sorted(now))} now, " + (
        f"{name_some(sorted(then))} then): use the salt of that machine (FASTCXR_SALT)"
    )


def _find_salts(patients: pd.Series) -> set[str]:
    return set(patients.str.extract(r"^dicom-([0-9a-f]{4})-[0-9a-f]{16}$")[0].dropna())


def _refuse(what: str, fix: str) -> DataError:
    return DataError(f"the splits of the earlier run cannot be kept: {what}", fix, code="E018")
