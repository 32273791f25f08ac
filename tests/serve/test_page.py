"""The page of `fastcxr serve` in a browser, with a server process and small models."""

import json
import re
import shutil

import httpx
import numpy as np
import pytest
from cli_calls import fastcxr
from mean_export import write_mean_export
from page_server import Watch, drop_files, start_server
from PIL import Image
from sample_images import make_dicom, save_dicom
from toy_images import draw_toy, write_toys

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.metrics.predictions import read_predictions
from fastcxr.version import VERSION

pytestmark = [pytest.mark.slow, pytest.mark.needs("playwright", "onnx", "onnxruntime", program="chromium")]
TRAIN = ["train", "resnet10t", "--weights", "none", "--strategy", "full", "--image-size", "64", "--epochs", "2"]
TOKEN = "a-token-of-the-tests-of-the-page"
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
LONG_NAME = "a_long_file_name_" + 12 * "ofthearchive" + ".png"


@pytest.fixture(scope="session")
def export(tmp_path_factory):
    """An exported model of single-label images, with a critical warning and an OOD detector; see mean_export."""
    return write_mean_export(tmp_path_factory.mktemp("single") / "export", size=64)


@pytest.fixture(scope="session")
def export_url(export):
    with start_server(export, export.with_suffix(".log")) as url:
        yield url


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of a network of PyTorch and the URL of its server."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_toys(folder / "toys", per_class=20)
    done = fastcxr(*TRAIN, "--batch-size", "8", "--figures", "none", "--data", data, "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    with start_server(folder / "run", folder / "log.txt") as url:
        yield folder / "run", url


@pytest.fixture(scope="session")
def exported(trained):
    """An export of the trained run and the URL of its server."""
    folder = trained[0].parent
    done = fastcxr("export", trained[0], "--out", folder / "export")
    assert done.returncode == 0, done.stderr
    with start_server(folder / "export", folder / "export.log") as url:
        yield folder / "export", url


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open the page of a server in a new session; at the end it must have no error and no request to another host."""
    watches, contexts = [], []

    def open_url(url, viewport=DESKTOP, before=lambda page: None):
        contexts.append(browser.new_context(viewport=viewport))
        page = contexts[-1].new_page()
        page.watch = Watch(page, url)
        watches.append(page.watch)
        before(page)
        page.goto(url)
        expect(page.locator("#limits")).to_contain_text("per file")
        return page

    yield open_url
    for context in contexts:
        context.close()
    for watch in watches:
        watch.check()


def expect(locator):
    from playwright.sync_api import expect as expect_locator

    return expect_locator(locator)


@pytest.fixture(scope="session")
def three_files(tmp_path_factory):
    """A PNG, a DICOM file of the kind MONOCHROME1, and a damaged PNG."""
    folder = tmp_path_factory.mktemp("three")
    Image.fromarray(draw_toy("haze", 900)).save(folder / "scan.png")
    inverted = make_dicom(255 - draw_toy("opacity", 901), PhotometricInterpretation="MONOCHROME1")
    save_dicom(folder / "inverted.dcm", inverted)
    (folder / "broken.png").write_bytes((folder / "scan.png").read_bytes()[:300])
    return [folder / "scan.png", folder / "inverted.dcm", folder / "broken.png"]


def find_card(page, name):
    return page.locator(".card").filter(has=page.get_by_role("heading", name=name, exact=True))


def read_values(card) -> dict[str, float]:
    """Return the probabilities of a card in full precision, by label."""
    rows = card.locator(".bar-row").evaluate_all(
        "rows => rows.map(row => [row.dataset.label, row.querySelector('.p').dataset.value])"
    )
    return {label: float(value) for label, value in rows}


def predict_with_command(run, files, folder):
    """Return the rows of `fastcxr predict` by file name, and its table."""
    fastcxr("predict", run, *files, "--csv", folder / "expected.csv")
    predictions = read_predictions(folder / "expected.csv")
    return predictions.table.set_index(predictions.table["path"].str.split("/").str[-1]), predictions


@pytest.mark.parametrize("kind", ["export", "run", "export of the run"])
def test_dropped_files_give_the_results_of_the_command_and_a_reason(kind, open_page, three_files, tmp_path, request):
    if kind == "export":
        model, url = request.getfixturevalue("export"), request.getfixturevalue("export_url")
    else:
        model, url = request.getfixturevalue("trained" if kind == "run" else "exported")
    page = open_page(url)
    drop_files(page, three_files)
    expect(page.locator("#status")).to_contain_text("2 images classified, 1 without result")
    table, predictions = predict_with_command(model, three_files, tmp_path)
    for name in ("scan.png", "inverted.dcm"):
        expected = {label: table.loc[name, f"prob_{label}"] for label in predictions.labels}
        card = find_card(page, name)
        assert read_values(card) == pytest.approx(expected, abs=1e-6)
        expect(card.locator(".verdict b")).to_have_text(table.loc[name, "predicted"])
        expect(card.locator(".bar-row.present .of")).to_have_text(table.loc[name, "predicted"])
    expect(find_card(page, "broken.png").locator(".reason")).to_contain_text(table.loc["broken.png", "error"])
    assert find_card(page, "scan.png").locator("img").evaluate("image => image.naturalWidth") == 72
    expect(find_card(page, "inverted.dcm")).to_contain_text("The browser cannot show this file")


def test_out_of_distribution_uncertain_and_warnings_are_in_words(open_page, export_url, tmp_path):
    squares = np.indices((64, 64)).sum(axis=0) % 2
    for name, gray in (("dark", 20), ("middle", 114)):
        Image.fromarray((gray + 2 * squares).astype(np.uint8)).save(tmp_path / f"{name}.png")
    red = Image.fromarray(np.stack([150 + 100 * squares, 90 * squares, 90 * squares], axis=-1).astype(np.uint8))
    red.save(tmp_path / "red.png")
    page = open_page(export_url)
    page.set_input_files("#files", [tmp_path / f"{name}.png" for name in ("dark", "middle", "red")])
    expect(page.locator("#status")).to_contain_text("2 images classified, 0 without result, 1 out-of-distribution")
    dark, middle, red = (find_card(page, f"{name}.png") for name in ("dark", "middle", "red"))
    expect(dark).to_contain_text("Out-of-distribution: no predicted class")
    expect(dark).to_contain_text("Most probable: clear 0.")
    expect(dark).to_contain_text(re.compile(r"Unlike the training images: OOD score 1\.\d{3} \(above 1 is out-of"))
    dark.get_by_role("button", name="Show saliency map").click()
    expect(dark.locator(".map-note .warn")).to_contain_text("Unlike the training images: OOD score 1.")
    assert "reached" not in dark.text_content() and "reached" in red.text_content()
    assert dark.get_by_text("Uncertain").count() == 0 and dark.locator(".present").count() == 0
    expect(middle).to_contain_text(re.compile(r"In-distribution: OOD score 0\.\d{3}"))
    expect(middle).to_contain_text(
        "Uncertain: the highest probability is below the abstention threshold of 0.340; no class reaches its threshold."
    )
    expect(red).to_contain_text(re.compile("Warning: .*colour.* FCX-W203"))


def test_findings_have_bars_by_probability_and_the_decisions_of_the_command(open_page, tmp_path):
    findings = [f"Finding {number}" for number in range(12)]
    calibration = {"thresholds": {name: {"threshold": 0.5} for name in findings}}
    changes = {"task": MULTI_LABEL, "calibration": calibration, "notices": []}
    export = write_mean_export(tmp_path / "export", labels=findings, size=64, **changes)
    file = tmp_path / "chest.png"
    Image.fromarray(draw_toy("haze", 902)).save(file)
    with start_server(export, tmp_path / "log.txt") as url:
        page = open_page(url)
        page.set_input_files("#files", file)
        expect(page.locator("#status")).to_contain_text("1 image predicted")
        card = find_card(page, "chest.png")
        values, present = read_values(card), card.locator(".bar-row.present .of").all_text_contents()
        ticks = [card.locator(".track u").count(), page.locator(".stamp").count(), page.locator(".critical").count()]
        verdict = card.locator(".verdict").inner_text()
    table, _ = predict_with_command(export, [file], tmp_path)
    assert values == pytest.approx({name: table.loc["chest.png", f"prob_{name}"] for name in findings}, abs=1e-6)
    assert list(values.values()) == sorted(values.values(), reverse=True)
    reached = [name for name in values if table.loc["chest.png", f"decision_{name}"] == "yes"]
    assert present == reached and 0 < len(reached) < 12
    assert verdict == f"{len(reached)} findings reach their thresholds: {', '.join(reached)}"
    assert ticks == [12, 0, 0]  # a threshold on each bar, and no critical warning


def test_critical_warnings_are_on_the_page_and_on_each_result(open_page, export_url, three_files):
    page = open_page(export_url)
    expect(page.locator(".critical")).to_contain_text("Image-level split")
    drop_files(page, three_files[:2])
    text = "Model with critical notices: do not rely on this prediction. Image-level split"
    expect(page.locator(".card .stamp")).to_have_text([text, text])
    assert page.get_by_text("For research, not for diagnosis").first.is_visible()


@pytest.mark.parametrize(("kind", "method"), [("export", "Occlusion"), ("run", "Grad-CAM")])
def test_a_saliency_map_is_shown_with_its_note(kind, method, open_page, three_files, request):
    url = request.getfixturevalue("export_url") if kind == "export" else request.getfixturevalue("trained")[1]
    page = open_page(url)
    page.set_input_files("#files", three_files[1])
    card = find_card(page, "inverted.dcm")
    card.get_by_role("combobox", name="Class").select_option("opacity")
    card.get_by_role("button", name="Show saliency map").click()
    expect(card.locator(".map-note")).to_contain_text(f"{method}, opacity 0.", timeout=30_000)
    width, height = card.locator(".image img").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert width > 2 * height > 0  # the model input, a gap, and the map
    card.get_by_role("button", name="Hide saliency map").click()
    expect(card).to_contain_text("The browser cannot show this file")


def test_the_page_is_usable_with_a_keyboard_alone(open_page, export_url, three_files):
    # from the start: playwright does not wait until the browser leaves its file dialog to a listener
    page = open_page(export_url, before=lambda page: page.on("filechooser", lambda chooser: None))
    page.keyboard.press("Tab")
    outline = page.locator(".choose label").evaluate("label => getComputedStyle(label).outlineStyle")
    assert page.evaluate("document.activeElement.id") == "files" and outline == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(three_files[:2])
    expect(page.locator("#status")).to_contain_text("0 without result")
    press_until_focus(page, "Show saliency map")
    page.keyboard.press("Enter")
    expect(page.locator(".map-note").first).to_contain_text("Occlusion")
    assert page.evaluate("document.activeElement.textContent") == "Show saliency map"
    press_until_focus(page, "Remove inverted.dcm")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove scan.png"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "files" and page.locator(".card").count() == 0
    press_until_focus(page, "Labels, thresholds and version")
    page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_be_visible()


def press_until_focus(page, name, n_presses=30):
    """Press Tab until the element of this name has the focus."""
    for _ in range(n_presses):
        page.keyboard.press("Tab")
        found = page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent")
        if found == name:
            return
    raise AssertionError(f"no focus on {name}")


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_does_not_scroll_sideways(open_page, export_url, three_files, tmp_path, viewport):
    long = tmp_path / LONG_NAME
    shutil.copy(three_files[0], long)
    page = open_page(export_url, viewport, before=lambda page: change_model(page, export_url, lengthen))
    drop_files(page, [*three_files, long])
    expect(page.locator("#status")).to_contain_text("1 without result")
    find_card(page, LONG_NAME).get_by_role("button", name="Show saliency map").click()
    expect(find_card(page, LONG_NAME).locator(".map-note")).to_contain_text("Occlusion")
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def change_model(page, url, change):
    """Change the description of the model before the page receives it."""
    content = httpx.get(f"{url}model.json").json()
    page.route("**/model.json", lambda route: route.fulfill(json=change(content)))


def lengthen(content):
    return content | {
        "name": 20 * "a_long_name_of_a_run",
        "model_card": f"# {200 * 'x'}\n\n| {100 * 'a'} | b |\n|-|-|\n",
    }


def test_reloading_keeps_nothing(open_page, export_url, three_files):
    page = open_page(export_url)
    drop_files(page, three_files)
    expect(page.locator(".card")).to_have_count(3)
    page.reload()
    expect(page.locator("#limits")).to_contain_text("per file")
    assert page.locator(".card").count() == 0 and page.locator("#results").is_hidden()
    stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
    assert stored == [0, 0, ""]


def test_a_busy_server_is_asked_again_after_the_time_that_it_states(open_page, export_url, three_files):
    page = open_page(export_url)
    page.watch.expected = ("429",)
    answers = [(429, {"Retry-After": "1"}, {"error": "FCX-E505 the server is busy", "code": "E505"})]

    def respond(route):
        if not answers:
            return route.fallback()
        status, headers, body = answers.pop()
        return route.fulfill(status=status, headers=headers, json=body)

    page.route("**/predict", respond)
    page.set_input_files("#files", three_files[0])
    expect(page.locator("#status")).to_contain_text("The server is busy with other requests. Next attempt in 1 second.")
    expect(page.locator("#status")).to_contain_text("0 without result")


def test_a_missing_server_is_reported_and_the_files_can_be_sent_again(open_page, export_url, three_files):
    page = open_page(export_url)
    page.watch.expected = ("ERR_FAILED",)
    for path in ("**/predict", "**/healthz"):
        page.route(path, lambda route: route.abort())
    page.set_input_files("#files", three_files[:2])
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.locator(".card")).to_have_text(2 * [re.compile("Not sent")])
    for path in ("**/predict", "**/healthz"):
        page.unroute(path)
    page.get_by_role("button", name="Send 2 files again").click()
    expect(page.locator("#status")).to_contain_text("0 without result")
    expect(page.get_by_role("alert")).to_be_empty()


def test_requests_respect_the_limits_of_the_server(open_page, export_url, three_files, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(60_000))
    limits = {"max_files": 2, "max_file_bytes": 50_000, "max_request_bytes": 100_000, "max_waiting": 1}
    page = open_page(
        export_url, before=lambda page: change_model(page, export_url, lambda content: content | {"limits": limits})
    )
    sent = []
    page.on("request", lambda request: sent.append(request.url.rsplit("/", 1)[-1]))
    page.set_input_files("#files", [*three_files, tmp_path / "large.png"])
    expect(page.locator("#status")).to_contain_text("1 without result")
    assert sent.count("predict") == 2
    reason = "The file has 60 kB, the server accepts 50 kB per file."
    expect(find_card(page, "large.png").locator(".reason")).to_contain_text(reason)


def test_one_rejected_file_does_not_reject_the_others(open_page, export_url, three_files):
    """The server rejects a whole request for one file: each file is then sent in its own request."""
    page = open_page(export_url)
    page.watch.expected = ("413",)
    page.route("**/predict", reject_dicom)
    page.set_input_files("#files", three_files[:2])
    expect(find_card(page, "inverted.dcm").locator(".reason")).to_contain_text("the file has more than 1 MB")
    expect(find_card(page, "scan.png").locator(".verdict")).to_be_visible()


def reject_dicom(route):
    if b"inverted.dcm" not in route.request.post_data_buffer:
        return route.fallback()
    return route.fulfill(status=413, json={"error": "FCX-E503 the file has more than 1 MB", "code": "E503"})


def test_downloads_have_all_rows_and_no_formula(open_page, export_url, export, three_files, tmp_path):
    formula = tmp_path / "=1+1.png"
    shutil.copy(three_files[0], formula)
    page = open_page(export_url)
    page.set_input_files("#files", [*three_files, formula])
    expect(page.locator("#status")).to_contain_text("1 without result")
    paths = {}
    for suffix in ("csv", "json"):
        with page.expect_download() as download:
            page.click(f"#{suffix}")
        paths[suffix] = tmp_path / download.value.suggested_filename
        download.value.save_as(paths[suffix])
    expected = predict_with_command(export, [*three_files, formula], tmp_path)[1].table
    found = read_predictions(paths["csv"])
    of_model = ["model", "version", "warning", "critical"]
    assert list(found.table.columns) == [*expected.columns, *of_model]
    assert found.table[of_model].drop_duplicates().to_numpy().tolist() == [
        ["export", VERSION, "For research, not for diagnosis", "Image-level split"]
    ]
    assert found.table["path"].tolist() == ["scan.png", "inverted.dcm", "broken.png", "=1+1.png"]
    assert ",'=1+1.png," in paths["csv"].read_text()
    exact = read_predictions(tmp_path / "expected.csv").probability
    assert found.probability == pytest.approx(exact, abs=1e-6, nan_ok=True)
    document = json.loads(paths["json"].read_text())
    numbers = [document[name] for name in ("n_classified", "n_unreadable", "n_ood")]
    assert sum(numbers) == len(document["predictions"]) == 4 and numbers[1] == 1
    assert document["warning"] == "For research, not for diagnosis" and "Image-level split" in document["critical"]


def test_no_text_of_a_file_or_a_model_becomes_html(open_page, export_url, three_files, tmp_path):
    markup = "<img src=x onerror=alert(1)>"
    named = tmp_path / f"{markup}\u202egnp.png"  # an override of the direction of text, which hides a suffix
    shutil.copy(three_files[0], named)
    card = f"# A card {markup}\n\n- [ ] to do {markup}\n  - nested `code`\n\n| a | b |\n|---|---|\n| 1 | **2** |\n"
    notices = [{"level": "critical", "title": f"Title {markup}", "text": markup}]
    change = {"model_card": card, "notices": notices, "name": f"run {markup}"}
    page = open_page(export_url, before=lambda page: change_model(page, export_url, lambda content: content | change))
    page.set_input_files("#files", named)
    expect(page.locator("#status")).to_contain_text("0 without result")
    expect(page.locator(".card h3")).to_have_text(f"{markup}\ufffdgnp.png")
    with page.expect_download() as download:
        page.click("#json")
    download.value.save_as(tmp_path / "saved.json")
    text = (tmp_path / "saved.json").read_text()
    assert "\\u202e" in text and json.loads(text)["predictions"][0]["path"] == named.name
    page.click("#model-card-part summary")
    expect(page.locator("#model-card h3")).to_have_text(f"A card {markup}")
    assert page.locator("#model-card td b").inner_text() == "2"
    assert page.locator("#model-card li li code").inner_text() == "code"
    assert page.locator("img").count() == 1  # the thumbnail
    expect(page.locator(".critical")).to_contain_text(markup)


def test_a_dropped_folder_gives_its_files_with_their_paths(open_page, export_url, three_files, tmp_path):
    (tmp_path / "study/series").mkdir(parents=True)
    shutil.copy(three_files[1], tmp_path / "study/series/IM1")
    for name in ("scan.png", ".hidden.png"):
        shutil.copy(three_files[0], tmp_path / "study" / name)
    page = open_page(export_url)
    drop_files(page, [tmp_path / "study", three_files[0]])
    expect(page.locator("#status")).to_contain_text("3 images classified")
    expect(page.locator(".card h3")).to_have_text(["study/scan.png", "study/series/IM1", "scan.png"])


def test_files_of_one_name_have_different_paths(open_page, export_url, three_files):
    page = open_page(export_url)
    for _ in range(2):
        page.set_input_files("#files", three_files[0])
    expect(page.locator(".card h3")).to_have_text(["scan (2).png", "scan.png"])


def test_a_token_opens_the_page_and_a_request_without_it_is_refused(open_page, export, three_files, tmp_path):
    with start_server(export, tmp_path / "log.txt", token=TOKEN) as url:
        address = url.split("?")[0]
        assert httpx.get(f"{address}model.json").status_code == 403
        page = open_page(url)
        assert TOKEN not in page.url
        page.set_input_files("#files", three_files[0])
        expect(page.locator("#status")).to_contain_text("0 without result")
        page.reload()
        expect(page.locator("#limits")).to_contain_text("per file")


def test_another_host_and_another_origin_are_refused(export_url, three_files):
    files = {"files": ("scan.png", three_files[0].read_bytes())}
    assert httpx.get(export_url, headers={"Host": "attacker.example"}).status_code == 400
    refused = httpx.post(f"{export_url}predict", files=files, headers={"Origin": "http://attacker.example"})
    assert refused.status_code == 403 and refused.json()["code"] == "E501"
    assert httpx.post(f"{export_url}predict", files=files).status_code == 200
