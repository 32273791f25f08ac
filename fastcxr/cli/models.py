"""Commands on models and the cache: predict, explain, embed, models, cache."""

from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fastcxr.cli.app import MODELS, Device, EmbedOptions, Precision, app, find_next_run_dir
from fastcxr.cli.dicom_options import NO_DICOM, DicomOptions
from fastcxr.cli.model_lists import (
    format_backbone_list,
    format_encoder,
    format_encoder_list,
    make_encoder_commands,
)
from fastcxr.cli.output import (
    PARTIAL_EXIT_CODE,
    console,
    is_json,
    make_open_step,
    print_critical_notices,
    print_line,
    print_next_steps,
    print_result,
    print_warning,
)
from fastcxr.cli.suggestions import COMMAND_SYNONYMS
from fastcxr.cli.tables import show_cache
from fastcxr.cli.workers import IN_THIS_PROCESS, WorkerOptions, open_executor
from fastcxr.errors import InputMissingError, OutputError, RecipeError
from fastcxr.io.formatting import pluralize
from fastcxr.io.hub_names import get_model_name, is_hub_name
from fastcxr.progress.terminal import TerminalProgress


@app.command(
    group=MODELS, synonym=COMMAND_SYNONYMS["predict"], usage="Usage: fastcxr predict FOLDER IMAGES... [OPTIONS]"
)
def predict(
    folder: Path,
    *images: str,
    csv: Path | None = None,
    shard: str | None = None,
    hash_names: bool = False,
    engine: Literal["torch", "openvino"] = "torch",
    precision: Precision = "trained",
    device: Device = "auto",
    dicom: DicomOptions = NO_DICOM,
    workers: WorkerOptions = IN_THIS_PROCESS,
) -> int:
    """Classify images and write a CSV with one row per file.

    Columns are the probability of each class, the classes whose thresholds the image reaches, whether the image is
    out-of-distribution (in_distribution=no; no predicted class) or the prediction uncertain, and the warnings on the
    image. A model without a detector has no column in_distribution, and predicts a class for every image.
    uncertain=yes: out-of-distribution, highest probability below the abstention threshold, or thresholds of no class or
    of several classes reached. An unreadable file has an error and empty columns. The path in a row is unique and never
    absolute: for one folder it is the path below it, else the path as given.

    A model of findings writes the probability (prob_FINDING) and the decision (decision_FINDING, yes or no) of each
    finding instead, and in the column predicted the findings that reach their thresholds. An out-of-distribution image
    has no decisions. The three most probable findings of each image are printed.

    DICOM results refer to the study of their source image: all images must be DICOM files with UIDs. The file names are
    new UIDs. An unreadable file has no result. The same command continues after an interruption.

    Parameters
    ----------
    folder
        run folder of the trained model; of a run with folds: mean of the probabilities of all folds; or folder of an
        exported model, which needs onnxruntime and no torch; or hf://owner/name for a model on the hub
    images
        image files, DICOM files, folders of them, or packed files
    csv
        CSV file to create; default: standard output. Finished rows are in FILE.part until the last one, and the same
        command continues after an interruption
    shard
        NUMBER/TOTAL, such as 3/8: only this part of the images, into the folder FILE.shards; merge joins all parts
    hash_names
        salted hashes in place of file and folder names: HMAC-SHA256 of the path, with the salt of patient
        pseudonyms (FASTCXR_SALT); DICOM results keep the patient attributes of their source
    engine
        inference engine of a run; openvino (an optional dependency) is faster on a CPU; an export uses onnxruntime
    """
    from fastcxr.cli.prediction import PredictionOutput, predict_with_workers, write_shard_csv
    from fastcxr.data.image_table import make_image_table
    from fastcxr.models.hub_download import find_model_dir
    from fastcxr.workflows.load_scorer import load_scorer
    from fastcxr.workflows.prediction import validate_new_csv
    from fastcxr.workflows.prediction_shards import parse_shard

    if not images:
        raise InputMissingError("no images given", "Pass files or folders after the run folder")
    if csv and not csv.parent.is_dir():
        raise OutputError("this folder does not exist", "Create it, or choose another --csv", path=csv.parent)
    if shard and not csv:
        raise RecipeError("--shard needs the file that the shards are joined to", "Add --csv FILE")
    part = parse_shard(shard) if shard else None
    if workers != IN_THIS_PROCESS and (part or not csv):
        workers.reject("it needs one file to write", "Add --csv FILE, and leave --shard out")
    dicom.validate(images, is_divided=bool(part) or workers != IN_THIS_PROCESS)
    if csv and not part:
        validate_new_csv(csv)
    folder = find_model_dir(folder, TerminalProgress(console))
    scorer = load_scorer(folder, precision=precision, device=device, engine=engine)
    table = make_image_table(images, log_names=not hash_names)
    dicom.reject_other_images(table, hash_names=hash_names)
    print_line(f"precision: {scorer.dtype_and_device}")
    output = PredictionOutput(folder, scorer, table, hash_names=hash_names)
    if csv and part:
        return write_shard_csv(output, csv, part)
    if csv and workers != IN_THIS_PROCESS:
        options = {"precision": precision, "device": device, "engine": engine, "hash_names": hash_names}
        with open_executor(workers, device) as executor:
            return predict_with_workers(output, images, csv, executor, **options)
    output.write(csv, dicom)
    return output.print_summary()


@app.command(
    group=MODELS, synonym=COMMAND_SYNONYMS["explain"], usage="Usage: fastcxr explain FOLDER IMAGES... [OPTIONS]"
)
def explain(
    folder: Path,
    *images: str,
    classes: Annotated[tuple[str, ...], Parameter(name=("--class", "--finding"))] = (),
    method: Literal["grad_cam", "integrated_gradients", "occlusion"] = "grad_cam",
    precision: Precision = "trained",
    device: Device = "auto",
    out: Path | None = None,
) -> int:
    """Explain predictions with saliency maps, in an HTML page and a CSV.

    Probabilities and out-of-distribution verdicts are those of predict for the same images.
    Maps that fail the sanity check with random weights are not shown.

    Parameters
    ----------
    folder
        run folder of the trained model, or hf://owner/name for a model on the hub
    images
        image files, DICOM files, folders of them, or packed files
    classes
        class or finding to explain besides the most probable one; repeatable
    method
        attribution method; all but grad_cam need captum (an optional dependency) and take longer
    out
        folder to create; default: runs/explain-RUN-NUMBER
    """
    from fastcxr.data.image_table import make_image_table
    from fastcxr.io.tables import read_table, to_json_rows
    from fastcxr.models.bundle import load_classifier
    from fastcxr.models.hub_download import find_model_dir
    from fastcxr.workflows.critical_notices import read_run_notices
    from fastcxr.workflows.explain import write_explanation

    if not images:
        raise InputMissingError("no images given", "Pass files or folders after the run folder")
    folder = find_model_dir(folder, TerminalProgress(console))
    classifier = load_classifier(folder, precision=precision, device=device)
    table = make_image_table(images)
    explanation_dir = out or find_next_run_dir(f"explain-{get_model_name(folder)}")
    page, n_unreadable = write_explanation(
        classifier, table, explanation_dir, classes=classes, method=method, progress=TerminalProgress(console)
    )
    print_critical_notices(notices := read_run_notices(folder))
    print_line(f"{pluralize(len(table) - n_unreadable, 'image')} explained, {n_unreadable:,} unreadable")
    maps = to_json_rows(read_table(page.parent / "saliency.csv"))
    critical = [notice["title"] for notice in notices]
    document = {"folder": page.parent, "report": page, "critical": critical, "n_unreadable": n_unreadable}
    print_result(page, document | {"maps": maps})
    print_next_steps(make_open_step(page))
    return PARTIAL_EXIT_CODE if n_unreadable else 0


@app.command(
    group=MODELS, synonym=COMMAND_SYNONYMS["embed"], usage="Usage: fastcxr embed MODEL DATA... --to FEATURES [OPTIONS]"
)
def embed(
    model: str,
    *data: str,
    to: Path,
    hash_names: bool = False,
    options: Annotated[EmbedOptions, Parameter(name="*")] = EmbedOptions(),  # noqa: B008  it is frozen
) -> int:
    """Write the feature vector of each image, with its patient and label, for analyses with other programs.

    The vector is what the head of the network receives from its last layer. Columns: path, patient, label, source and
    vector, and for images with findings a column per finding. An interrupted command continues when it is repeated.

    Parameters
    ----------
    model
        run folder with one model, hf://owner/name for a model on the hub, or name of a backbone, such as rad-dino
    data
        class folders, CSV, public dataset or packed file; or images and folders without subfolders, which have no
        patients and labels
    to
        file to write, ending in .parquet or .npz
    hash_names
        salted hashes in place of file and folder names, as in predict
    """
    from fastcxr.models.hub_download import find_model_dir
    from fastcxr.workflows.critical_notices import read_run_notices
    from fastcxr.workflows.embed import embed as embed_images

    if not data:
        raise InputMissingError("no images given", "Pass a dataset, or images, after the model")
    folder = find_model_dir(model, TerminalProgress(console)) if is_hub_name(model) or Path(model).is_dir() else None
    found = embed_images(model, data, to, hash_names=hash_names, progress=TerminalProgress(console), **asdict(options))
    critical = read_run_notices(folder) if folder else []
    print_critical_notices(critical)
    for error in found.errors:
        print_warning(str(error))
    n_images, n_unreadable = len(found.table), len(found.errors)
    size = f"{pluralize(n_images, 'row')} with vectors of {found.vectors.shape[1]:,} features"
    print_line(f"{size} written to {to}, {n_unreadable:,} unreadable")
    unreadable = [{"path": error.path, "error": f"{error.problem}. {error.fix}"} for error in found.errors]
    counts = {"n_images": n_images, "n_features": found.vectors.shape[1], "n_unreadable": n_unreadable}
    counts |= {"critical": [notice["title"] for notice in critical]}
    print_result(to, {"file": to} | counts | {"unreadable": unreadable, "metadata": found.metadata})
    return PARTIAL_EXIT_CODE if n_unreadable else 0


@app.command(group=MODELS, synonym=COMMAND_SYNONYMS["models"], usage="Usage: fastcxr models [PATTERN] [OPTIONS]")
def models(pattern: str = "*", *, chest: bool = False) -> int:
    """List backbones with number of parameters, native image size and available pretrained weights.

    The exact name of a chest encoder shows all its facts, and the command that trains with it.

    Parameters
    ----------
    pattern
        part of a name, or a pattern with wildcards such as 'resnet*'
    chest
        encoders trained on chest radiographs only, with access and licence
    """
    from fastcxr.models.registry import describe_encoder, find_encoder, list_backbones, list_encoders

    if encoder := find_encoder(pattern):
        facts = describe_encoder(encoder)
        facts["train"] = make_encoder_commands(facts)
        print_result("\n".join(format_encoder(facts)), facts)
        return 0
    rows = iter(list_encoders(pattern)) if chest else list_backbones(pattern)
    first = next(rows, None)
    if first is None:
        from fastcxr.models.backbones import suggest_backbone

        library, _, name = pattern.rpartition(":")
        close = suggest_backbone(name, "chest" if chest else library)
        fix = f"Did you mean {close!r}?" if close else "Pass a shorter part of the name"
        raise InputMissingError(f"no backbone matches {pattern!r}", fix)
    if is_json():
        print_result(None, [first, *rows])
        return 0
    for line in format_encoder_list(chain([first], rows)) if chest else format_backbone_list(chain([first], rows)):
        print(line)
    return 0


@app.command(group=MODELS)
def cache(*, clear: bool = False) -> int:
    """Show or clear the cache of decoded images and features.

    Parameters
    ----------
    clear
        removal of all files that no running process is using
    """
    from fastcxr.data.cache.features import clear_feature_cache, list_feature_files, list_unfinished_files
    from fastcxr.data.cache.quota import clear_image_cache, find_image_cache_dir, list_cache_entries

    folder = find_image_cache_dir()
    if not clear:
        entries, feature_files, unfinished_files = list_cache_entries(), list_feature_files(), list_unfinished_files()
        document = {"features": feature_files, "unfinished_features": unfinished_files}
        print_result(folder, {"folder": folder, "images": list(map(asdict, entries))} | document)
        show_cache(console, entries, feature_files, unfinished_files)
        return 0
    freed_bytes, entries_in_use = clear_image_cache()
    freed_bytes += clear_feature_cache()
    files_in_use = list_unfinished_files()
    document = {"images": list(map(asdict, entries_in_use)), "unfinished_features": files_in_use}
    print_result(folder, {"folder": folder, "freed_bytes": freed_bytes} | document)
    print_line(f"freed {freed_bytes / 1e6:,.1f} MB")
    if entries_in_use or files_in_use:
        print_line("in use by a running process, not removed:")
        show_cache(console, entries_in_use, [], files_in_use)
    return 0
