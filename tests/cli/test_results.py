"""Commands that read finished runs: compare and report."""

from synthetic_run import build_run, make_manifest


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


def test_report_without_images_is_written_and_its_path_printed(call, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.report.run_page.make_run_figures", lambda *_: {})
    folder = build_run(tmp_path / "run", make_manifest(n=120))
    done = call("report", "run", "--no-images", where=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "run/report-no-images.html"), done.stderr
    text = (folder / "report-no-images.html").read_text(encoding="utf-8")
    assert "data:image" not in text and "This report has no images" in text
    assert not (folder / "report.html").exists()


def test_report_without_images_of_saliency_maps_is_refused(call, tmp_path):
    (tmp_path / "explain.html").write_text("")
    done = call("report", tmp_path, "--no-images")
    assert done.returncode == 66
    assert (
        "FCX-E711" in done.stderr and "it consists of saliency maps. Pass the folder of a finished run" in done.stderr
    )
