"""Errors of the command line with a suggestion: by the meaning of a word first, then by its spelling."""

import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

from cyclopts import CycloptsError, MissingArgumentError, UnknownOptionError, UnusedCliTokensError

from fastcxr.errors import InputMissingError, RecipeError

MIN_SIMILARITY = 0.7  # "lr" and "sampler" have 0.44, "epoch" and "epochs" 0.91
# options by words that other programs use for them; the first that the command has is suggested
SYNONYMS = {
    "--learning-rate": "lr rate lrate lr-rate learn-rate learningrate base-lr max-lr",
    "--batch-size": "bs batch batchsize train-batch-size",
    "--image-size": "size img-size imgsize image-sz img-sz sz input-size resolution resize",
    "--epochs": "num-epochs n-epochs n-epoch max-epochs epoch-count",
    "--backbone": "model arch architecture network net model-name encoder name",
    "BACKBONES": "model models arch architecture network backbone",
    "--folder": "model run run-dir checkpoint weights model-path model-dir",
    "--run": "model folder run-dir checkpoint weights model-path",
    "IMAGES": "data input inputs image files input-dir data-dir",
    "--data": "dataset datasets data-dir data-path data-root dataset-path train-dir input root images folder csv path",
    "--out": "output output-dir outdir output-path out-dir save-dir dest destination run-dir name run-name",
    "--to": "out output file",
    "--csv": "out output output-file save to",
    "--weights": "pretrained checkpoint ckpt load init from-weights weights-path pretrained-weights",
    "--device": "gpu gpus cuda cpu use-gpu use-cuda accelerator",
    "--precision": "amp fp16 bf16 half mixed-precision dtype to-fp16",
    "--workers": "num-workers n-workers nworkers jobs threads num-proc",
    "--optimizer": "opt optim opt-func",
    "--weight-decay": "wd decay l2",
    "--schedule": "scheduler lr-schedule lr-scheduler sched",
    "--loss": "loss-func criterion loss-function",
    "--label-smoothing": "smoothing ls",
    "--classes": "class labels label class-names",
    "--class": "classes labels label",
    "--folds": "k kfold k-fold cv n-folds num-folds cross-validation",
    "--seed": "random-seed random-state rng",
    "--patience": "early-stopping early-stop",
    "--strategy": "freeze mode fine-tune finetune transfer unfreeze",
    "--augment.do-flip": "flip hflip horizontal-flip",
    "--reuse-split": "split-from same-split",
    "--split": "split-by group-by",
    "--patient-table": "patients metadata patient-csv",
    "--patient-regex": "patient-pattern patient-id",
    "--hflip-tta": "tta test-time-augmentation",
    "--skip-bad": "ignore-errors skip-errors skip-unreadable",
    "--no-resume": "new restart overwrite from-scratch force",
    "--abstain-rate": "abstain reject-rate",
    "--quiet": "silent q no-progress",
    "--verbose": "debug v",
    "--log-file": "log logfile log-path logs",
}  # fmt: skip
OUTPUT_OPTIONS = ("--quiet", "--verbose", "--json", "--log-file")  # of all commands
COMMAND_SYNONYMS = {
    "train": ("fit", "finetune", "fine-tune", "learn"),
    "predict": ("infer", "inference", "classify"),
    "evaluate": ("eval", "test", "validate", "external"),
    "explain": ("gradcam", "grad-cam", "saliency"),
    "describe": ("summary", "info", "stats", "eda"),
    "list": ("ls", "runs", "history"),
    "models": ("backbones", "zoo"),
    "audit": ("check", "leakage"),
}


def describe_usage_error(error: CycloptsError) -> RecipeError:
    """Return the error of an invalid command line with a fix."""
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0]
        names = [name for argument in error.argument_collection if argument.parse for name in argument.names]
        return RecipeError(f"unknown option {option}", suggest_option(option, [*names, *OUTPUT_OPTIONS]))
    if isinstance(error, UnusedCliTokensError):
        return _describe_unused_tokens(error)
    problem, _, fix = str(error).partition(". ")
    has_options = any(token.startswith("--") for token in error.root_input_tokens or ())
    if isinstance(error, MissingArgumentError) and has_options:
        fix = "Place it before the options, which take all values up to the next option"
    return RecipeError(problem.rstrip("."), fix or "List the arguments and options with --help")


def suggest_option(option: str, names: Iterable[str]) -> str:
    """Return the fix for an unknown option of a command that has these options."""
    known_names, word = set(names), option.strip("-").replace("_", "-").lower()
    by_meaning = [name for name, words in SYNONYMS.items() if word in words.split()]
    for name in by_meaning:
        if name in known_names:
            return f"Did you mean {name}?" if name.startswith("-") else f"Pass {name} without an option"
    spellings = {name.strip("-"): name for name in sorted(known_names)}
    close = [] if by_meaning else get_close_matches(word, spellings, n=1, cutoff=MIN_SIMILARITY)
    return f"Did you mean {spellings[close[0]]}?" if close else "List the options with --help"


def _describe_unused_tokens(error: UnusedCliTokensError) -> RecipeError:
    unused, names = error.unused_tokens or [], _list_option_names(error)
    problem, paths = f"no option takes {', '.join(map(repr, unused))}", list(filter(is_path, unused))
    if "--backbone" in names:
        command, *words = takewhile(lambda token: not token.startswith("-"), error.root_input_tokens or ("",))
        data, others = list(filter(is_path, words)), [word for word in words if not is_path(word)]
        if words and words[0] in data and len(others) == 1:
            fix = f"Did you mean: {command} {others[0]} --data {shlex.join(data)}?"
            return RecipeError(f"{words[0]} is not a backbone", fix)
    if paths and "--data" in names:
        return RecipeError(problem, f"Did you mean --data {shlex.join(paths)}?")
    return RecipeError(problem, "Place a value after its option: --classes Normal Virus")


def _list_option_names(error: CycloptsError) -> set[str]:
    if not error.app:
        return set()
    arguments = error.app.assemble_argument_collection()  # pyright: ignore[reportOptionalMemberAccess]
    return {name for argument in arguments for name in argument.names}


def is_path(text: str) -> bool:
    """Return whether a word is a path and not a name: it exists, or it has a separator of folders."""
    return "/" in text or "\\" in text or Path(text).exists()


def reject_backbone_as_data(data: str | tuple[str, ...] | None) -> None:
    """Raise InputMissingError if the last of several datasets does not exist and may be the name of a backbone."""
    if isinstance(data, tuple) and len(data) > 1 and data[-1].strip() and not is_path(data[-1]):
        problem = f"no file or folder {data[-1]!r}, the last value of --data"
        raise InputMissingError(problem, f"Place the name of a backbone before the options: {data[-1]} --data ...")


def reject_path_as_backbone(name: str) -> None:
    """Raise RecipeError if the name of a backbone is a path, and no network has this name."""
    if not is_path(name):
        return
    from fastcxr.models.backbones import find_backbone

    try:
        find_backbone(name, "none")
    except RecipeError as error:
        raise RecipeError(f"{name} is not a backbone", f"Did you mean --data {shlex.quote(name)}?") from error
