"""Load the model of a run folder as a fastai Learner."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import Learner
from PIL import Image

from fastcxr.config.recipe import Recipe
from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.findings import FINDING_PREFIX, NO_FINDING
from fastcxr.data.manifest_file import read_written_manifest
from fastcxr.errors import DataError, InputMissingError, require_type
from fastcxr.io.formatting import pluralize
from fastcxr.io.hub_names import is_published
from fastcxr.models.bundle import Classifier, load_classifier
from fastcxr.models.devices import find_device
from fastcxr.models.hub_download import find_model_dir
from fastcxr.models.model_json import read_model_json
from fastcxr.models.state import LoadersState, make_no_images_error
from fastcxr.training.learner import build_learner
from fastcxr.training.loaders import make_datablock
from fastcxr.workflows.load import read_recipe_manifest
from fastcxr.workflows.run_state import IMAGE_KEY, read_run_config


class LoaderWithoutImages(TfmdDL):
    """Loader of a model that was loaded without its images: it raises InputMissingError at its first use.

    A loader that `new` makes from images, as for `learner.predict`, works.
    """

    def __len__(self) -> int:
        self._require_images()
        return super().__len__()

    def __iter__(self) -> Iterator[Any]:
        self._require_images()
        return super().__iter__()

    def one_batch(self) -> Any:
        """Return a batch."""
        self._require_images()
        return super().one_batch()

    def _require_images(self) -> None:
        if not len(self.dataset):
            raise make_no_images_error()


def load_learner_from_run(folder: str | Path, data: str | Path | None = None, *, device: str = "auto") -> Learner:
    """Return a fastai Learner with the weights of a run, for fastai's calls: predict, get_preds, fine_tune, lr_find.

    Its probabilities are those of the network. The run's temperature, thresholds, test-time augmentation and
    out-of-distribution detector belong to `load_model(folder)` and `predict`, which give the numbers of the report.

    Args:
        folder: the folder of a finished run with one model, or hf://owner/name for a model on the hub.
        data: the images of the run, as in Recipe(data=...), for loaders with the splits of its manifest.csv. Without
            them `learner.predict(path)` and `learner.export` work; training and `show_results` raise InputMissingError.
        device: name of a torch device; "auto" selects a GPU if there is one.

    Raises:
        InputMissingError: the folder contains no model, the data does not exist, or it is given for a published model.
        ModelError: a file of the model is damaged or invalid.
        DataError: images of the run are not in the data.
    """
    require_type("folder", folder, str, Path)
    folder = find_model_dir(folder)
    if is_published(folder) and data is not None:
        problem = "a published model has no list of the images that it was trained on: got `data`"
        fix = "Leave it out, and pass new images to `learner.predict`; or train with weights='hf://owner/name'"
        raise InputMissingError(problem, fix, path=folder, code="E304")
    classifier = load_classifier(folder, precision="fp32", device=device)
    backbone = "{library}:{name}".format(**read_model_json(folder)["backbone"])
    own_options = {"backbone": backbone, "weights": "none", "image_size": classifier.input_spec.image_size}
    recipe = Recipe.from_json(folder) if is_published(folder) else read_run_config(folder)
    recipe = recipe.replace(**own_options, precision="fp32", device=device)
    manifest = pd.DataFrame(columns=["source", "path", "label", "patient", "split"], dtype=str)
    if not is_published(folder):
        manifest = read_written_manifest(Path(folder) / "manifest.csv")
    if data is None:
        recipe = recipe.replace(class_weights="none")  # the empty loaders have no images to count
        loaders = make_empty_loaders(classifier, manifest, recipe)
    else:
        loaders = make_datablock(attach_files(manifest, data, recipe), recipe, classifier.input_spec).dataloaders()
    learner = build_learner(loaders, recipe)
    learner.model = classifier.network
    return learner


def make_empty_loaders(classifier: Classifier, manifest: pd.DataFrame, recipe: Recipe) -> DataLoaders:
    """Return loaders without items, for test_dl, as in a Learner that fastai exported."""
    with TemporaryDirectory(prefix="fastcxr-") as temporary_dir:
        file = f"{temporary_dir}/gradient.png"  # fastai reads one item to learn the types of a batch
        Image.linear_gradient("L").save(file)
        labels = [NO_FINDING] if classifier.task == MULTI_LABEL else classifier.labels
        rows = [(file, label, split) for label in labels for split in ("train", "valid")]
        table = pd.DataFrame(rows, columns=["file", "label", "split"])
        if classifier.task == MULTI_LABEL:
            table[[FINDING_PREFIX + name for name in classifier.labels]] = 0
        block = make_datablock(table, recipe, classifier.input_spec)
        options = {"device": find_device(recipe.device), "dl_type": LoaderWithoutImages}
        loaders = DataBlock.dataloaders(block, table, **options).new_empty()
    state = LoadersState(input_spec=classifier.input_spec, manifest=manifest, image_cache=None)
    loaders.fastcxr = state  # pyright: ignore[reportAttributeAccessIssue]  fastai's classes accept attributes
    return loaders


def attach_files(manifest: pd.DataFrame, data: str | Path, recipe: Recipe) -> pd.DataFrame:
    """Return the manifest of a run with the column `file`. Raise DataError for images that are not in the data."""
    no_patients = {"patient_table": None, "patient_regex": None, "patient_tag": None}  # the manifest has the patients
    found = read_recipe_manifest(recipe.replace(data=data, **no_patients))
    attached = found[[*IMAGE_KEY, "file"]].merge(manifest, on=IMAGE_KEY)[[*manifest.columns, "file"]]
    if len(attached) < len(manifest):
        missing = f"{len(manifest) - len(attached):,} of {pluralize(len(manifest), 'image')} of the run"
        raise DataError(f"{missing} not found in the data", "Pass the data that the run was trained on", path=data)
    return attached
