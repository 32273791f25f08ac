"""Fusion of convolution, batch norm and activation for inference on a CPU; fuse_for_inference is the only entry point.

In inference the statistics of a batch norm are constants, so it can become part of the convolution before it. oneDNN
applies the activation after it in the same call. The outputs are the same within rounding, and two passes over every
map are saved. Other modules import fuse_for_inference and nothing else: private torch operators are used only here.
`benchmarks/cpu_fusion.py` measures what each part gains.
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
from fastcxr.models.precision import Fp32Conv2d, autocast, keep_stem_fp32
from fastcxr.models.preprocessing import InputSpec

log = logging.getLogger("fastcxr")
RELATIVE_TOLERANCE = 1e-3  # of the norm of the output; rounding in float32 is far below
TracedOutputs = dict[nn.Module | None, torch.Tensor]
SAMPLE_STRIDE = 13  # of the values of a map; divides no usual width
ONEDNN_ACTIVATIONS = {  # names and arguments in oneDNN
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


@dataclass(eq=False)
class ConvBnAct:
    """A convolution, the batch norm of its output, and the activation after the batch norm, if any.

    The activation is part of the batch norm in some networks (timm's BatchNormAct2d), a separate module in others.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    activation: nn.Module | None


class FusedConv:
    """Replacement of a convolution's forward: convolution, batch norm and, unless excluded, activation in one call.

    The bias stays in float32. Rounded to bfloat16 it has the same error at every position of a map, which pooling does
    not average out: the error of pooled maps of five single convolutions was 9 to 41 times larger.
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
    """Return whether oneDNN convolutions with an activation and a float32 bias are available on this device."""
    is_available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return device.type == "cpu" and is_available


@torch.inference_mode(False)  # inference tensors have no version counter, which the tracer needs
@torch.no_grad()
def fuse_for_inference(network: nn.Module, input_spec: InputSpec, precision: str) -> nn.Module:
    """Return a copy of a network in evaluation mode, with convolutions, batch norms and activations fused.

    The given network does not change. Nothing is fused if the outputs then differ by more than RELATIVE_TOLERANCE in
    float32, if this device cannot compute the fused convolutions, or in bfloat16 without oneDNN.

    Args:
        network: any network; the copy stays on its device.
        input_spec: the input for which the outputs are compared.
        precision: "fp32" or "bf16", in which the copy is to be used (see precision.autocast).
    """
    unfused = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)
    device = next(unfused.parameters()).device
    return fuse_blocks(unfused, input_spec, precision) if has_onednn(device) or precision == "fp32" else unfused


def fuse_blocks(network: nn.Module, input_spec: InputSpec, precision: str) -> nn.Module:
    """Return a fused copy of the network, or the network itself where fusion fails (see fuse_for_inference)."""
    fused = copy.deepcopy(network)
    device = next(fused.parameters()).device
    if precision == "bf16":
        keep_stem_fp32(fused, input_spec)
    image = make_noise_image(input_spec).to(device)
    blocks, expected = trace(fused, image)
    fused_convs = {block: fuse_block(block, device) for block in blocks}
    try:
        is_valid = is_close(trace(fused, image)[1], expected)
        for block, fused_conv in fused_convs.items():
            if precision == "bf16" and not isinstance(block.conv, Fp32Conv2d):
                fused_conv.weight = fused_conv.weight.bfloat16()
        with autocast(precision, device):
            fused(image)
    except RuntimeError as error:  # a processor or a version of torch without such a convolution
        log.debug("convolutions and batch norms are not fused: %s", error)
        is_valid = False
    return fused if is_valid else network


def fuse_block(block: ConvBnAct, device: torch.device) -> FusedConv:
    """Compute the whole block in its convolution, in place; the other modules stay, for their hooks and names."""
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
    """Return the input."""
    return maps


def is_close(outputs: TracedOutputs, expected: TracedOutputs) -> bool:
    """Return whether all outputs are equal within rounding."""
    return all(
        bool((outputs[module] - output).norm() <= RELATIVE_TOLERANCE * output.norm())
        for module, output in expected.items()
    )


def make_noise_image(input_spec: InputSpec) -> torch.Tensor:
    """Return a fixed random input, shape (1, channels, size, size), without use of the global random state."""
    shape = (1, len(input_spec.mean), input_spec.image_size, input_spec.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class GraphTracer:
    """Hooks of one pass through a network that find its blocks and keep samples of their outputs."""

    def __init__(self):
        self.producers: dict[int, tuple[weakref.ref[torch.Tensor], int, nn.Conv2d | ConvBnAct]] = {}
        self.blocks: list[ConvBnAct] = []
        self.outputs: TracedOutputs = {}
        self.n_calls: Counter[nn.Module] = Counter()
        self.input_producers: dict[nn.Module, nn.Conv2d | ConvBnAct | None] = {}

    def before_module(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Keep which module produced the input, before this module changes it in place."""
        self.n_calls[module] += 1
        self.input_producers[module] = self.find_producer(inputs[0])

    def before_head(self, layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Keep the input of a layer of the head, because the output of a head of zeros is always zero."""
        self.outputs[layer] = inputs[0].clone()

    def after_module(self, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """Keep a sample of the output, and the block that the module belongs to."""
        producer = self.input_producers[module]
        if isinstance(module, nn.Conv2d):
            self.record_producer(output, module)
        elif isinstance(module, nn.BatchNorm2d):
            self.outputs[module] = subsample(output)
            if is_fusable(producer, module):
                self.blocks.append(ConvBnAct(producer, module, getattr(module, "act", None)))
                self.record_producer(output, self.blocks[-1])
        elif isinstance(producer, ConvBnAct) and producer.activation is None:
            producer.activation = module
            self.outputs[producer.norm] = subsample(output)

    def record_producer(self, output: torch.Tensor, producer: nn.Conv2d | ConvBnAct) -> None:
        """Keep the producer of an output while the tensor exists and is not changed in place (`x += y`)."""
        self.producers[id(output)] = (weakref.ref(output), output._version, producer)

    def find_producer(self, maps: torch.Tensor) -> nn.Conv2d | ConvBnAct | None:
        """Return the producer of a tensor, or None if it is unknown or the tensor was changed since."""
        reference, version, producer = self.producers.get(id(maps), (lambda: None, 0, None))
        return producer if reference() is maps and version == maps._version else None

    def list_blocks(self) -> list[ConvBnAct]:
        """Return the blocks whose modules are called once; an activation that is called more often is not fused."""
        for block in self.blocks:
            if block.activation and self.n_calls[block.activation] > 1:
                block.activation = None
        return [block for block in self.blocks if self.n_calls[block.conv] == self.n_calls[block.norm] == 1]


def subsample(output: torch.Tensor) -> torch.Tensor:
    """Return a copy of every SAMPLE_STRIDE-th value, so that the samples of a large network fit into memory."""
    return output.flatten()[::SAMPLE_STRIDE].clone()


def is_fusable(conv: nn.Module | ConvBnAct | None, norm: nn.BatchNorm2d) -> bool:
    """Return whether a batch norm with running statistics follows a plain convolution with zero padding."""
    return (
        type(conv) in (nn.Conv2d, Fp32Conv2d)
        and conv.padding_mode == "zeros"
        and isinstance(conv.padding, tuple)
        and norm.running_mean is not None
    )


@torch.no_grad()
def trace(network: nn.Module, image: torch.Tensor) -> tuple[list[ConvBnAct], TracedOutputs]:
    """Return the blocks of a network and, by module, samples of their outputs.

    The outputs also hold samples of other batch norms, inputs of the head's layers, and the network's output (None).
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
