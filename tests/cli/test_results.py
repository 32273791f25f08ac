"""Commands that read finished runs: compare."""

from synthetic_run import build_run


def test_compare_prints_the_leaderboard_and_the_number_of_shared_images(call, tmp_path):
    for name in ("first", "second"):
        build_run(tmp_path / name, thumbnails=False)
    done = call("compare", "first", "second", "--out", "comparison", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "first" in done.stderr and "second" in done.stderr
    assert "images shared by all models" in done.stderr
    assert "comparison/compare.html" in done.stdout


def test_compare_states_that_runs_share_no_image(call, tmp_path):
    for name in ("first", "second"):
        build_run(tmp_path / name, thumbnails=False)
    predictions = tmp_path / "second" / "predictions.csv"
    predictions.write_text(predictions.read_text().replace("made-up,", "other,"))
    done = call("compare", "first", "second", "--out", "comparison", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no shared images: not tested" in done.stderr
