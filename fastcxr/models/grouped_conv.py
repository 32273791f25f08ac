"""Gradients of convolutions with few channels a group, for which CPUs have no good bfloat16 code.

oneDNN is slow at two of them in bfloat16: the gradient of the images where a convolution is strided (up to fifty times
slower than in float32), and that of the weights where a kernel is larger than 3 x 3 or a group has several channels
(three to five times). With torch 2.15 on a Xeon with AMX that was a third of a backward pass of MobileNetV2 and half
of one of EfficientNet; `benchmarks/throughput.py` shows what is left.
"""

import torch
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

MIN_FAST_GROUP_CHANNELS = 8  # channels a group; from so many on there is good code for bfloat16


class GroupedConvBackward(TorchFunctionMode):
    """Inside, a 2d convolution with few channels a group answers in bfloat16 as ever and learns by a quicker road.

    What is kept out of bfloat16, with autocast switched off around it, is left alone.
    """

    def __torch_function__(self, function, types, arguments=(), options=None):
        """Every function of torch passes here."""
        needs_gradient = function is torch.conv2d and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        return (grouped_conv2d if needs_gradient else function)(*arguments, **(options or {}))


def grouped_conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # the names of torch.conv2d
    """torch.conv2d, with its gradients by a quicker road where groups have few channels."""
    if groups == 1 or weight.shape[1] >= MIN_FAST_GROUP_CHANNELS or isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _GroupedConv2d.apply(input, weight, bias, *map(_pair, (stride, padding, dilation)), groups)


class _GroupedConv2d(torch.autograd.Function):
    """Forward as autocast would have it, in bfloat16; backward from the same rounded numbers."""

    @staticmethod
    def forward(context, images, weight, bias, *conv_options):
        images, weight, bias = (tensor if tensor is None else tensor.bfloat16() for tensor in (images, weight, bias))
        context.save_for_backward(images, weight)
        context.conv_options, context.bias_sizes = conv_options, None if bias is None else list(bias.shape)
        return torch.conv2d(images, weight, bias, *conv_options)

    @staticmethod
    def backward(context, gradient):
        images, weight = context.saved_tensors
        (stride, padding, dilation, groups), needs_gradient = context.conv_options, context.needs_input_grad
        images_gradient = weight_gradient = bias_gradient = None
        if needs_gradient[0]:
            dilated = dilate_gradient(gradient, images, weight, context.conv_options)
            arguments = (None, (1, 1), padding, dilation, False, (0, 0), groups)
            images_gradient = torch.ops.aten.convolution_backward(
                dilated, images, weight, *arguments, (True, False, False)
            )[0]
        if needs_gradient[1] or needs_gradient[2]:
            dtype = torch.bfloat16 if weight.shape[1] == 1 and max(weight.shape[2:]) <= 3 else torch.float32
            arguments = (
                context.bias_sizes,
                stride,
                padding,
                dilation,
                False,
                (0, 0),
                groups,
                (False, *needs_gradient[1:3]),
            )
            _, weight_gradient, bias_gradient = torch.ops.aten.convolution_backward(
                *(tensor.to(dtype) for tensor in (gradient, images, weight)), *arguments
            )
        return images_gradient, weight_gradient, bias_gradient, None, None, None, None


def dilate_gradient(
    gradient: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, conv_options: tuple
) -> torch.Tensor:
    """The gradient as that of a convolution of stride 1, of whose answer a strided one keeps every so manyth place."""
    stride, padding, dilation, _ = conv_options
    if stride == (1, 1):
        return gradient
    output_size = [
        size + 2 * edge - step * (kernel - 1)
        for size, edge, step, kernel in zip(images.shape[2:], padding, dilation, weight.shape[2:], strict=True)
    ]
    dilated = gradient.new_zeros(*gradient.shape[:2], *output_size).to(memory_format=torch.channels_last)
    dilated[:, :, :: stride[0], :: stride[1]] = gradient
    return dilated
