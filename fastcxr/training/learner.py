"""Create a fastai Learner from DataLoaders and a recipe."""

import inspect
import logging
import tempfile
from typing import Any, Self, cast

import fastai.callback.schedule  # noqa: F401  adds lr_find and fit_one_cycle to Learner
import fastai.vision.learner  # noqa: F401  adds plot_top_losses for images
import numpy as np
import pandas as pd
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import BaseLoss
from fastai.metrics import AccumMetric, accuracy, top_k_accuracy
from fastai.optimizer import Optimizer
from sklearn.metrics import roc_auc_score
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.config.tasks import MULTI_LABEL, SINGLE_LABEL, resolve_task
from fastcxr.errors import RecipeError, require_type
from fastcxr.io.formatting import pluralize
from fastcxr.models.backbones import (
    describe_backbone,
    describe_weights_choice,
    find_backbone,
    make_network,
    validate_pretrained,
)
from fastcxr.models.checkpoint_file import find_weights_file
from fastcxr.models.devices import find_device
from fastcxr.models.encoder_files import describe_terms
from fastcxr.models.encoders import ENCODERS, XRV_PREFIX, find_image_size
from fastcxr.models.heads import head_config, set_output_bias
from fastcxr.models.param_groups import find_frozen, layer_groups
from fastcxr.models.precision import forbid_tf32, keep_malloc_arenas, keep_stem_fp32, resolve_precision
from fastcxr.models.preprocessing import InputSpec
from fastcxr.models.state import LearnerState, get_loaders_state
from fastcxr.progress.base import silence_logging
from fastcxr.training.callbacks import FitHistory
from fastcxr.training.finding_losses import compute_finding_auroc_from_logits, make_finding_loss
from fastcxr.training.finding_targets import is_finding_target
from fastcxr.training.loaders import make_input_spec
from fastcxr.training.losses import MoveLossesToCpu, SmoothLoss, WeightedAvgLoss, make_loss
from fastcxr.training.mixed_precision import MixedPrecision
from fastcxr.training.optimizers import find_optimizer, find_weight_decay
from fastcxr.training.own_loaders import validate_own_loaders

log = logging.getLogger("fastcxr")


class FrozenModulesEval(Callback):
    """Keep frozen layers in evaluation mode: fixed batch-norm statistics and no dropout."""

    order = 60  # after fastai sets the whole network to training mode

    def before_train(self) -> None:
        """Set every frozen module to evaluation mode."""
        for module in find_frozen(self.model):
            module.training = False


class CxrLearner(Learner):
    """fastai's Learner that computes in the precision of its state, and whose optimizer can skip a step on a GPU."""

    fastcxr: LearnerState  # set by make_learner
    skip_step: torch.Tensor | None = None
    """Whether the next step changes nothing; 0-dim bool tensor on the device, which the host need not read."""

    @property
    def can_skip_steps(self) -> bool:
        """Whether the optimizer accepts `skip_step`; those of fastai and torch do not."""
        return "skip" in inspect.signature(cast(Optimizer, self.opt).step).parameters

    def one_batch(self, i: int, b: tuple) -> None:
        """Compute one batch, without TF32 if the precision is fp32."""
        with forbid_tf32(self.fastcxr.precision, self.dls.device):
            super().one_batch(i, b)

    def _step(self) -> None:
        skip, self.skip_step = self.skip_step, None
        optimizer = cast(Any, self.opt)
        optimizer.step() if skip is None else optimizer.step(skip=skip)

    def to_fp16(self, **scaler_options) -> Self:
        """Compute in float16 from now on; `scaler_options`: arguments of torch's GradScaler."""
        self.mixed_precision.scaler_options = scaler_options
        return self.set_precision("fp16")

    def to_bf16(self) -> Self:
        """Compute in bfloat16 from now on."""
        return self.set_precision("bf16")

    def to_fp32(self) -> Self:
        """Compute in float32 from now on."""
        return self.set_precision("fp32")

    def set_precision(self, precision: str) -> Self:
        """Set the precision of training and inference: fp32, fp16 or bf16."""
        self.fastcxr.precision = precision
        if precision == "bf16" and self.dls.device.type == "cpu":
            keep_stem_fp32(cast(nn.Module, self.model), make_input_spec(cast(Recipe, self.fastcxr.recipe)))
        return self


def validate_model_options(recipe: Recipe) -> None:
    """Check backbone, weights and device without any image, so that an error comes before minutes of reading.

    Weights from a file are loaded into the network, which is then discarded.
    Raises RecipeError for an unknown backbone or device, InputMissingError or WeightsError for weights.
    """
    find_device(recipe.device)
    backbone = find_backbone(recipe.backbone, recipe.weights)
    image_size = find_image_size(recipe)
    if backbone.library == "chest" and recipe.weights != "none":
        log.info(describe_terms(ENCODERS[backbone.name]))
    if recipe.weights == "pretrained":
        validate_pretrained(backbone)
    elif recipe.weights != "none":
        if not recipe.weights.startswith(XRV_PREFIX):
            find_weights_file(recipe.weights)
        with torch.random.fork_rng(devices=[]), silence_logging():
            make_network(backbone, 2, recipe.weights, image_size, head_config(recipe))


def make_learner(loaders: DataLoaders, recipe: Recipe) -> Learner:
    """Return a fastai Learner with backbone, new head, layer groups, loss and optimizer of the recipe.

    Batch norm of frozen layers is frozen too: a frozen backbone needs no backward pass.

    fastai's `learner.get_preds` and `learner.predict` apply neither the temperature nor test-time augmentation: their
    probabilities differ from those of the report and of `fastcxr predict`.

    Args:
        loaders: those of make_loaders or make_datablock, or other fastai DataLoaders with one class per image, or with
            encoded findings (NaN: unknown). A Learner with other DataLoaders is for fastai's own calls: train, predict
            and write_report of fastcxr refuse it, because they cannot repeat its preprocessing.
        recipe: the experiment.

    Raises:
        DataError: the batches of other DataLoaders do not fit the network.
        RecipeError: unknown backbone or optimizer, or loaders made for a backbone with other pixels.
        WeightsError: the weights cannot be loaded.
    """
    require_type("loaders", loaders, DataLoaders)
    require_type("recipe", recipe, Recipe)
    if hasattr(loaders, "fastcxr"):
        validate_input_spec(get_loaders_state(loaders).input_spec, recipe)
    else:
        validate_own_loaders(loaders, find_backbone(recipe.backbone, recipe.weights), recipe)
    return build_learner(loaders, recipe)


def validate_input_spec(input_spec: InputSpec, recipe: Recipe) -> None:
    """Raise RecipeError if the loaders give other pixels than the recipe's backbone and weights expect."""
    expected = make_input_spec(recipe)
    if input_spec != expected:
        given, wanted = _describe_input_spec(input_spec), _describe_input_spec(expected)
        problem = f"the loaders give images of {given}, but {recipe.backbone} of the recipe expects {wanted}"
        raise RecipeError(problem, "Make the loaders with this recipe: make_loaders(data, recipe)")


def _describe_input_spec(input_spec: InputSpec) -> str:
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (input_spec.mean, input_spec.std))
    channels = pluralize(len(input_spec.mean), "channel")
    return f"{input_spec.image_size} px, {channels}, mean ({mean}) and std ({std})"


def build_learner(loaders: DataLoaders, recipe: Recipe) -> Learner:
    """Return the learner of make_learner without a check of the loaders, whose pixels a stored run can determine."""
    backbone = find_backbone(recipe.backbone, recipe.weights)
    task = find_task(loaders)
    options = resolve_task(recipe, task)
    weights_choice = describe_weights_choice(recipe.backbone, backbone, recipe.weights)
    if weights_choice:
        log.info(weights_choice)
    torch.manual_seed(recipe.seed)  # head initialization does not depend on earlier random numbers
    image_size = find_image_size(recipe)
    network = make_network(backbone, len(loaders.vocab), recipe.weights, image_size, head_config(recipe))
    # otherwise the first epochs only learn that findings are rare (Lin 2017, section 4.1)
    if task == MULTI_LABEL and len(loaders.train_ds):
        set_output_bias(network, compute_prior_log_odds(collect_targets(loaders)))
    if loaders.device.type == "cpu":
        keep_malloc_arenas()
    # lr_find saves the weights temporarily; a private folder keeps the file out of the user's folders
    temporary_dir = tempfile.TemporaryDirectory(prefix="fastcxr-")
    learner = CxrLearner(
        loaders,
        network.to(loaders.device),
        loss_func=make_task_loss(options, loaders),
        opt_func=find_optimizer(recipe.optimizer),  # pyright: ignore[reportArgumentType]  annotated as an Optimizer
        splitter=layer_groups,
        metrics=make_finding_metrics() if task == MULTI_LABEL else make_metrics(len(loaders.vocab)),
        cbs=[FrozenModulesEval(), ChannelsLast(), MixedPrecision(), MoveLossesToCpu(), FitHistory()],
        lr=recipe.learning_rate if recipe.learning_rate != "find" else 1e-3,
        wd=find_weight_decay(recipe),
        train_bn=False,
        path=temporary_dir.name,
    )
    learner.recorder.loss, learner.recorder.smooth_loss = WeightedAvgLoss(), SmoothLoss()
    learner.loss_func.to(loaders.device)  # class weights; the loss may be used before fastai's first fit
    backbone_record = describe_backbone(backbone, recipe.weights, network)
    learner.fastcxr = LearnerState(backbone=backbone_record, temporary_dir=temporary_dir, recipe=recipe)
    return learner.set_precision(resolve_precision(recipe.precision, loaders.device))


def find_task(loaders: DataLoaders) -> str:
    """Return whether the loaders have one class per image (single_label) or findings (multi_label)."""
    if hasattr(loaders, "fastcxr"):
        return get_loaders_state(loaders).task
    return MULTI_LABEL if is_finding_target(loaders.one_batch()[1]) else SINGLE_LABEL


def make_task_loss(recipe: Recipe, loaders: DataLoaders) -> BaseLoss:
    """Return the loss of a recipe whose task is resolved."""
    needs_counts = recipe.class_weights == "balanced"
    if find_task(loaders) == SINGLE_LABEL:
        return make_loss(recipe, count_labels(loaders) if needs_counts else None)
    return make_finding_loss(recipe, collect_targets(loaders) if needs_counts else None)


def compute_prior_log_odds(targets: np.ndarray) -> torch.Tensor:
    """Return the log odds of each finding among its known labels, shape (k,); one image is added to both counts."""
    positives, negatives = (targets == 1).sum(axis=0) + 1, (targets == 0).sum(axis=0) + 1
    return torch.tensor(np.log(positives / negatives), dtype=torch.float32)


def collect_targets(loaders: DataLoaders) -> np.ndarray:
    """Return the targets of the training images, shape (n, k)."""
    if hasattr(loaders, "fastcxr"):
        return loaders.train.targets[0].numpy()
    return torch.stack([torch.as_tensor(targets) for targets in loaders.train_ds.tls[1]]).float().numpy()


def count_labels(loaders: DataLoaders) -> np.ndarray:
    """Return the number of training images of each class, in the order of `loaders.vocab`; shape (k,)."""
    items = loaders.train.items
    if isinstance(items, pd.DataFrame) and "label" in items:
        return items["label"].value_counts().reindex(list(loaders.vocab), fill_value=0).to_numpy()
    class_numbers = [int(label) for label in loaders.train_ds.tls[1]]
    return np.bincount(class_numbers, minlength=len(loaders.vocab))


def make_finding_metrics() -> list:
    """Return the metric of each epoch for findings: the macro AUROC of those with both classes."""
    return [AccumMetric(compute_finding_auroc_from_logits, name="auroc", flatten=False)]


def make_metrics(n_classes: int) -> list:
    """Return the metrics of each epoch: accuracy, macro AUROC and, for three or more classes, top-2 accuracy."""
    auroc = AccumMetric(compute_auroc_from_logits, name="auroc", flatten=False)
    return [accuracy, auroc, *([top2_accuracy] if n_classes > 2 else [])]


def top2_accuracy(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the share of images whose class is among the two with the highest logits."""
    return top_k_accuracy(logits, truth, k=2)


def compute_auroc_from_logits(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the macro AUROC of the softmax probabilities."""
    return compute_macro_auroc(logits.float().softmax(dim=1), truth)


def compute_macro_auroc(probability: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the mean one-vs-rest AUROC over the classes with both positive and negative images in `truth`.

    NaN if there is no such class or a probability is not finite. `probability`: shape (n, k); `truth`: shape (n,).
    """
    scores, labels = probability.cpu().numpy(), truth.cpu().numpy()
    scored_classes = [k for k in range(scores.shape[1]) if 0 < (labels == k).sum() < len(labels)]
    if not np.isfinite(scores).all() or not scored_classes:
        return float("nan")
    return float(np.mean([roc_auc_score(labels == k, scores[:, k]) for k in scored_classes]))
