"""The page and the JSON API of a server."""

import base64
import json
import logging
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from mutated_files import IDENTITY, write_kinds
from PIL import Image
from served_models import NOTICE, GrayScorer, make_client, make_fields, make_png_bytes, make_served_model

from fastcxr.cli.output import OutputOptions, run_to_exit_code, use_output_options
from fastcxr.cli.prediction import PredictionOutput
from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.image_table import make_image_table
from fastcxr.serve.responses import CONTENT_SECURITY_POLICY, SECURITY_HEADERS

IMAGE = ("a.png", make_png_bytes())


@pytest.fixture(scope="module")
def client():
    return make_client()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """An image of each format, and a file that is no image."""
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "notes.txt").write_text("no image")
    return [*write_kinds(folder), folder / "notes.txt"]


def get_json_of_predict(model, files, capsys) -> dict:
    """Return the document of `predict --json` for these files."""

    def command() -> int:
        use_output_options(OutputOptions(json=True))
        output = PredictionOutput(Path(), model.scorer, make_image_table(files), hash_names=False)
        output.notices = model.notices  # the folder is that of no run
        output.write(None)
        return output.print_summary()

    run_to_exit_code(command)
    return json.loads(capsys.readouterr().out)


def test_predict_returns_the_rows_of_predict_json(client, kinds, capsys):
    expected = get_json_of_predict(make_served_model(), kinds, capsys)
    found = client.post("/predict", files=make_fields(*kinds)).json()
    assert {"n_classified", "n_unreadable", "n_ood"} <= set(found)
    assert found["n_unreadable"] == 1 and found["n_classified"] > 15
    for row, other, file in zip(found["predictions"], expected.pop("predictions"), kinds, strict=True):
        assert row == other | {"source": "memory", "path": file.name}
    assert {name: found[name] for name in expected} == expected


def test_the_rows_of_findings_have_decisions(monkeypatch):
    monkeypatch.setattr(GrayScorer, "task", MULTI_LABEL)
    monkeypatch.setattr(GrayScorer, "thresholds", {"thresholds": {"bright": {"threshold": 0.2}}})
    client = make_client()
    assert client.get("/model.json").json()["thresholds"] == {"dark": 0.5, "bright": 0.2}
    found = client.post("/predict", files=make_fields(IMAGE)).json()["predictions"][0]
    assert (found["decision_dark"], found["decision_bright"], found["predicted"]) == ("yes", "yes", "dark|bright")
    assert "truth_dark" not in found and "above_threshold" not in found


def test_each_answer_states_the_warning_and_the_critical_notices(client):
    for path in ("/predict", "/saliency"):
        found = client.post(path, files=make_fields(IMAGE)).json()
        assert found["warning"] == "For research, not for diagnosis"
        assert found["critical"] == [NOTICE["title"]]


def test_a_name_with_hidden_characters_is_escaped_in_an_answer(client):
    name = "a\u202egnp\x1b[31m\U000e0001ü.png"
    content = f'form-data; name="files"; filename="{name}"'.encode()
    body = b"--x\r\nContent-Disposition: " + content + b"\r\n\r\n" + IMAGE[1] + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/predict", content=body, headers=headers)
    assert answer.json()["predictions"][0]["path"] == name
    assert answer.text.isprintable() and "\\u202e" in answer.text and "ü" in answer.text


def test_a_very_long_name_is_cut(client):
    answer = client.post("/predict", files=make_fields((f"{'a' * 40_000}.png", IMAGE[1])))
    assert answer.status_code == 200 and answer.json()["predictions"][0]["path"] == f"{'a' * 251}.png"


def test_a_saliency_map_states_the_ood_score_of_the_row(client):
    for level, verdict in ((100, "yes"), (250, "no")):
        pixels = (level + 4 * (np.indices((64, 64)).sum(axis=0) % 2)).astype(np.uint8)
        Image.fromarray(pixels).save(buffer := BytesIO(), "PNG")
        files = make_fields(("a.png", buffer.getvalue()))
        row = client.post("/predict", files=files).json()["predictions"][0]
        found = client.post("/saliency", files=files).json()
        assert (found["ood_score"], found["in_distribution"]) == (row["ood_score"], verdict)
    found = client.post("/saliency", files=make_fields(("a.png", b""))).json()
    assert (found["ood_score"], found["in_distribution"]) == (None, "")


def test_a_model_without_a_detector_has_no_ood_score_of_a_map(monkeypatch):
    monkeypatch.setattr(GrayScorer, "has_ood_detector", False)
    found = make_client().post("/saliency", files=make_fields(IMAGE)).json()
    assert not {"ood_score", "in_distribution"} & set(found)


def test_unreadable_files_are_rows_of_a_successful_answer(client):
    answer = client.post("/predict", files=make_fields(("a.png", b""), ("b.dcm", b"text"), ("c.jpg", IMAGE[1][:60])))
    assert answer.status_code == 200
    found = answer.json()
    assert (found["n_classified"], found["n_unreadable"]) == (0, 3)
    assert [row["error"].split()[0] for row in found["predictions"]] == ["FCX-E101", "FCX-E102", "FCX-E103"]


def test_files_with_the_same_name_are_separate_rows_in_order(client):
    fields = make_fields(("a.png", make_png_bytes(60)), ("a.png", make_png_bytes(200)))
    rows = client.post("/predict", files=fields).json()["predictions"]
    assert [row["path"] for row in rows] == ["a.png", "a.png"]
    assert rows[0]["prob_bright"] < rows[1]["prob_bright"]


def test_the_description_has_labels_thresholds_limits_and_texts(client):
    found = client.get("/model.json").json()
    assert found["labels"] == ["dark", "bright"] and found["thresholds"] == {"dark": 0.5, "bright": 0.5}
    assert found["uncertain_below"] == 0.55 and found["image_size"] == 32 and found["has_ood_detector"] is True
    assert found["notices"] == [NOTICE] and found["model_card"] == "# Model card: gray"
    assert found["saliency"] == "occlusion" and found["task"] == "single_label"
    assert set(found["limits"]) == {"max_files", "max_file_bytes", "max_request_bytes", "max_waiting"}


def test_saliency_returns_the_image_beside_its_map(client):
    found = client.post("/saliency", files=make_fields(IMAGE), data={"label": "bright"}).json()
    assert found["label"] == "bright" and found["method"] == "occlusion"
    assert found["probability"] == pytest.approx(64 / 255, abs=0.01)
    assert "no sanity check" in found["note"]
    kind, _, data = found["image"].partition(",")
    pair = np.asarray(Image.open(BytesIO(base64.b64decode(data))).convert("RGB"), float)
    assert kind == "data:image/jpeg;base64" and pair.shape == (224, 452, 3)
    colour = np.abs(pair[:, 228:, 0] - pair[:, 228:, 2])  # the map is coloured, the image is gray
    assert colour[:, 112:].mean() > 10 * colour[:, :80].mean()


def test_saliency_of_an_unreadable_file_states_why(client):
    found = client.post("/saliency", files=make_fields(("a.png", b"text"))).json()
    assert found["image"] == "" and found["probability"] is None
    assert found["note"].startswith("FCX-E102")


@pytest.mark.parametrize(
    ("files", "data", "status", "text"),
    [
        ([IMAGE], {"label": "brightt"}, 400, "Did you mean 'bright'?"),
        ([IMAGE, IMAGE], {}, 400, "2 files, expected one"),
        ([IMAGE], {"size": "1"}, 400, "the text field 'size' is unknown"),
    ],
)
def test_a_wrong_saliency_request_is_rejected_with_a_fix(client, files, data, status, text):
    answer = client.post("/saliency", files=make_fields(*files), data=data)
    assert answer.status_code == status
    assert text in answer.json()["error"] and answer.json()["code"] == "E504"


def test_a_server_without_maps_rejects_saliency_requests():
    client = make_client(make_served_model(explainer=None))
    assert client.get("/model.json").json()["saliency"] is None
    assert client.post("/saliency", files=make_fields(IMAGE)).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/missing", 404),
        ("GET", "/page/missing.js", 404),
        ("GET", "/page/..%2fapp.py", 404),
        ("GET", "/predict", 405),
        ("POST", "/", 405),
        ("DELETE", "/model.json", 405),
        ("OPTIONS", "/predict", 405),
    ],
)
def test_unknown_pages_and_methods_are_rejected(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status and answer.json()["code"] == "E508"
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page/app.js", "text/javascript"), ("/page/style.css", "text/css")],
)
def test_the_page_is_served_from_the_package(client, path, kind):
    answer = client.get(path)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
    assert len(answer.content) > 100


@pytest.mark.parametrize("path", ["/", "/healthz", "/model.json", "/missing"])
def test_each_response_has_the_security_headers(client, path):
    headers = client.get(path).headers
    assert {name: headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "server" not in headers and not [name for name in headers if name.startswith("access-control")]


def test_an_unexpected_error_is_generic_and_logged_without_its_message(caplog):
    model = make_served_model()
    model.scorer.score = lambda images: 1 / len(IDENTITY[:0])  # raises ZeroDivisionError
    with caplog.at_level(logging.INFO, "fastcxr"):
        answer = make_client(model).post("/predict", files=make_fields((f"{IDENTITY}.png", IMAGE[1])))
    assert answer.status_code == 500 and answer.json()["code"] == "E506"
    assert "division" not in answer.text and IDENTITY not in answer.text
    assert "ZeroDivisionError" in caplog.text and "test_app.py" in caplog.text
    assert IDENTITY not in caplog.text and "division by zero" not in caplog.text


def test_a_log_line_has_no_file_name_and_no_unknown_path(client, kinds, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        client.post("/predict", files=make_fields(*kinds[:3], (f"{IDENTITY}.dcm", kinds[-2].read_bytes())))
        client.get(f"/{IDENTITY}?name={IDENTITY}")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "POST /predict 200, 4 files, " in lines[0] and "GET (unknown path) 404, " in lines[1]
    assert IDENTITY not in caplog.text and kinds[0].name not in caplog.text
