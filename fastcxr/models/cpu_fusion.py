"""A network that only looks, not learns, can be quicker about it: see quicken.

The statistics of a batch norm are constants then, so that it can become part of the convolution before it, and with
oneDNN the activation after it too: what comes out is the same within rounding, and two passes over every map are saved.
"""

import copy
import logging
import weakref
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import conv2d
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastcxr.models.heads import find_head
from fastcxr.models.precision import Fp32Conv2d, autocast
from fastcxr.models.preprocessing import InputSpec

log = logging.getLogger("fastcxr")
RELATIVE_TOLERANCE = 1e-3  # of the norm of what comes out; rounding in float32 is far below
TracedOutputs = dict[nn.Module | None, torch.Tensor]
SAMPLE_STRIDE = 13  # of the values of a map; a divisor of no usual width
ONEDNN_ACTIVATIONS = {  # as oneDNN calls them, with their numbers
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}
MAX_STEM_COST_SHARE = 0.1  # of all multiplications: three convolutions of MobileNetV2 and EfficientNet
MAX_STEM_MULTIPLICATIONS = (
    32  # multiplications for one value; larger ones, as a ResNet begins with, gain much from bfloat16
)


@dataclass(eq=False)
class ConvBnAct:
    """A convolution, the batch norm that takes up its answer, and the activation that takes up that one's, if any.

    The activation is part of the batch norm in some networks (timm's BatchNormAct2d), a module of its own in others.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    n_positions: int  # of the map that the convolution makes
    activation: nn.Module | None

    @property
    def n_multiplications(self) -> int:
        """Multiplications of the convolution."""
        return self.conv.weight.numel() * self.n_positions


class FusedConv:
    """What stands in place of a convolution's own forward: its chain in one pass, without the activation if `bare`.

    The bias stays in float32. Rounded to bfloat16 it is wrong alike in every place of a map, which no pooling evens
    out: pooled maps of five single convolutions came out 9 to 41 times less exact.
    """

    def __init__(self, block: ConvBnAct, without_activation: bool):
        conv, norm = block.conv, block.norm
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        self.weight, self.bias = weight.detach(), bias.detach()
        self.conv_options = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.activation = ("none", []) if without_activation else ONEDNN_ACTIVATIONS[type(block.activation)]

    def __call__(self, maps: torch.Tensor) -> torch.Tensor:
        maps, (padding, stride, dilation, groups) = maps.to(self.weight.dtype), self.conv_options
        if not has_onednn(maps.device):
            return conv2d(maps, self.weight, self.bias, stride, padding, dilation, groups)
        options = (padding, stride, dilation, groups, *self.activation, "")
        return torch.ops.mkldnn._convolution_pointwise(maps, self.weight, self.bias, *options)


def has_onednn(device: torch.device) -> bool:
    """Whether there are convolutions here that take an activation along, and a float32 bias beside bfloat16."""
    is_available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return device.type == "cpu" and is_available


@torch.inference_mode(False)  # whoever is in it: its tensors do not tell what was written into them
@torch.no_grad()
def fuse_for_inference(network: nn.Module, input_spec: InputSpec, precision: str) -> nn.Module:
    """A copy of a network in the mode of use, quicker than the network itself, which stays as it is."""
    fused = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)
    device = next(fused.parameters()).device
    if device.type == "cpu" and precision == "bf16":
        disable_inplace(fused, input_spec)
    return fuse_blocks(fused, input_spec, precision) if has_onednn(device) or precision == "fp32" else fused


def fuse_blocks(network: nn.Module, input_spec: InputSpec, precision: str) -> nn.Module:
    """The network with every chain in one pass; as it is where that cannot be, or is not the same in float32."""
    fused = copy.deepcopy(network)
    device = next(fused.parameters()).device
    image = make_noise_image(input_spec).to(device)
    blocks, expected = trace(fused, image)
    stem = find_stem(blocks)
    fused_convs = {block: fuse_block(block, device) for block in blocks}
    try:
        is_valid = is_close(trace(fused, image)[1], expected)
        for block, fused_conv in fused_convs.items():
            if precision == "bf16" and block not in stem:
                fused_conv.weight = fused_conv.weight.bfloat16()
        with torch.no_grad(), autocast(precision, device):
            fused(image)
    except RuntimeError as error:  # a processor, or a torch, that lacks such a convolution
        log.debug("batch norm stays: %s", error)
        is_valid = False
    return fused if is_valid else network


def fuse_block(block: ConvBnAct, device: torch.device) -> FusedConv:
    """Let the convolution do what its chain did; the other modules stay, for hooks and names that mean their place."""
    inner_activation, is_activation_fused = (
        getattr(block.norm, "act", None),
        has_onednn(device) and type(block.activation) in ONEDNN_ACTIVATIONS,
    )
    fused_conv = FusedConv(block, without_activation=not is_activation_fused)
    block.conv.forward = fused_conv
    block.norm.forward = inner_activation.__call__ if inner_activation and not is_activation_fused else identity
    if is_activation_fused and not inner_activation:
        block.activation.forward = identity
    return fused_conv


def identity(maps: torch.Tensor) -> torch.Tensor:
    """What came in."""
    return maps


def disable_inplace(network: nn.Module, input_spec: InputSpec) -> None:
    """Let activations write into new memory: torch 2.15 takes a CPU twice as long for bfloat16 in place."""
    inplace_modules = [module for module in network.modules() if getattr(module, "inplace", False)]
    expected = trace(network, make_noise_image(input_spec))[1]
    for module in inplace_modules:
        module.inplace = False
    if not is_close(trace(network, make_noise_image(input_spec))[1], expected):
        log.debug("activations stay in place: this network counts on it")
        for module in inplace_modules:
            module.inplace = True


def is_close(outputs: TracedOutputs, expected: TracedOutputs) -> bool:
    """Whether all answers are equal within rounding."""
    return all(
        bool((outputs[module] - output).norm() <= RELATIVE_TOLERANCE * output.norm())
        for module, output in expected.items()
    )


def make_noise_image(input_spec: InputSpec) -> torch.Tensor:
    """One picture of noise, always the same; whoever else draws is left alone."""
    shape = (1, len(input_spec.mean), input_spec.image_size, input_spec.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class GraphTracer:
    """Hooks of one pass through a network: which chains there are, and what comes out at their ends."""

    def __init__(self):
        self.producers: dict[int, tuple[weakref.ref[torch.Tensor], int, nn.Conv2d | ConvBnAct]] = {}
        self.blocks: list[ConvBnAct] = []
        self.outputs: TracedOutputs = {}
        self.n_calls: Counter[nn.Module] = Counter()
        self.input_producers: dict[nn.Module, nn.Conv2d | ConvBnAct | None] = {}

    def before_module(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Keep whose answer this module takes up, before it writes into it."""
        self.n_calls[module] += 1
        self.input_producers[module] = self.find_producer(inputs[0])

    def before_head(self, layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Keep what the head sees: as long as its weights are zero, its answers say nothing."""
        self.outputs[layer] = inputs[0].clone()

    def after_module(self, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """Keep what this module made, and with what it goes together."""
        producer = self.input_producers[module]
        if isinstance(module, nn.Conv2d):
            self.record_producer(output, module)
        elif isinstance(module, nn.BatchNorm2d):
            self.outputs[module] = subsample(output)
            if is_fusable(producer, module):
                self.blocks.append(ConvBnAct(producer, module, output[0, 0].numel(), getattr(module, "act", None)))
                self.record_producer(output, self.blocks[-1])
        elif isinstance(producer, ConvBnAct) and producer.activation is None:
            producer.activation = module
            self.outputs[producer.norm] = subsample(output)

    def record_producer(self, output: torch.Tensor, producer: nn.Conv2d | ConvBnAct) -> None:
        """Keep who made this, for as long as it is there and nothing is written into it (`x += y`)."""
        self.producers[id(output)] = (weakref.ref(output), output._version, producer)

    def find_producer(self, maps: torch.Tensor) -> nn.Conv2d | ConvBnAct | None:
        """Who made this, as it is now."""
        reference, version, producer = self.producers.get(id(maps), (lambda: None, 0, None))
        return producer if reference() is maps and version == maps._version else None

    def list_blocks(self) -> list[ConvBnAct]:
        """The chains whose modules have one place in the network; an activation with several is left out of them."""
        for block in self.blocks:
            if block.activation and self.n_calls[block.activation] > 1:
                block.activation = None
        return [block for block in self.blocks if self.n_calls[block.conv] == self.n_calls[block.norm] == 1]


def subsample(output: torch.Tensor) -> torch.Tensor:
    """A copy, for what follows may work in place, of so few values that those of a large network fit into memory."""
    return output.flatten()[::SAMPLE_STRIDE].clone()


def is_fusable(conv: nn.Module | ConvBnAct | None, norm: nn.BatchNorm2d) -> bool:
    """Whether a batch norm of constant statistics takes up the answer of a convolution without a way of its own."""
    return (
        type(conv) in (nn.Conv2d, Fp32Conv2d)
        and conv.padding_mode == "zeros"
        and isinstance(conv.padding, tuple)
        and norm.running_mean is not None
    )


@torch.no_grad()
def trace(network: nn.Module, image: torch.Tensor) -> tuple[list[ConvBnAct], TracedOutputs]:
    """The chains of a network, and samples of what comes out at their ends.

    Beside them of other batch norms, and all that the layers of its head see and (None) the network answers.
    """
    tracer, traced_types = GraphTracer(), (nn.Conv2d, nn.BatchNorm2d, *ONEDNN_ACTIVATIONS)
    modules = [module for module in network.modules() if isinstance(module, traced_types)]
    hooks = [module.register_forward_pre_hook(tracer.before_module) for module in modules]
    hooks += [module.register_forward_hook(tracer.after_module) for module in modules]
    head_layers = [module for module in find_head(network).modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    hooks += [layer.register_forward_pre_hook(tracer.before_head) for layer in head_layers]
    try:
        tracer.outputs[None] = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return tracer.list_blocks(), tracer.outputs


def keep_stem_fp32(network: nn.Module, input_spec: InputSpec) -> None:
    """Let the beginning of a network compute in float32, in place."""
    was_training = network.training
    blocks, _ = trace(network.eval(), make_noise_image(input_spec).to(next(network.parameters()).device))
    network.train(was_training)
    for block in find_stem(blocks):
        block.conv.__class__ = Fp32Conv2d


def find_stem(blocks: list[ConvBnAct]) -> list[ConvBnAct]:
    """The first chains, as long as they are small and take no more than a tenth of all multiplications."""
    remaining, stem = MAX_STEM_COST_SHARE * sum(block.n_multiplications for block in blocks), []
    for block in blocks:
        remaining -= block.n_multiplications
        if remaining < 0 or block.conv.weight[0].numel() > MAX_STEM_MULTIPLICATIONS:
            break
        stem.append(block)
    return stem
