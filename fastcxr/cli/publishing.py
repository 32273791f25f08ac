"""Commands on models of the Hugging Face hub: push, pull."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fastcxr.cli.app import MODELS, app, find_next_run_dir
from fastcxr.cli.option_names import name_options
from fastcxr.cli.output import (
    console,
    make_error,
    print_critical_notices,
    print_line,
    print_next_steps,
    print_result,
    print_warning,
)
from fastcxr.cli.suggestions import COMMAND_SYNONYMS
from fastcxr.errors import RecipeError
from fastcxr.io.formatting import pluralize
from fastcxr.io.hub_names import get_model_name, parse_hub_name
from fastcxr.progress.terminal import TerminalProgress

if TYPE_CHECKING:  # torch takes seconds to import
    from fastcxr.workflows.publish import Question, StagedModel

DECLINED_EXIT_CODE = 1
ANSWERS = ("y", "yes")


@app.command(group=MODELS, synonym=COMMAND_SYNONYMS["push"], usage="Usage: fastcxr push RUN OWNER/NAME [OPTIONS]")
def push(
    run: Path,
    repo: str,
    *,
    public: Annotated[bool, Parameter(negative=())] = False,
    with_images: Annotated[bool, Parameter(negative=())] = False,
    licence: Annotated[str | None, Parameter(alias="--license")] = None,
    message: str | None = None,
    replace_card: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    yes: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Publish the model of a finished run on the Hugging Face hub, in a private repository by default.

    Sent are the weights, thresholds and calibration, the out-of-distribution detector, recipe.json, metrics.json, the
    model card, and a report without images. Never sent are images, stored features, manifest.csv and predictions.csv.
    Before the upload all files are searched for images, paths, file names and patient identifiers of the run.
    The upload is one commit. A model card that was edited on the hub is kept. The token is that of `hf auth login`, or
    HF_TOKEN.

    Parameters
    ----------
    run
        run folder of the trained model, also of cross-validation
    repo
        name on the hub: user or organization, slash, name of the model
    public
        a public repository; a question asks for consent. An existing repository keeps its visibility
    with_images
        report.html too, which shows images, saliency maps and file names of patients; a question asks for consent
    licence
        licence of the model, as an identifier of the hub: apache-2.0, mit, cc-by-4.0, cc-by-nc-4.0, other
    message
        first line of the commit
    replace_card
        replace a model card that was edited on the hub; earlier commits still have it
    dry_run
        list of what would be sent, without any request
    yes
        consent to all questions, for use without a terminal
    """
    from fastcxr.workflows.publish import find_repository, list_questions, send_model, stage_model, validate_push

    repo = validate_push(run, repo, licence)
    repository = None if dry_run else find_repository(repo, public=public)
    print_line("preparing and searching the files")
    with stage_model(run, repo, with_images=with_images, licence=licence) as staged:
        show_staged(staged)
        document: dict[str, Any] = {"repo": staged.repo, "files": staged.files, "timm": staged.timm}
        document |= {"critical": [notice.title for notice in staged.notices], "remarks": list(staged.remarks)}
        if repository is None:
            visibility = "public" if public else "private"
            line = f"dry run: nothing is sent; {pluralize(len(staged.files), 'file')} would go to the {visibility} "
            print_result(f"{line}{staged.repo}", document | {"dry_run": True, "private": not public})
            return 0
        confirm_all(list_questions(staged, repository), yes=yes)
        show_bars = console.is_terminal and not console.quiet
        published = send_model(staged, repository, message, replace_card=replace_card, show_bars=show_bars)
    state = "private" if published.is_private else "public"
    unchanged = ": nothing changed, and nothing is sent" if published.is_unchanged else ""
    print_line(f"{state}, commit {(published.commit or '')[:7]}{unchanged}")
    facts = {"url": published.url, "commit": published.commit, "private": published.is_private, "dry_run": False}
    facts |= {"files": published.files, "kept_card": published.has_kept_card, "unchanged": published.is_unchanged}
    print_result(published.url, document | facts)
    print_next_steps(
        f"use it: fastcxr predict hf://{published.repo} IMAGES",
        f"download it: fastcxr pull {published.repo}",
        f"complete the model card: {published.url}",
    )
    return 0


@app.command(group=MODELS, synonym=COMMAND_SYNONYMS["pull"], usage="Usage: fastcxr pull OWNER/NAME [OPTIONS]")
def pull(repo: str, *, revision: str | None = None, out: Path | None = None) -> int:
    """Download a model that push published into a new folder, after the checks of any model file.

    Only files with the names of a published model are downloaded, never HTML or code. They are compared with their
    checksums, and the model is loaded once. If a check fails, no folder remains.

    Parameters
    ----------
    repo
        name on the hub: user or organization, slash, name of the model
    revision
        branch, tag or commit; default: the newest one
    out
        folder to create; default: runs/NAME-NUMBER
    """
    from fastcxr.workflows.pull import pull as pull_model

    folder = out or find_next_run_dir(get_model_name(f"hf://{parse_hub_name(repo, revision).repo}"))
    pulled = pull_model(repo, folder, revision=revision, progress=TerminalProgress(console))
    print_critical_notices(asdict(notice) for notice in pulled.notices)
    print_line(f"commit {pulled.commit[:7]} of {pulled.repo}: the files have their checksums, and the model loads")
    facts = {"repo": pulled.repo, "commit": pulled.commit, "critical": [notice.title for notice in pulled.notices]}
    print_result(folder, {"folder": folder} | facts)
    name = shlex.quote(str(folder))
    print_next_steps(
        f"classify images: fastcxr predict {name} IMAGES",
        f"test on other data: fastcxr evaluate {name} --data DATA",
        f"explain predictions: fastcxr explain {name} IMAGES",
        f"local web page: fastcxr serve {name}",
    )
    return 0


def show_staged(staged: "StagedModel") -> None:
    """Print the files with their sizes, what is left out, the datasets, and the critical notices."""
    width = max(map(len, staged.files))
    for name, size in staged.files.items():
        print_line(f"  {name:<{width}}  {format_bytes(size):>9}")
    size = format_bytes(sum(staged.files.values()))
    places = "report.html only" if staged.n_images else "none of them"
    print_line(f"{pluralize(len(staged.files), 'file')}, {size}; names and images of the run are in {places}")
    for dataset in staged.datasets:
        terms = f"; {dataset.terms}" if dataset.terms else ""
        print_line(f"trained on {dataset.title} (access: {dataset.access}, {dataset.page}){terms}")
    for remark in staged.remarks:
        print_line(name_options(remark))
    print_critical_notices(asdict(notice) for notice in staged.notices)


def format_bytes(n_bytes: int) -> str:
    """Return 1,234,567 as "1.2 MB", 900 as "0.9 kB"."""
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.1f} kB"


def confirm_all(questions: "list[Question]", *, yes: bool) -> None:
    """Ask each question in the terminal; return if all answers are yes.

    Raises RecipeError without a terminal, FastcxrError after another answer.
    """
    if yes or not questions:
        return
    if not sys.stdin.isatty():
        problem = f"no terminal to ask for consent: {'; '.join(question.fact for question in questions)}"
        raise RecipeError(problem, "Pass --yes if you consent", code="E707")
    for question in questions:
        print_warning(f"{question.fact}.")
        console.print(f"{question.text} [y/N] ", end="", markup=False, highlight=False)
        try:
            answer = input()
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ANSWERS:
            raise make_error("nothing is sent: no consent", "Repeat the command to be asked again", DECLINED_EXIT_CODE)
