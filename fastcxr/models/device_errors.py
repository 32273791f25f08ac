"""Classification of errors of a compute device: memory that is too small, or a GPU that was lost."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastcxr.errors import DeviceError

# in torch's allocation errors of CPU, CUDA and MPS, and in the status codes of cuBLAS and cuDNN
MEMORY_ERROR_TEXTS = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")
# texts of cudaGetErrorString for errors after which the process cannot use the GPU again. An illegal address or a
# failed assertion is an error of the program and not in the list
LOST_GPU_TEXTS = (
    "unspecified launch failure",
    "the launch timed out and was terminated",
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "hardware stack error",
    "busy or unavailable",
    "no CUDA-capable device is detected",
    "driver shutting down",
    "CUDA error: unknown error",
    "device lost",
    "GPU is lost",
)


def is_memory_error(error: BaseException) -> bool:
    """Return whether an allocation failed, on a CPU or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MEMORY_ERROR_TEXTS)


def find_device_error(error: BaseException) -> DeviceError | None:
    """Return the error for the user if memory is too small or the GPU was lost, None for other errors."""
    if is_memory_error(error):
        return DeviceError("out of memory", "End other programs that use this memory, or pass `device='cpu'`")
    text = next((text for text in LOST_GPU_TEXTS if text in str(error)), None)
    if text is None or not isinstance(error, RuntimeError):
        return None
    fix = "Start the command again; `fastcxr resume` continues a training from its last checkpoint"
    return DeviceError(f"the GPU was lost ({text}), and this process cannot use it again", fix)


@contextmanager
def explain_device_errors() -> Iterator[None]:
    """Raise DeviceError if memory is too small in this block, or the GPU was lost; other errors do not change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        device_error = find_device_error(error)
        if device_error is None:
            raise
        raise device_error from error
