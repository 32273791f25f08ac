"""The pages in docs/: every code block is executed or marked as not run, and the site builds without warnings."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from doc_pages import (
    DOCS,
    PAGES,
    ROOT,
    SMALL_BACKBONE,
    find_blocks,
    read_blocks,
    run_command,
    run_python,
    shrink,
    split_commands,
)
from PIL import Image
from sample_images import make_dicom, save_dicom

from fastcxr.errors import RecipeError

# pages whose commands differ from those of the other pages by options that have tests
SLOW_PAGES = (
    "backbone", "chest_encoders", "class_folders", "class_imbalance", "cluster", "cross_validation", "csv_table",
    "dicom", "embed_onnx", "export", "external_validation", "patients", "studies", "tuning",
)  # fmt: skip
CODE_PAGES = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in SLOW_PAGES))
    for page in PAGES
    if any(block.is_run for block in read_blocks(page))
]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
# of a tag that loads something, and of a style sheet
EXTERNAL = re.compile(
    r"""<(?:link|script|img|iframe|source)\b[^>]*\b(?:href|src|srcset)=["']?(?:https?:)?//[^>]*"""
    r"""|url\(\s*["']?(?:https?:)?//[^)]*\)|@import\s+["']?(?:https?:)?//[^;]*""",
    re.IGNORECASE,
)


def write_data(folder: Path) -> None:
    """Write the datasets that the pages name, all from the synthetic sample."""
    rows = []
    for label in ("bilateral_haze", "clear_lungs", "lobar_opacity"):
        files = sorted((ROOT / "data" / "sample" / label).glob("*.jpg"))
        for name, part in (("my_xrays", files[:36]), ("other_hospital", files[-16:]), ("dicom_xrays", files[:12])):
            (folder / name / label).mkdir(parents=True)
            for file in part:
                write_image(file, folder / name / label)
        rows += [(f"my_xrays/{label}/{file.name}", label, f"p{file.name[:8]}") for file in files[:36]]
    table = pd.DataFrame(rows, columns=["path", "label", "patient"])
    table.to_csv(folder / "labels.csv", index=False)
    table.rename(columns={"path": "filename"})[["filename", "patient"]].to_csv(folder / "patients.csv", index=False)
    for name in ("new_images", "clinic/normal"):
        shutil.copytree(folder / "other_hospital" / "clear_lungs", folder / name)
    shutil.copy(next((folder / "new_images").iterdir()), folder / "image.jpg")


def write_image(file: Path, folder: Path) -> None:
    """Copy an image, or write it as DICOM with its patient."""
    if folder.parent.name != "dicom_xrays":
        shutil.copy(file, folder)
        return
    pixels = np.asarray(Image.open(file).convert("L"))
    save_dicom(folder / f"{file.stem}.dcm", make_dicom(pixels, PatientID=file.name[:8], PatientSex="F"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, without_maps) -> Path:
    """A folder with the data and the run of the first `fastcxr train` of the quick start."""
    folder = tmp_path_factory.mktemp("docs")
    write_data(folder)
    commands = [line for block in read_blocks(DOCS / "quickstart.md") for line in split_commands(block.text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command(next(line for line in commands if line.startswith("fastcxr train")))
    return folder


@pytest.mark.usefixtures("without_figures", "few_draws")
@pytest.mark.parametrize("page", CODE_PAGES)
def test_the_code_blocks_of_a_page_run(page, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    blocks = read_blocks(page)
    for block in blocks:
        if block.info == "bash":
            for line in split_commands(block.text):
                run_command(line)
    run_python(page, [block for block in blocks if block.info == "python"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_code_block_is_executed_or_marked(page):
    for block in read_blocks(page):
        is_marked = ":class: not-run" in block.text or block.info in ("text", "{toctree}")
        is_directive = block.info.startswith("{") and not block.info.startswith("{code-block}")
        assert block.is_run or is_marked or is_directive, f"{page.name}:{block.line}: {block.info}"


def test_the_search_for_blocks_finds_a_block_without_a_mark():
    text = "# Title\n\n```sh\nls\n```\n\n```{code-block} bash\n:class: not-run\n\nls\n```\n\n```bash\nls\n```\n"
    assert [(block.info, block.line, block.is_run) for block in find_blocks(text)] == [
        ("sh", 3, False), ("{code-block} bash", 7, False), ("bash", 13, True),
    ]  # fmt: skip


def test_a_command_gets_small_settings_instead_of_those_of_the_page():
    assert shrink(["train", "resnet18", "--epochs", "20", "--out", "a"]) == [
        "train", SMALL_BACKBONE, "--out", "a", "--weights", "none", "--image-size", "32", "--epochs", "1",
    ]  # fmt: skip
    assert shrink(["describe", "--data", "a"]) == ["describe", "--data", "a"]
    with pytest.raises(RecipeError, match="Did you mean 'resnet18'"):
        shrink(["train", "resnet81"])


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.stem)
def test_a_link_leads_to_a_file(page):
    assert [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()] == []


def test_only_commands_of_fastcxr_are_executed():
    with pytest.raises(AssertionError, match="cannot run 'rm -r runs'"):
        run_command("rm -r runs")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does, without network access."""
    folder = tmp_path_factory.mktemp("site")
    program = shutil.which("sphinx-build", path=Path(sys.executable).parent) or shutil.which("sphinx-build")
    command = [program, "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HTTPS_PROXY": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.needs("sphinx", "myst_parser", "furo")
def test_the_site_loads_nothing_from_another_host(site):
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    assert len(files) > len(PAGES)
    found = {path.name: EXTERNAL.findall(path.read_text(encoding="utf-8")) for path in files}
    assert {name: tags for name, tags in found.items() if tags} == {}


@pytest.mark.slow
@pytest.mark.needs("sphinx", "myst_parser", "furo")
def test_the_page_of_chest_encoders_has_every_encoder_and_no_fact_that_was_not_read(site):
    from fastcxr.models.encoders import ENCODERS

    text = (site / "howto" / "chest_encoders.html").read_text(encoding="utf-8")
    terms = re.findall(
        r"<dt><code[^>]*><span class=\"pre\">(.*?)</span></code>.*?</dt>\s*<dd>(.*?)</dd>", text, re.DOTALL
    )
    assert [name for name, _ in terms] == list(ENCODERS)
    for name, facts in terms:
        encoder = ENCODERS[name]
        assert (f"{encoder.image_size} pixels" in facts) == ("image_size" in encoder.read_on)
        assert ("Licence: see page" in facts) == ("licence" not in encoder.read_on)


@pytest.mark.slow
@pytest.mark.needs("sphinx", "myst_parser", "furo")
def test_the_references_have_every_command_option_and_public_name(site):
    import fastcxr
    from fastcxr.cli.main import app
    from fastcxr.config.fields import GROUPS, list_options

    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    recipe, api = ((site / "reference" / name).read_text(encoding="utf-8") for name in ("recipe.html", "api.html"))
    for name in (name for name in app if not name.startswith("-")):
        assert re.search(rf"<pre>(<span></span>)?fastcxr {name} (--|[\[A-Z])", commands), name
    for option in list_options(fastcxr.Recipe, *GROUPS):
        assert f"--{option.replace('_', '-')}" in commands
        assert f">{option}<" in recipe
    for name in set(fastcxr.__all__) - {"__version__"}:
        assert f'id="fastcxr.{name}"' in api


@pytest.mark.parametrize(
    "text", ['<script src="https://a.b/c.js">', "<link href=//fonts.b/x>", "a{b:url('http://c.d/e.woff')}"]
)
def test_the_search_finds_what_is_loaded_from_another_host(text):
    assert EXTERNAL.findall(text)
    assert not EXTERNAL.findall('<a href="https://a.b">x</a><img src="a.png">')
