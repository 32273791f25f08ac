"""Encoders that were trained on chest radiographs: one table of their weights, networks, pixels and licences.

A fact of the table is shown only if it was read (`read_on`, READ_DATE). The other values are used, and shown as
"see PAGE".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError

DEFAULT_IMAGE_SIZE = 224  # pixels, of networks other than the encoders
XRV_PREFIX = "xrv:"  # marks names of torchxrayvision weights
XRV_MEAN, XRV_STD = (0.5,), (1 / 2048,)  # scale gray values from 0..1 to -1024..1024
XRV_DENSENETS = ("all", "nih", "pc", "chex", "rsna", "mimic_nb", "mimic_ch")
# name of the weights: backbone and image size (pixels) of their training
XRV_WEIGHTS = {f"densenet121-res224-{data}": ("densenet121", 224) for data in XRV_DENSENETS}
XRV_WEIGHTS["resnet50-res512-all"] = ("resnet50", 512)
XRV_FILE_PREFIXES = {"all": "nih-pc-chex-mimic_ch-google-openi-kaggle", "rsna": "kaggle"}  # others: name of the data
XRV_DENSENET_FILE = "{}-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
XRV_RESNET_FILE = "pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt"
CHEST_PREFIX = "chest:"  # of a name that is an encoder
READ_DATE = "26 and 27 November 2026"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RAD_DINO_MEAN, RAD_DINO_STD = (0.5307,) * 3, (0.2583,) * 3
CHEST_MEAN, CHEST_STD = (0.5056,) * 3, (0.252,) * 3
Access = Literal["open", "gated", "page", "package"]
Features = Literal["class_token", "patch_mean", "both", "attention_pool", "pooled"]
RAYDINO_PAGE = "https://ai.meta.com/resources/models-and-libraries/raydino-downloads"
RAYDINO_README = "https://github.com/facebookresearch/dinov2"
MEDICAL_MAE_PAGE, XRV_PAGE = "https://github.com/lambert-x/medical_mae", "https://pypi.org/project/torchxrayvision"
EVA_X_PAGE, ARK_PAGE = "https://github.com/hustvl/EVA-X", "https://github.com/jlianglab/Ark"
CHEXFOUND_PAGE, CHEXNET_PAGE = "https://github.com/RPIDIAL/CheXFound", "https://github.com/arnoweng/CheXNet"
RAD_DINO_PAGE = "https://huggingface.co/microsoft/rad-dino"
BIOMEDCLIP_REPO = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
USER_PROGRAM = "a public program of other authors that uses these weights"
EIGHT_ENCODERS = "mean AUROC of 7 classes, adapters on frozen encoders, 8,842 radiographs"


@dataclass(frozen=True)
class Reported:
    """A figure that a study reports, and the study."""

    figure: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A pretrained encoder.

    Attributes:
        name: name for `fastcxr train NAME`.
        page: page of the weights.
        repo: repository on the Hugging Face hub, or None.
        file: name of the weights file, empty if it is not known.
        access: "open": fastcxr downloads the file from the hub; "gated": the hub asks each user to accept terms first;
            "page": the user downloads the file from `page`; "package": torchxrayvision downloads it.
        architecture: name of the network in timm.
        options: arguments of timm.create_model that differ from those of the architecture.
        has_swiglu: whether the blocks have gated linear units (SwiGLU) instead of an MLP.
        features: what the head receives: the class token, the mean of the patch tokens, both, the output of an
            attention pool, or the pooled map of a convolutional network.
        layout: names of the tensors in the file.
        image_size: side of the input [pixels] in pretraining.
        mean: mean of each channel, for gray values from 0 to 1.
        std: standard deviation of each channel.
        interpolation: filter of the resizing in pretraining. fastcxr resizes with an antialiased bilinear filter.
        licence: licence of the weights, empty if it was not read.
        citation: the study.
        read_on: where each fact was read: licence, access, image_size, normalization, interpolation. A page, or a
            description if it is not a page of the authors.
        reported: figures of studies.
    """

    name: str
    page: str
    repo: str | None = None
    file: str = ""
    access: Access = "page"
    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)
    has_swiglu: bool = False
    features: Features = "class_token"
    layout: str
    image_size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    licence: str = ""
    citation: str
    read_on: Mapping[str, str] = field(default_factory=dict)
    reported: tuple[Reported, ...] = ()

    @property
    def xrv_weights(self) -> str | None:
        """The weights as xrv:NAME, for an encoder of torchxrayvision."""
        return f"{XRV_PREFIX}{self.name}" if self.access == "package" else None

    @property
    def is_transformer(self) -> bool:
        """Whether the input of the network is a fixed grid of patches."""
        return self.features != "pooled" or self.architecture.startswith("swin")


def _make_eva_x(size: str, name: str, **options: Any) -> Encoder:
    reported = {"tiny": (".824", ".896"), "small": (".833", ".901"), "base": (".835", None)}[size]
    texts = ("mean AUROC on the official NIH test split, fine-tuned at 224 px", "CheXpert validation, fine-tuned")
    return Encoder(
        name=f"eva-x-{size}", page=EVA_X_PAGE, repo="MapleF/eva_x", access="open",
        file=f"eva_x_{size}_patch16_merged520k_mim.pt",
        architecture=name, options={"patch_size": 16, "ref_feat_shape": (14, 14)} | options,
        features="patch_mean", layout="EVA-02", mean=CHEST_MEAN, std=CHEST_STD,
        licence="MIT (badge of the README; the repository has no LICENSE file)",
        citation="EVA-X, npj Digital Medicine 2025",
        read_on=dict.fromkeys(("licence", "access", "image_size"), EVA_X_PAGE)
        | {"normalization": f"{EVA_X_PAGE} (custom_transforms.py; augment.py has that of ImageNet)"},
        reported=tuple(Reported(f"{figure}: {text}", EVA_X_PAGE) for figure, text in zip(reported, texts, strict=True)
                       if figure),
    )  # fmt: skip


def _make_rad_dino(name: str, citation: str, **facts: Any) -> Encoder:
    return Encoder(
        name=name, page=f"https://huggingface.co/microsoft/{name}", repo=f"microsoft/{name}", access="open",
        file="model.safetensors", architecture="vit_base_patch14_dinov2", layout="Hugging Face DINOv2", image_size=518,
        mean=RAD_DINO_MEAN, std=RAD_DINO_STD, citation=citation, **facts,
    )  # fmt: skip


def _make_medical_mae(size: str, architecture: str, figures: str | None, **options: Any) -> Encoder:
    is_transformer = size != "densenet121"
    return Encoder(
        name=f"medical-mae-{size}", page=MEDICAL_MAE_PAGE, architecture=architecture,
        options={"global_pool": "avg", "fc_norm": False} if is_transformer else {},
        features="patch_mean" if is_transformer else "pooled", layout="MAE" if is_transformer else "timm",
        mean=CHEST_MEAN, std=CHEST_STD, licence="Apache-2.0",
        citation="Medical MAE, arXiv:2210.12843",
        read_on={"licence": MEDICAL_MAE_PAGE},
        reported=(Reported(figures, MEDICAL_MAE_PAGE),) if figures else (),
    )  # fmt: skip


def _make_xrv(name: str) -> Encoder:
    architecture, size = XRV_WEIGHTS[name]
    data = name.rpartition("-")[2]
    densenet_file = XRV_DENSENET_FILE.format(XRV_FILE_PREFIXES.get(data, data))
    return Encoder(
        name=name, page=XRV_PAGE, file=densenet_file if architecture == "densenet121" else XRV_RESNET_FILE,
        access="package", architecture=architecture, options={"in_chans": 1}, features="pooled",
        layout="torchxrayvision", image_size=size, mean=XRV_MEAN, std=XRV_STD,
        licence="Apache-2.0 (code)", citation="torchxrayvision, arXiv:2111.00595",
        read_on=dict.fromkeys(("licence", "access", "image_size", "normalization"), XRV_PAGE),
    )  # fmt: skip


_ENCODERS = (
    _make_rad_dino(
        "rad-dino", "RAD-DINO, arXiv:2401.10815", licence="MIT (model card; MSRLA in revisions of 2024)",
        read_on={"licence": RAD_DINO_PAGE, "access": RAD_DINO_PAGE, "normalization": USER_PROGRAM,
                 "image_size": f"{RAD_DINO_PAGE} (37 x 37 patches of 14 px)"},
        reported=(Reported(f".907 to .911: {EIGHT_ENCODERS}", "arXiv:2505.10823"),),
    ),
    _make_rad_dino("rad-dino-maira-2", "RAD-DINO, arXiv:2401.10815; trained on more data"),
    _make_eva_x("tiny", "eva02_tiny_patch14_224"),
    _make_eva_x("small", "eva02_small_patch14_224"),
    _make_eva_x("base", "eva02_base_patch14_224"),
    Encoder(
        name="chexfound", page=CHEXFOUND_PAGE, file="teacher_checkpoint.pth",
        architecture="vit_large_patch14_reg4_dinov2",
        options={"patch_size": 16, "mlp_ratio": 5472 / 1024}, has_swiglu=True,
        features="both", layout="DINOv2", image_size=512, licence="none: the repository has no LICENSE file",
        citation="CheXFound, arXiv:2502.05142",
        read_on=dict.fromkeys(("licence", "image_size", "normalization"), CHEXFOUND_PAGE),
    ),
    Encoder(
        name="ark6", page=ARK_PAGE, file="Ark6_swinLarge768_ep50.pth.tar",
        architecture="swin_large_patch4_window12_384", features="pooled", layout="Swin of timm 0.5.4", image_size=768,
        licence="Arizona State University: non-commercial research, patent pending",
        citation="Ark, MICCAI 2023; Ark+, Nature 2025",
        read_on=dict.fromkeys(("licence", "access", "image_size"), ARK_PAGE),
        reported=(Reported("with RAD-DINO among the best of eight encoders in linear probing", "arXiv:2511.09742"),),
    ),
    _make_medical_mae("small", "vit_small_patch16_224", ".823 official NIH test split, .892 CheXpert: mean AUROC"),
    _make_medical_mae("base", "vit_base_patch16_224", ".830 official NIH test split, .893 CheXpert: mean AUROC"),
    _make_medical_mae("densenet121", "densenet121", None),
    Encoder(
        name="medsiglip", page="https://huggingface.co/google/medsiglip-448", repo="google/medsiglip-448",
        file="model.safetensors", access="gated", architecture="vit_so400m_patch14_siglip_384",
        options={"act_layer": "gelu_tanh"},  # as the network of Hugging Face
        features="attention_pool", layout="SigLIP", image_size=448, mean=(0.5,) * 3, std=(0.5,) * 3,
        licence="Health AI Developer Foundations terms", citation="MedSigLIP, Google, July 2025",
        read_on={
            "licence": "https://developers.google.com/health-ai-developer-foundations/medsiglip/model-card",
            "access": "https://huggingface.co/google/medsiglip-448",
            "image_size": "https://developers.google.com/health-ai-developer-foundations/medsiglip/model-card",
        },
        reported=(Reported(f".910: {EIGHT_ENCODERS} (MLP)", "arXiv:2505.10823"),),
    ),
    Encoder(
        name="biomedclip", page=f"https://huggingface.co/{BIOMEDCLIP_REPO}", repo=BIOMEDCLIP_REPO,
        file="open_clip_pytorch_model.bin", access="open", architecture="vit_base_patch16_224", layout="open_clip",
        mean=CLIP_MEAN, std=CLIP_STD,
        citation="BiomedCLIP, arXiv:2303.00915",
        read_on={"image_size": "the name of the repository"},
        reported=(Reported(f".828 to .830: {EIGHT_ENCODERS}", "arXiv:2505.10823"),),
    ),
    Encoder(
        name="chexzero", page="https://github.com/rajpurkarlab/CheXzero",
        architecture="vit_base_patch32_clip_quickgelu_224", layout="OpenAI CLIP",
        mean=(0.39799,) * 3, std=(0.32721,) * 3, licence="MIT (code)",
        citation="CheXzero, Nature Biomedical Engineering 2022",
        read_on={"licence": "https://github.com/rajpurkarlab/CheXzero"},
    ),
    Encoder(
        name="xray-dino", page=RAYDINO_PAGE, file="xray_dino_vitl16_pretrained-ad31c2b0.pth",
        architecture="vit_large_patch14_dinov2", options={"patch_size": 16}, features="both", layout="DINOv2",
        image_size=512, licence="FAIR Noncommercial Research", citation="XRay-DINO, facebookresearch/dinov2",
        read_on=dict.fromkeys(("licence", "access", "image_size"), RAYDINO_README)
        | {"normalization": USER_PROGRAM},
    ),
    Encoder(
        name="chexnet", page=CHEXNET_PAGE, file="model.pth.tar", architecture="densenet121",
        features="pooled", layout="CheXNet", citation="CheXNet, arXiv:1711.05225",
        read_on={"image_size": "https://arxiv.org/abs/1711.05225"},
    ),
    *map(_make_xrv, XRV_WEIGHTS),
)  # fmt: skip
ENCODERS: Mapping[str, Encoder] = MappingProxyType({encoder.name: encoder for encoder in _ENCODERS})


def find_image_size(recipe: Recipe) -> int:
    """Return the image size of a recipe in pixels; "auto" is that of chest weights, else 224.

    Raise RecipeError for a size that the weights of the encoder cannot have.
    """
    encoder = ENCODERS.get(recipe.backbone.removeprefix(CHEST_PREFIX))
    if recipe.image_size == "auto":
        if encoder is not None:
            return encoder.image_size
        return XRV_WEIGHTS.get(recipe.weights.removeprefix(XRV_PREFIX), ("", DEFAULT_IMAGE_SIZE))[1]
    if encoder is None:
        return recipe.image_size
    if recipe.weights != "none" and (reason := find_size_problem(encoder, recipe.image_size)):
        problem = f"the weights of {encoder.name} cannot be used at {recipe.image_size} px: {reason}"
        raise RecipeError(problem, f"Leave `image_size` out to use {encoder.image_size} px")
    return recipe.image_size


def find_size_problem(encoder: Encoder, image_size: int) -> str | None:
    """Return why the weights cannot be used at this image size, or None; position embeddings can be resampled."""
    if image_size == encoder.image_size or not encoder.is_transformer:
        return None
    if encoder.architecture.startswith("swin"):
        return f"its windows need {encoder.image_size} px"
    patch = find_patch_size(encoder)
    return (
        f"it needs a multiple of {patch} px, as {image_size // patch * patch or patch}" if image_size % patch else None
    )


def find_patch_size(encoder: Encoder) -> int:
    """Return the side of a patch of a vision transformer in pixels."""
    return encoder.options.get("patch_size") or int(encoder.architecture.partition("_patch")[2].partition("_")[0])
