"""The examples of the page on other programs: their pixels and probabilities are those of fastcxr."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from doc_pages import DOCS, read_blocks
from mean_export import write_mean_export
from PIL import Image

from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.export.exported_model import load_export
from fastcxr.inference.predict import predict

PAGE = DOCS / "howto" / "embed_onnx.md"
SIZE = 96  # pixels of the exported model
SCRIPT = """
import fs from "fs";
import { convertToGray, fitSquare } from "./fit_square.js";

const images = JSON.parse(fs.readFileSync("images.json"));
const results = images.map((one) => Array.from(fitSquare(convertToGray(one.rgba), one.width, one.height, one.size)));
fs.writeFileSync("results.json", JSON.stringify(results));
"""


def make_images(rng: np.random.Generator, mode: str = "L") -> list[Image.Image]:
    """Return images smaller and larger than SIZE; the side of 97 pixels becomes 48.5, which is rounded to 48."""
    shapes = [(70, 64), (128, 67), (301, 160), (87, 333), (96, 96), (192, 97), (400, 300)]
    depth = (len(mode),) if len(mode) > 1 else ()
    return [Image.fromarray(rng.integers(0, 256, shape + depth, dtype=np.uint8)) for shape in shapes]


@pytest.mark.needs("onnx", "onnxruntime")
def test_the_python_example_gives_the_probabilities_of_predict(tmp_path, monkeypatch):
    folder = write_mean_export(tmp_path / "exports" / "first", size=SIZE)
    (tmp_path / "new_images").mkdir()
    for number, image in enumerate(make_images(np.random.default_rng(0))):
        image.save(tmp_path / "new_images" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    (code,) = [block.text for block in read_blocks(PAGE) if block.info == "python"]
    exec(code, names)
    expected = predict(load_export(folder), names["files"]).probability
    np.testing.assert_allclose(names["probabilities"], expected, atol=1e-6)
    np.testing.assert_array_equal(names["images"], [fit_square(read_image(file), SIZE) for file in names["files"]])


@pytest.mark.slow
@pytest.mark.needs(program="node")
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_script_of_the_web_page_gives_the_pixels_of_fastcxr(tmp_path, mode):
    images = make_images(np.random.default_rng(1), mode)
    shutil.copy(PAGE.with_suffix("") / "fit_square.js", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    rows = [
        {
            "rgba": np.asarray(one.convert("RGBA")).ravel().tolist(),
            "width": one.width,
            "height": one.height,
            "size": SIZE,
        }
        for one in images
    ]
    (tmp_path / "images.json").write_text(json.dumps(rows), encoding="utf-8")
    subprocess.run(["node", "--input-type=module", "-e", SCRIPT], cwd=tmp_path, check=True, timeout=60)
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    expected = [fit_square(np.asarray(one.convert("L")), SIZE).ravel().tolist() for one in images]
    assert found == expected


@pytest.mark.parametrize("name", ["index.html", "fit_square.js"])
def test_the_web_page_names_no_other_host(name):
    text = (PAGE.with_suffix("") / name).read_text(encoding="utf-8")
    assert "//" not in "".join(line.split("// ")[0] for line in text.splitlines())
