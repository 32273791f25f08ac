"""Output of `train --dry-run`: what a training needs, and what this computer has."""

import re
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastcxr.cli.output import console, print_error, print_line, print_result
from fastcxr.config.recipe import Recipe
from fastcxr.io.formatting import format_duration, join_names, pluralize
from fastcxr.progress.terminal import print_table

if TYPE_CHECKING:
    from fastcxr.workflows.dry_run import DryRun

NUMBER_SPACE = re.compile(r"(?<=\d) (?=[\w%])|(?<=\d h) (?=\d)|(?<=\d min) (?=\d)")  # not a line end
MAX_CLASSES = 12  # that the terminal shows; --json has all


def start_dry_run(recipe: Recipe, folder: Path, n_jobs: int = 1, n_processes: int | None = None) -> int:
    """Print what a training needs, and return 0, or the exit code of the error that it would meet."""
    from fastcxr.workflows.dry_run import dry_run

    print_line("dry run: a few images are decoded and a few training steps timed; no run folder is created")
    plan = dry_run(recipe, folder, n_jobs, n_processes)
    show_dry_run(console, plan)
    document = plan.to_json()
    if plan.error:
        exit_code = print_error(plan.error)
        print_result(None, document | {"error": {"problem": plan.error.problem, "exit_code": exit_code}})
        return exit_code
    print_result(None, document | {"error": None})
    return 0


def show_dry_run(console: Console, plan: "DryRun") -> None:
    """Print all parts of the plan, each with a heading at the left."""
    print_table(console, _make_class_table(plan.data))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    lines = _list_lines(plan)
    width = console.width - 2 - max(len(heading) for heading, _ in lines)
    for heading, text in lines:
        table.add_row(heading, escape(_wrap(text, width)))
    print_table(console, table)


def _wrap(text: str, width: int) -> str:
    """Return the text in lines that never end between a number and its unit; rich breaks at every kind of space."""
    joined = NUMBER_SPACE.sub("\xa0", text)
    return "\n".join(textwrap.wrap(joined, max(20, width), break_on_hyphens=False)).replace("\xa0", " ")


def _make_class_table(data: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("finding" if data["task"] == "multi_label" else "class", overflow="fold")
    splits = data["splits"]
    for split in splits:
        table.add_column(split, justify="right")
    for label, numbers in list(data["images_per_class"].items())[:MAX_CLASSES]:
        table.add_row(escape(label), *(f"{numbers[split]:,}" for split in splits))
    if (n_more := len(data["images_per_class"]) - MAX_CLASSES) > 0:
        table.add_row(f"and {n_more} more")
    table.add_row("images", *(f"{split['n_images']:,}" for split in splits.values()))
    table.add_row("patients", *(f"{split['n_patients']:,}" for split in splits.values()))
    return table


def _list_lines(plan: "DryRun") -> list[tuple[str, str]]:
    lines = [("model", _describe_model(plan.model)), ("device", _describe_machine(plan.machine))]
    lines += [("data", _describe_decoding(plan))]
    lines += [("time", text) for text in _describe_times(plan)]
    lines += [("disk", text) for text in _describe_disk(plan.disk)]
    lines.append(("memory", _describe_memory(plan.memory)))
    lines += [("not known", text) for text in plan.unknown]
    headings = [heading for heading, _ in lines]
    is_repeated = [False, *(one == other for one, other in pairwise(headings))]
    return [("" if repeated else heading, text) for (heading, text), repeated in zip(lines, is_repeated, strict=True)]


def _describe_model(model: Mapping[str, Any]) -> str:
    places = {True: "on this computer", False: "not on this computer: downloaded at the start", None: "place not known"}
    place = "" if model["weights"] == "random weights" else f", {places[model['is_on_this_computer']]}"
    return f"{model['backbone']}, {model['image_size']} px; {model['weights']}{place}"


def _describe_machine(machine: Mapping[str, Any]) -> str:
    gpus = [f"{gpu['name']} ({_format_bytes(gpu['memory_bytes'])})" for gpu in machine["gpus"]]
    processes = pluralize(machine["processes"], "process", "processes")
    text = f"{machine['device']}, {pluralize(machine['threads'], 'thread')}, {processes}, {machine['precision']}; "
    text += join_names(gpus) or "no GPU"
    return text + ("; the times are those of one process" if machine["processes"] > 1 else "")


def _describe_decoding(plan: "DryRun") -> str:
    n_bad, n_sample = plan.data["unreadable_of_sample"]
    text = f"{pluralize(plan.data['n_images'], 'image')} of {pluralize(plan.data['n_patients'], 'patient')}; "
    rate = plan.times["decoded_images_per_second"]
    text += f"{rate:,.0f} decoded/s" if rate >= 10 else f"{rate:.1f} decoded/s"
    return text + (f"; {n_bad} of {n_sample} images of a sample cannot be read" if n_bad else "")


def _describe_times(plan: "DryRun") -> list[str]:
    times, runs = plan.times, plan.runs
    lines = [f"decoding: {format_duration(times['decode_seconds'])}, once; less for images in the cache"]
    if times["feature_seconds"]:
        lines.append(f"features of all images: {format_duration(times['feature_seconds'])}")
    for stage in times["stages"]:
        lines.append(_describe_stage(stage, times["batch_size"]))
    lines.append(f"predictions and report: {format_duration(times['after_seconds'])}")
    lines.append(f"one run: {format_duration(times['run_seconds'])}")
    if runs["n_runs"] > 1:
        lines[-1] = f"one {runs['unit']}: {format_duration(times['run_seconds'])}"
        jobs = f", {runs['jobs']} at a time (on one computer they share its cores)" if runs["jobs"] > 1 else ""
        total = format_duration(times["all_runs_seconds"])
        lines.append(f"{pluralize(runs['n_runs'], runs['unit'])}{jobs}: {total}")
    return lines


def _describe_stage(stage: Mapping[str, Any], batch_size: int) -> str:
    epochs = pluralize(stage["epochs"], "epoch")
    if stage["epochs"] < stage["requested_epochs"]:
        epochs += f" (of {stage['requested_epochs']}: time limit)"
    steps = f"{stage['steps_per_epoch']:,} steps of {batch_size} images"
    seconds = f"{format_duration(stage['epoch_seconds'])} per epoch, {format_duration(stage['seconds'])}"
    return f"stage {stage['name']}: {epochs} of {steps}; {seconds}"


def _describe_disk(disk: Mapping[str, Any]) -> list[str]:
    limit = _format_bytes(disk["image_cache_limit_bytes"])
    cache = f"image cache: {_format_bytes(disk['image_cache_bytes'])} of at most {limit}"
    lines = [cache if disk["image_cache_fits"] else f"image cache: too small. {disk['image_cache_advice']}"]
    if disk["feature_bytes"]:
        lines.append(f"features: {_format_bytes(disk['feature_bytes'])}")
    run, free = _format_bytes(disk["run_bytes"]), _format_bytes(disk["run_free_bytes"])
    return [*lines, f"run folder with checkpoints: {run}, {free} free"]


def _describe_memory(memory: Mapping[str, Any]) -> str:
    parts = []
    if memory["step_bytes"]:
        kind = "measured" if memory["is_measured"] else "estimated"
        parts.append(f"a training step needs {_format_bytes(memory['step_bytes'])} ({kind})")
    if memory["free_gpu_bytes"]:
        parts.append(f"{_format_bytes(memory['free_gpu_bytes'])} of the GPU are free")
    host = memory["available_host_bytes"]
    parts.append(f"{_format_bytes(host)} of the computer are available" if host else "available memory not known")
    return "; ".join(parts)


def _format_bytes(n_bytes: float) -> str:
    """Return 1,200,000,000 as "1.2 GB", 3,400,000 as "3.4 MB"."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"
