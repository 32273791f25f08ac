"""Command that exports a model: export."""

import shlex
from pathlib import Path
from typing import Literal

from fastcxr.cli.app import MODELS, app, find_next_run_dir
from fastcxr.cli.output import console, print_line, print_next_steps, print_result
from fastcxr.cli.suggestions import COMMAND_SYNONYMS
from fastcxr.io.hub_names import get_model_name, is_hub_name, parse_hub_name
from fastcxr.progress.terminal import TerminalProgress

SHOWN_ENTRIES = ("target", "task", "labels", "image_size", "has_ood_detector", "files", "check", "notices", "run")


@app.command(group=MODELS, synonym=COMMAND_SYNONYMS["export"], usage="Usage: fastcxr export RUN [OPTIONS]")
def export(
    run: Path,
    *,
    to: Literal["onnx", "timm"] = "onnx",
    data: tuple[str, ...] = (),
    out: Path | None = None,
) -> int:
    """Export the model of a finished run, to use it without torch or without fastcxr, and check the export.

    onnx: one file from gray bytes to calibrated probabilities and OOD scores, for predict, evaluate and serve without
    torch, and for other programs. timm: a folder for timm.create_model, to train the network further.
    The exported model and the model in PyTorch score the same images. If they do not agree, no folder is written.

    Parameters
    ----------
    run
        run folder of the trained model; of a run with folds: mean of all models; or hf://owner/name for a model on the
        hub
    to
        format of the export
    data
        images for the check: data of the run, or other files and folders; default: data of the recipe if it is found,
        else the bundled sample
    out
        folder to create; default: runs/export-RUN-NUMBER
    """
    from fastcxr.export.export_json import read_export_json
    from fastcxr.workflows.export import SAMPLE_IMAGES, describe_check, export_model

    folder = out or find_next_run_dir(f"export-{get_model_name(run)}")
    export_model(run, folder, to, data=data or None, progress=TerminalProgress(console))
    description = read_export_json(folder, to)
    check = description["check"]
    print_line(f"checked with {check['images']:,} images ({check['data']}): {describe_check(check)}")
    print_result(folder, {"folder": folder} | {name: description[name] for name in SHOWN_ENTRIES})
    name, steps = shlex.quote(str(folder)), []
    source = shlex.quote(str(parse_hub_name(run) if is_hub_name(run) else run))
    if check["data"] == SAMPLE_IMAGES:
        steps = [f"check with the images of the run: fastcxr export {source} --to {to} --data DATA"]
    if to == "onnx":
        steps += [f"classify images: fastcxr predict {name} image.png", f"local web page: fastcxr serve {name}"]
    else:
        timm_name = f"local-dir:{folder}"
        steps += [f"load in Python: timm.create_model({timm_name!r}, pretrained=True)"]
    print_next_steps(*steps)
    return 0
