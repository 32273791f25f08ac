"""The map of the features in the report: panels, captions, groups, and the table of the run folder."""

import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from finding_run import build_finding_run, make_finding_manifest
from html_page import Page
from synthetic_run import LABELS, build_run, make_manifest

from fastcxr.errors import DataError
from fastcxr.metrics.feature_map import FEATURE_MAP_FILE, make_feature_map
from fastcxr.report import feature_map as module
from fastcxr.report.feature_map import describe_feature_map, group_points, make_feature_map_figures
from fastcxr.report.run_page import write_run_report
from fastcxr.report.run_reader import read_run_record
from fastcxr.report.style import CLASS_COLORS
from fastcxr.workflows.run_dir import write_table

pytestmark = pytest.mark.usefixtures("few_draws")
HOSTILE = '=<b>"&x'


def draw_map(manifest, seed=0):
    """Return the map of images whose features depend on the source and a little on the class."""
    images = manifest[manifest["split"].isin(["train", "valid"])]
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(len(images), 6))
    features[:, 0] += 20 * (images["source"] == "kermany").to_numpy()
    return make_feature_map(images, features)


def write_run(folder, manifest, build=build_run):
    build(folder, manifest=manifest, thumbnails=False)
    write_table(folder / FEATURE_MAP_FILE, draw_map(manifest))
    return folder


def read_texts(figure):
    return [" ".join(element.itertext()) for element in ElementTree.fromstring(figure.svg).iter() if element.text]


@pytest.fixture(scope="module")
def manifest():
    table = make_manifest(n=400)
    sources = np.where(table["patient"].astype(int) % 4 == 0, "kermany", HOSTILE)
    return table.assign(source=sources)


@pytest.fixture(scope="module")
def run_folder(manifest, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("map") / "run", manifest)


def test_the_table_is_read_as_it_was_written(run_folder, manifest):
    expected = draw_map(manifest)
    found = read_run_record(run_folder).feature_map
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert HOSTILE in set(found["source"])
    assert HOSTILE not in set(pd.read_csv(run_folder / FEATURE_MAP_FILE)["source"]), "not escaped"


def test_data_of_two_sources_has_a_panel_by_class_and_one_by_source(run_folder, manifest):
    figures = make_feature_map_figures(read_run_record(run_folder))
    assert [figure.name for figure in figures] == ["feature_map_class", "feature_map_source"]
    texts = [" ".join(read_texts(figure)) for figure in figures]
    assert all(label in texts[0] for label in LABELS)
    assert HOSTILE in texts[1] and "kermany" in texts[1]
    by_class, by_source = (float(re.search(r"([\d.]+) % of", figure.caption)[1]) for figure in figures)
    chance = [float(re.search(r"([\d.]+) % expected", figure.caption)[1]) for figure in figures]
    assert abs(by_class - chance[0]) < 15
    assert by_source == 100
    share = (manifest["source"] == "kermany").mean()
    assert chance[1] == pytest.approx(100 * (share**2 + (1 - share) ** 2), abs=5)


def test_the_report_shows_the_map_and_what_to_look_for(run_folder):
    page = Page(write_run_report(run_folder).read_text(encoding="utf-8"))
    assert "feature-map" in page.ids
    assert "If points group by source and not by class, the model can identify the source" in page.text
    assert "Same source as the nearest image: 100.0 % of" in page.text
    assert (run_folder / "figures" / "feature_map_source.svg").is_file()
    page = Page(write_run_report(run_folder, figures=False).read_text(encoding="utf-8"))
    assert "feature-map" not in page.ids


def test_a_map_of_few_validation_images_states_no_share(tmp_path):
    manifest = make_finding_manifest(n=100)
    record = read_run_record(write_run(tmp_path / "run", manifest, build_finding_run))
    assert 0 < (record.feature_map["split"] == "valid").sum() < module.MIN_SHARE_IMAGES
    figures = make_feature_map_figures(record)
    note = "An image with several findings counts for the most frequent one."
    assert [figure.caption for figure in figures] == [note, ""]
    assert "earest image" not in describe_feature_map(record) + figures[0].svg


def test_data_of_one_source_has_one_panel_or_one_by_view(tmp_path, manifest):
    table = manifest.assign(source="kermany")
    record = read_run_record(write_run(tmp_path / "one", table))
    assert [figure.name for figure in make_feature_map_figures(record)] == ["feature_map_class"]
    assert "the model can identify" not in describe_feature_map(record)
    views = np.resize(["PA", "AP", ""], len(table))
    record = read_run_record(write_run(tmp_path / "views", table.assign(view=views)))
    figure = make_feature_map_figures(record)[1]
    assert figure.name == "feature_map_view"
    assert "not stated" in " ".join(read_texts(figure))


def test_a_run_of_findings_is_mapped_by_finding(tmp_path):
    manifest = make_finding_manifest(n=300)
    record = read_run_record(write_run(tmp_path / "run", manifest, build_finding_run))
    by_finding, by_view = make_feature_map_figures(record)
    assert by_finding.name == "feature_map_finding"
    assert "An image with several findings counts for the most frequent one." in by_finding.caption
    assert {"Atelectasis", "no finding present", "others"} <= set(re.findall(r">([A-Za-z_ ]+) <tspan", by_finding.svg))
    assert by_view.name == "feature_map_view"
    assert "several findings" not in by_view.caption


def test_a_run_without_the_table_has_no_map(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / FEATURE_MAP_FILE).unlink()
    record = read_run_record(folder)
    assert make_feature_map_figures(record) == []
    assert describe_feature_map(record) == ""


@pytest.mark.parametrize(("cell", "reason"), [("", "empty or infinite"), ("inf", "empty or infinite"), ("a", "a")])
def test_a_damaged_coordinate_is_an_error_with_the_file(run_folder, tmp_path, cell, reason):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    table = pd.read_csv(folder / FEATURE_MAP_FILE, dtype=str, keep_default_na=False)
    table.loc[3, "x"] = cell
    table.to_csv(folder / FEATURE_MAP_FILE, index=False)
    with pytest.raises(DataError, match=f"(?s){FEATURE_MAP_FILE}.*{reason}.*Restore or delete it"):
        read_run_record(folder)


def test_a_missing_column_is_an_error_with_its_name(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    pd.read_csv(folder / FEATURE_MAP_FILE).drop(columns="nearest_path").to_csv(folder / FEATURE_MAP_FILE, index=False)
    with pytest.raises(DataError, match="no column called nearest_path"):
        read_run_record(folder)


def test_of_many_groups_the_most_frequent_have_a_colour_and_shape_each():
    names = pd.Series([f"class {k}" for k in range(14) for _ in range(20 - k)])
    order = sorted(set(names))
    groups = group_points(np.zeros((len(names), 2)), names, order, 0)
    assert len(groups) == module.MAX_GROUPS + 1
    assert groups[-1].name == "others"
    assert len(groups[-1].points) == 7 + 8 + 9 + 10
    assert len({(group.color, group.shape) for group in groups}) == len(groups)
    assert groups[0].color == CLASS_COLORS[0], "the colour of the first class in every figure"


def test_two_thousand_points_are_at_most_100_kb_and_inside_the_axes():
    draw = np.random.default_rng(0)
    points = module._scale(draw.normal(size=(2000, 2)))
    names = pd.Series(draw.choice(list("abcde"), 2000))
    svg = module.draw_map(group_points(points, names, list("abcde"), 0), "By class", "PCA", "described")
    assert len(svg) < 100_000
    assert points.min() >= 0
    assert points[:, 0].max() <= module.WIDTH
    assert points[:, 1].max() <= module.AXES_TOP + module.AXES_HEIGHT
    paths = [element.get("d") for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")]
    assert sum(path.count("M") for path in paths) == 1 + 2000 + 5  # axes, images, legend


def test_equal_coordinates_are_drawn():
    assert np.isfinite(module._scale(np.ones((5, 2)))).all()


@pytest.mark.parametrize(
    ("name", "n_columns"),
    [("胸部X線写真", 2), ("胸部X線写真の肺炎の疑い", 1), ("a name of more than half the panel", 1)],
)
def test_a_long_or_wide_name_gets_a_line_of_the_legend(name, n_columns):
    groups = group_points(np.zeros((4, 2)), pd.Series([name, name, "b", "b"]), [name, "b"], 0)
    svg = module.draw_map(groups, "By class", "PCA", "described")
    lefts = re.findall(r'<text x="([\d.]+)" y="[\d.]+">[^<]+ <tspan', svg)
    assert len(set(lefts)) == n_columns
