"""Errors of a compute device are one line with a fix; other errors do not change."""

import pytest
import torch
from toy_datasets import check_message

from fastcxr.errors import DeviceError
from fastcxr.models.device_errors import explain_device_errors, find_device_error, is_memory_error

MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]
LOST_GPU_MESSAGES = {
    "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported": "unspecified launch",
    "CUDA error: uncorrectable ECC error encountered": "uncorrectable ECC error",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable": "busy or unavailable",
    "CUDA error: driver shutting down": "driver shutting down",
    "Exception occurred in `Recorder` when calling event `after_batch`:\n\tCUDA error: the launch timed out and was "
    "terminated": "timed out",
}


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=lambda error: f"{type(error).__name__}: {error}"[:40])
def test_a_failed_allocation_is_recognized(error):
    assert is_memory_error(error)
    assert "`device='cpu'`" in check_message(find_device_error(error))


@pytest.mark.parametrize("message", LOST_GPU_MESSAGES)
def test_a_lost_gpu_is_one_line_with_resume_as_the_fix(message):
    with pytest.raises(DeviceError) as caught, explain_device_errors():
        raise torch.AcceleratorError(message) if message.startswith("CUDA") else RuntimeError(message)
    text = check_message(caught.value)
    assert "the GPU was lost (" in text and LOST_GPU_MESSAGES[message] in text
    assert "`fastcxr resume`" in caught.value.fix


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("the launch timed out and was terminated"),
    ],
)
def test_an_error_of_the_program_does_not_change(error):
    assert not is_memory_error(error) and find_device_error(error) is None
    with pytest.raises(type(error)) as caught, explain_device_errors():
        raise error
    assert caught.value is error
