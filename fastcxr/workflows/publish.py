"""Publish the model of a run on the Hugging Face hub: its files without images, paths and patients, in one commit."""

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastcxr.data.readers.public import CREDENTIALED, PublicDataset
from fastcxr.data.readers.registry import PUBLIC_DATASETS
from fastcxr.errors import HubError, ModelError, RecipeError, make_type_error, require_type
from fastcxr.export.hub import (
    Repository,
    create_repository,
    has_contents,
    has_edited_card,
    list_obsolete_files,
    read_repository,
    require_token,
    upload_files,
)
from fastcxr.export.hub_card import CardFacts, make_hub_card, normalize_licence
from fastcxr.export.identifiers import find_leaks
from fastcxr.export.published_files import share_with_timm, write_model_files
from fastcxr.io.files import (
    CHECKSUMS_FILE,
    atomic_write,
    compute_sha256,
    format_checksums,
    read_checksums,
    read_json,
    write_checksums,
    write_json,
)
from fastcxr.io.formatting import pluralize
from fastcxr.io.hub_names import PUBLISHED_FILE, README_FILE, REPORT_FILES, is_model_file, parse_hub_name
from fastcxr.io.run_folders import require_run_file
from fastcxr.models.bundle import Classifier, Ensemble, load_model
from fastcxr.models.hub_download import silence_bars
from fastcxr.models.model_json import MODEL_JSON_FILE, WEIGHTS_FILE, list_models_below, read_model_json
from fastcxr.report.notices import Notice, make_notices
from fastcxr.report.run_page import IMAGE_FREE_REPORT_FILE, render_image_free_report
from fastcxr.report.run_reader import read_run_record
from fastcxr.report.shared_files import make_shared_card, make_shared_metrics, make_shared_recipe
from fastcxr.report.shared_record import make_shared_record
from fastcxr.version import VERSION
from fastcxr.workflows.load import PUBLIC_DATASETS_KEY
from fastcxr.workflows.published_model import PublishedFacts

log = logging.getLogger("fastcxr")
NAME_FIX = "Pass a name such as my-group/covid-resnet50"
REPORT_FILE = "report.html"  # with images and file names
IMAGE_MARK = "data:image/"  # of each thumbnail and saliency map in report.html


@dataclass(frozen=True, kw_only=True)
class StagedModel:
    """The files to publish, in a temporary folder.

    Attributes:
        repo: owner/name on the hub.
        folder: the temporary folder.
        files: size in bytes of each file, by its path in the repository.
        timm: what timm loads, "classifier", "backbone", or None.
        remarks: sentences on what is left out, and on what the owner should add.
        notices: critical notices of the run.
        datasets: public datasets that the model was trained on.
        n_images: images in the full report; 0 for a report without images.
    """

    repo: str
    folder: Path
    files: dict[str, int]
    timm: str | None
    remarks: tuple[str, ...]
    notices: tuple[Notice, ...]
    datasets: tuple[PublicDataset, ...]
    n_images: int


@dataclass(frozen=True)
class Question:
    """A fact, without a full stop, and the question that it leads to."""

    fact: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A published model.

    Attributes:
        repo: owner/name on the hub; `hf://owner/name` loads it.
        url: address of its page; None after a dry run.
        commit: the commit on the hub; None after a dry run.
        is_private: whether the repository is private.
        files: size in bytes of each file, by its path in the repository.
        has_kept_card: whether README.md was edited on the hub, and is not replaced.
        is_unchanged: whether the newest commit had all files already, and nothing was sent.
    """

    repo: str
    url: str | None
    commit: str | None
    is_private: bool
    files: dict[str, int]
    has_kept_card: bool = False
    is_unchanged: bool = False


def push(
    run: str | Path,
    repo: str,
    *,
    public: bool = False,
    with_images: bool = False,
    licence: str | None = None,
    message: str | None = None,
    replace_card: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> Publication:
    """Publish the model of a finished run on the Hugging Face hub, in a private repository by default.

    Sent are the weights, model.json with thresholds and calibration, the OOD detector, recipe.json, metrics.json, the
    model card as README.md, a report without images, and what timm needs to load the network. Never sent are images,
    features, manifest.csv, predictions.csv, and names of files and folders. The files are searched for names of images
    and identifiers of patients before the upload, which is one commit. A model card that was edited on the hub is kept.

    Args:
        run: folder of a finished run, also of a run with folds.
        repo: owner/name on the hub.
        public: create a public repository; an existing one keeps its visibility and must be public.
        with_images: send report.html with its thumbnails, saliency maps and file names.
        licence: identifier of the hub for the licence of the model, such as "apache-2.0".
        message: first line of the commit.
        replace_card: replace a model card that was edited on the hub; earlier commits still have it.
        dry_run: prepare and search the files, and send nothing.
        yes: consent to what the command asks: terms of credentialed datasets, images, and a public repository.

    Raises:
        HubError: there is no token, or the hub rejects the upload.
        InputMissingError: the folder is not that of a finished run with a model.
        ModelError: a file to publish contains a name or an identifier of the run, or an image.
        RecipeError: the name is invalid, or consent is missing.
    """
    repo = validate_push(run, repo, licence)
    repository = None if dry_run else find_repository(repo, public=public)
    with stage_model(run, repo, with_images=with_images, licence=licence) as staged:
        if repository is None:
            return Publication(repo=staged.repo, url=None, commit=None, is_private=not public, files=staged.files)
        if not yes and (questions := list_questions(staged, repository)):
            problem = f"consent is needed: {'; '.join(question.fact for question in questions)}"
            raise RecipeError(problem, "Pass `yes=True` if you consent", code="E707")
        return send_model(staged, repository, message, replace_card=replace_card, show_bars=sys.stderr.isatty())


def validate_push(run: str | Path, repo: str, licence: str | None = None) -> str:
    """Return owner/name. Raises an error for what a push cannot publish, before any request; see push."""
    require_type("run", run, str, Path)
    if not isinstance(repo, str):
        raise make_type_error("repo", repo, "str", NAME_FIX)
    hub_name = parse_hub_name(repo)
    if hub_name.revision:
        raise RecipeError(f"a push has no revision: got {repo!r}", f"Pass {hub_name.repo}", code="E701")
    normalize_licence(licence)
    require_publishable(Path(run))
    return hub_name.repo


@contextmanager
def stage_model(
    run: str | Path, repo: str, *, with_images: bool = False, licence: str | None = None
) -> Iterator[StagedModel]:
    """Write the files to publish into a temporary folder, and search them for what identifies a patient; see push."""
    repo, licence, run = validate_push(run, repo, licence), normalize_licence(licence), Path(run)
    with TemporaryDirectory(prefix="fastcxr-") as temporary_dir:
        folder = Path(temporary_dir)
        model = load_model(run, precision="fp32", device="cpu")
        facts, remarks = write_published_model(run, folder, model)
        write_texts(run, folder, model, facts, repo, licence)
        full_report = (run / REPORT_FILE).read_text("utf-8", "replace") if with_images else ""
        if full_report:
            shutil.copyfile(run / REPORT_FILE, folder / REPORT_FILE)
        write_checksums(folder)
        reject_leaks(folder, run, skip=(REPORT_FILE,) if full_report else ())
        if licence is None:
            remarks.append("no licence is stated, and without one others may not use the model: pass `licence`")
        yield StagedModel(
            repo=repo,
            folder=folder,
            files=list_sent_files(folder),
            timm=facts.timm,
            remarks=tuple(remarks),
            notices=facts.notices,
            datasets=tuple(PUBLIC_DATASETS[name] for name in facts.public_datasets if name in PUBLIC_DATASETS),
            n_images=full_report.count(IMAGE_MARK),
        )


def require_publishable(run: Path) -> None:
    """Raise InputMissingError unless this is the folder of a finished run with a model and a report."""
    if not list_models_below(run, "fold"):
        read_model_json(run)
    for name in ("recipe.json", "predictions.csv", "metrics.json", REPORT_FILE):
        require_run_file(run, name)


def write_published_model(run: Path, folder: Path, model: Classifier | Ensemble) -> tuple[PublishedFacts, list[str]]:
    """Write weights, model.json, OOD detector and timm's config.json; return the facts and what is left out."""
    remarks, timm = [], None
    if isinstance(model, Classifier):
        write_model_files(run, folder)
        try:
            timm = share_with_timm(model, folder)
        except ModelError as error:
            remarks.append(f"timm cannot load the model: {error.problem}")
    else:
        for fold in list_models_below(run, "fold"):
            write_model_files(fold, folder / fold.name)
        remarks.append(f"timm cannot load the model: it is the mean of {len(model.members)} networks")
    record, metrics = make_shared_record(read_run_record(run)), make_shared_metrics(run)
    notices = tuple(notice for notice in make_notices(record, metrics) if notice.level == "critical")
    names = read_json(run / "run.json").get(PUBLIC_DATASETS_KEY, []) if (run / "run.json").is_file() else []
    return PublishedFacts(notices=notices, public_datasets=tuple(names), timm=timm), remarks


def write_texts(
    run: Path, folder: Path, model: Classifier | Ensemble, facts: PublishedFacts, repo: str, licence: str | None
) -> None:
    """Write recipe.json, metrics.json, the report, README.md and published.json, without paths and patients."""
    recipe, metrics = make_shared_recipe(run), make_shared_metrics(run)
    first_model = run if (run / MODEL_JSON_FILE).is_file() else list_models_below(run, "fold")[0]
    card = CardFacts(
        repo=repo,
        licence=licence,
        data_name=_join_names(recipe.get("data")),
        metrics=metrics,
        model_json=read_model_json(first_model),
        thresholds=model.thresholds,
        notices=facts.notices,
        timm_content=facts.timm,
    )
    write_json(folder / "recipe.json", recipe)
    write_json(folder / "metrics.json", metrics)
    write_json(folder / PUBLISHED_FILE, facts.to_json())
    run_checksum = card.model_json["files"][WEIGHTS_FILE]  # a head in another file changes that of the weights
    text = make_shared_card(run).replace(run_checksum, _find_checksum(folder) or run_checksum)
    atomic_write(folder / README_FILE, make_hub_card(card, text))
    atomic_write(folder / IMAGE_FREE_REPORT_FILE, render_image_free_report(run))


def _find_checksum(folder: Path) -> str | None:
    path = folder / WEIGHTS_FILE
    return compute_sha256(path) if path.is_file() else None


def _join_names(data: Any) -> str:
    return " + ".join(map(str, data)) if isinstance(data, list | tuple) else str(data or "")


def reject_leaks(folder: Path, run: Path, *, skip: tuple[str, ...]) -> None:
    """Raise ModelError if a file to publish contains an image, or a name or an identifier of the run.

    Raises ModelError too for a file that is not one of a published model.
    """
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if not (is_model_file(name) or name in REPORT_FILES):
            raise ModelError(f"{name} is no file of a published model", "Report this error", code="E706")
    leaks = list(find_leaks(folder, run, skip=skip))
    if leaks:
        found = [f"{leak.file} contains {leak.kind}{f' ({leak.text})' if leak.text else ''}" for leak in leaks[:3]]
        more = f" and {len(leaks) - 3} more" if len(leaks) > 3 else ""
        fix = "Nothing is sent. Rename labels, sources or findings that contain it, train again, or report this error"
        raise ModelError(f"{'; '.join(found)}{more}", fix, path=run, code="E706")


def list_sent_files(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file, the largest last."""
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return dict(sorted(files.items(), key=lambda item: (item[1], item[0])))


def find_repository(repo: str, *, public: bool) -> Repository:
    """Return the repository to publish in. Raises HubError without a token, or if its visibility is another one."""
    require_token(repo)
    repository = read_repository(repo)
    if not repository.exists:
        return Repository(name=repo, exists=False, is_private=not public)
    if repository.is_private and public:
        problem = f"{repo} exists and is private; a push does not change that"
        raise HubError(problem, f"Leave out `public`, or change it at {repository.url}/settings", code="E707")
    if not repository.is_private and not public:
        problem = f"{repo} exists and is public: everyone could read the model"
        raise HubError(problem, "Pass `public=True`, or the name of another repository", code="E707")
    return repository


def list_questions(staged: StagedModel, repository: Repository) -> list[Question]:
    """Return what the owner has to consent to; nothing for a private model of other data without images."""
    questions = [
        Question(
            f"{dataset.title} ({dataset.access}, {dataset.page}): {dataset.terms}",
            "Do its terms allow to store the model on this hub?",
        )
        for dataset in staged.datasets
        if CREDENTIALED in dataset.access
    ]
    if staged.n_images:
        images = f"{pluralize(staged.n_images, 'image')} of patients (thumbnails and saliency maps)"
        questions.append(Question(f"report.html shows {images}, and names of image files", "Send it?"))
    if not repository.is_private:
        fact = f"{repository.name} is public: everyone can download the model"
        questions.append(Question(fact, "Publish it?"))
    return questions


def send_model(
    staged: StagedModel,
    repository: Repository,
    message: str | None = None,
    *,
    replace_card: bool = False,
    show_bars: bool = False,
) -> Publication:
    """Create the repository if it does not exist, send the files in one commit, and return what is published.

    Args:
        staged: the files.
        repository: the repository, which need not exist.
        message: first line of the commit.
        replace_card: replace a model card that was edited on the hub.
        show_bars: whether huggingface_hub shows its progress bars on standard error.
    """
    created = create_repository(staged.repo, private=repository.is_private)
    keeps_card = not replace_card and has_edited_card(created)
    contents, obsolete = list_contents(staged, keeps_card=keeps_card), list_obsolete_files(created, staged.files)
    is_unchanged = not obsolete and has_contents(created, contents)
    if keeps_card:
        text = "%s of %s was edited on the hub and is kept: it may state other metrics and notices than this run. %s"
        log.warning(text, README_FILE, staged.repo, "`replace_card=True` replaces it")
    if obsolete:
        log.info("removed from the newest commit, earlier commits still have them: %s", ", ".join(obsolete))
    commit = created.commit
    if not is_unchanged:
        with nullcontext() if show_bars else silence_bars():
            commit = upload_files(created, contents, obsolete, message or f"Publish with fastcxr {VERSION}")
    return Publication(
        repo=staged.repo,
        url=created.url,
        commit=commit,
        is_private=created.is_private,
        files={name: size for name, size in staged.files.items() if name in contents},
        has_kept_card=keeps_card,
        is_unchanged=is_unchanged,
    )


def list_contents(staged: StagedModel, *, keeps_card: bool) -> dict[str, Path | bytes]:
    """Return what to send by its path in the repository.

    Without the card, SHA256SUMS has no checksum of it, and the next push keeps the card too.
    """
    contents: dict[str, Path | bytes] = {name: staged.folder / name for name in staged.files}
    if keeps_card:
        checksums = read_checksums(staged.folder)
        del contents[README_FILE], checksums[README_FILE]
        contents[CHECKSUMS_FILE] = format_checksums(checksums).encode()
    return contents
