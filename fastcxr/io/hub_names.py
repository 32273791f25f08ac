"""Models on the Hugging Face hub: their names, the files of a published model, and the folders of the hub's cache."""

import re
from dataclasses import dataclass
from pathlib import Path

from fastcxr.errors import RecipeError

HUB_PREFIX = "hf://"
PUBLISHED_FILE = "published.json"  # marks a published model, which has no data of its training
WEIGHTS_FILES = ("model.safetensors", "head.safetensors", "ood.safetensors")
MODEL_FILES = (*WEIGHTS_FILES, "model.json")  # of a run with folds in each folder fold-NUMBER
FACT_FILES = ("recipe.json", "metrics.json", "config.json", PUBLISHED_FILE)
README_FILE = "README.md"  # model card: its owner can edit it on the hub, therefore it may differ from its checksum
TEXT_FILES = (README_FILE, "SHA256SUMS")
REPORT_FILES = ("report-no-images.html", "report.html")  # published, and never downloaded
FOLD_FOLDER = re.compile(r"fold-[1-9]\d{0,2}")
# Path("hf://a/b") is hf:/a/b, on Windows with backslashes
PREFIX_PATTERN = re.compile(r"hf:[/\\]{1,2}")
NAME_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
NAME_PATTERN = re.compile(rf"({NAME_PART}/{NAME_PART})(?:@([\w./-]{{1,200}}))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A model on the hub: `repo` is owner/name; `revision` is a branch, a tag or a commit, None for the newest one."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        """Return hf://owner/name, with @revision if there is one."""
        return f"{HUB_PREFIX}{self.repo}{f'@{self.revision}' if self.revision else ''}"


def is_hub_name(value: str | Path) -> bool:
    """Return whether this is hf://owner/name, also as a Path, which has one slash less."""
    return PREFIX_PATTERN.match(str(value)) is not None


def parse_hub_name(value: str | Path, revision: str | None = None) -> HubName:
    """Return the model that owner/name, hf://owner/name or one of them with @revision names.

    Raises RecipeError for another text.
    """
    text = PREFIX_PATTERN.sub("", str(value), count=1).replace("\\", "/")
    match = NAME_PATTERN.fullmatch(text)
    if match is None or "--" in match[1] or ".." in match[1]:
        problem = f"{text!r} is no name of a model on the hub, expected owner/name"
        raise RecipeError(problem, "Pass a name such as my-group/covid-resnet50", code="E701")
    if match[2] and revision and match[2] != revision:
        raise RecipeError(f"two revisions: {match[2]} and {revision}", "Leave one of them out", code="E701")
    return HubName(match[1], match[2] or revision)


def is_model_file(name: str) -> bool:
    """Return whether a path in a repository is a file that fastcxr downloads; every other file is ignored."""
    folder, separator, file = name.rpartition("/")
    if not separator:
        return file in (*MODEL_FILES, *FACT_FILES, *TEXT_FILES)
    return FOLD_FOLDER.fullmatch(folder) is not None and file in MODEL_FILES


def is_published(folder: str | Path) -> bool:
    """Return whether a folder is a published model: downloaded by pull, or a folder of the hub's cache."""
    return (Path(folder) / PUBLISHED_FILE).is_file()


def is_cache_link(path: Path) -> bool:
    """Return whether a link and its target are in the cache of huggingface_hub, whose files are links."""
    try:
        from huggingface_hub import constants
    except ImportError:  # an exported model does not need it
        return False
    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    return path.parent.resolve().is_relative_to(cache) and path.resolve().is_relative_to(cache)


def get_model_name(folder: str | Path) -> str:
    """Return the name of a model for titles and new folders: that of its folder, or of its repository on the hub."""
    folder = Path(folder)
    if is_hub_name(folder):
        return parse_hub_name(folder).repo.partition("/")[2]
    parts = folder.resolve().parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].rpartition("--")[2]
    return folder.resolve().name
