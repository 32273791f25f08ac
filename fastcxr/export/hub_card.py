"""README.md of a published model: the metadata that the hub reads, critical notices, use, thresholds and model card."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.errors import RecipeError
from fastcxr.export.timm_folder import BACKBONE
from fastcxr.io.formatting import format_score
from fastcxr.io.html import replace_unprintable
from fastcxr.io.hub_names import is_hub_name, parse_hub_name
from fastcxr.metrics.predictions import OUT_OF_FOLD
from fastcxr.models.encoders import ENCODERS
from fastcxr.report.notices import Notice

LIBRARY, TASK = "fastcxr", "image-classification"
TAGS = ("chest-x-ray", "radiology", "medical-imaging")
SPLITS = {"test": "test", OUT_OF_FOLD: "test", "valid": "validation"}  # of metrics.json, by preference
METRICS = {  # dotted name in metrics.json: type for the hub, name
    "auroc.macro": ("roc_auc", "AUROC, macro"),
    "average_precision.macro": ("average_precision", "Average precision, macro"),
    "accuracy": ("accuracy", "Accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy"),
}
LICENCE_PATTERN = re.compile(r"[a-z0-9][a-z0-9.+-]{0,62}")
PROJECT_PAGE = "https://github.com/fastcxr/fastcxr#readme"
USE = """\
## Use

For research, not for diagnosis.

[Install fastcxr]({page}), then run

```bash
fastcxr predict hf://{repo} IMAGES
```

```python
from fastcxr import load_model, predict

predictions = predict(load_model("hf://{repo}"), ["image.png"])
```
"""
TIMM_USE = """
`timm.create_model("hf-hub:{repo}", pretrained=True)` loads
{content}, without fastcxr.
Its input is 8-bit gray{channels}, padded to a square of {size} px and normalized as stated below.{head}
"""
TIMM_HEAD = " The head is no network of timm and is in head.safetensors."


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What README.md states beside the model card of the run.

    Attributes:
        repo: owner/name on the hub.
        licence: identifier of the hub, such as apache-2.0; None: not stated.
        data_name: name of the dataset.
        metrics: content of metrics.json.
        model_json: content of model.json; of a run with folds that of the first fold.
        thresholds: calibration of the model; of a run with folds the means of all folds.
        notices: critical notices of the run.
        timm_content: what timm loads, "classifier", "backbone", or None.
    """

    repo: str
    licence: str | None
    data_name: str
    metrics: Mapping[str, Any]
    model_json: Mapping[str, Any]
    thresholds: Mapping[str, Any]
    notices: Sequence[Notice]
    timm_content: str | None


def normalize_licence(licence: str | None) -> str | None:
    """Return the identifier of a licence in lower case. Raises RecipeError for a text that is none."""
    if licence is None:
        return None
    if not LICENCE_PATTERN.fullmatch(licence.lower()):
        fix = "Pass an identifier of the hub, such as apache-2.0, mit, cc-by-4.0, cc-by-nc-4.0 or other"
        raise RecipeError(f"{licence!r} is no identifier of a licence", fix)
    return licence.lower()


def make_hub_card(facts: CardFacts, model_card: str) -> str:
    """Return the content of README.md. `model_card`: Markdown of the run, whose first line is its title."""
    title, _, text = model_card.partition("\n")
    parts = [f"---\n{make_metadata(facts)}---\n", *map(_format_notice, facts.notices), f"{title}\n"]
    use = USE.format(repo=facts.repo, page=PROJECT_PAGE) + _describe_timm(facts)
    parts += [use, *_format_thresholds(facts), text.lstrip("\n")]
    return "\n".join(parts)


def make_metadata(facts: CardFacts) -> str:
    """Return the metadata of README.md as YAML."""
    from huggingface_hub import ModelCardData

    kinds = ["multi-label" if _is_multi_label(facts) else "multi-class", *(["timm"] if facts.timm_content else [])]
    metadata = ModelCardData(
        license=facts.licence,
        library_name=LIBRARY,
        pipeline_tag=TASK,
        tags=[*TAGS, *kinds],
        base_model=find_base_model(facts.model_json["backbone"]),
        model_name=facts.repo.partition("/")[2],
        eval_results=make_eval_results(facts) or None,
    )
    return metadata.to_yaml() + "\n"


def make_eval_results(facts: CardFacts) -> list[Any]:
    """Return the metrics of the test split, or of all held-out folds, for the hub.

    Metadata has no place for a notice: with a critical one, the metrics are in the text and in metrics.json only.
    """
    from huggingface_hub import EvalResult

    split = next((name for name in SPLITS if name in facts.metrics), None)
    if split is None or facts.notices:
        return []
    name = facts.data_name or "unknown"
    results = []
    for key, (metric_type, metric_name) in METRICS.items():
        value: Any = facts.metrics[split]
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            results.append(
                EvalResult(
                    task_type=TASK, task_name="Image classification",
                    dataset_type=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown", dataset_name=name,
                    dataset_split=SPLITS[split], metric_type=metric_type, metric_name=metric_name,
                    metric_value=round(float(value), 4),
                )
            )  # fmt: skip
    return results


def find_base_model(backbone_json: Mapping[str, Any]) -> str | None:
    """Return the repository of the initial weights on the hub, or None: random weights, a file, or no repository."""
    library, weights = backbone_json["library"], str(backbone_json.get("weights") or "")
    if is_hub_name(weights):
        return parse_hub_name(weights).repo
    if library == "chest" and backbone_json["name"] in ENCODERS and weights != "random weights":
        return ENCODERS[backbone_json["name"]].repo or None
    if library == "timm" and backbone_json.get("tag") and weights.startswith(backbone_json["name"]):
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(weights, allow_unregistered=True)
        return (config.hf_hub_id or None) if config else None
    return None


def _is_multi_label(facts: CardFacts) -> bool:
    return facts.model_json.get("kind") == MULTI_LABEL


def _format_notice(notice: Notice) -> str:
    return f"> **CRITICAL: {_escape(notice.title.rstrip('.'))}.** {_escape(notice.text)}".rstrip() + "\n"


def _describe_timm(facts: CardFacts) -> str:
    if facts.timm_content is None:
        return ""
    is_backbone = facts.timm_content == BACKBONE
    content = "the network, whose outputs are logits"
    if is_backbone:
        content = "the backbone, whose outputs are pooled features"
    spec = facts.model_json["input_spec"]
    n_channels = len(spec["mean"])
    return TIMM_USE.format(
        repo=facts.repo,
        content=content,
        channels=f", the same in its {n_channels} channels" if n_channels > 1 else "",
        size=spec["image_size"],
        head=TIMM_HEAD if is_backbone else "",
    )


def _format_thresholds(facts: CardFacts) -> Iterable[str]:
    """Yield the section on thresholds, nothing for a model without any."""
    rows = facts.thresholds.get("thresholds") or {}
    if not rows:
        return
    unit = "Finding" if _is_multi_label(facts) else "Class"
    lines = ["## Thresholds", "", f"| {unit} | Threshold of the calibrated probability |", "|---|---|"]
    lines += [f"| {_escape(label)} | {format_score(row['threshold'])} |" for label, row in rows.items()]
    if (limit := facts.thresholds.get("uncertain_below")) is not None:
        lines += ["", f"A prediction is uncertain below a highest probability of {format_score(limit)}."]
    yield "\n".join([*lines, ""])


def _escape(text: str) -> str:
    return replace_unprintable(text).replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|").replace("\n", " ")
