"""Compute devices: selection, settings, free memory, copies to them, and a clock that waits for their work."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from fastcxr.errors import RecipeError, TrainingError
from fastcxr.io.cpus import count_cpus

CUBLAS_VARIABLE, CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"  # torch expects it for deterministic products
NOT_DETERMINISTIC_TEXT = "does not have a deterministic implementation"  # in torch's error


def find_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" selects a GPU if there is one.

    Raise RecipeError if the device is not available.
    """
    if name == "auto":
        return _find_default_device()
    try:
        return torch.empty(1, device=name).device  # with the number of the GPU
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(f"device {name!r} is not available", "Pass `device='auto'` or `device='cpu'`") from error


def _find_default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps", 0) if torch.backends.mps.is_available() else torch.device("cpu")


def describe_gpu() -> str:
    """Return the name of the current GPU of CUDA, or `no GPU`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def list_visible_gpus() -> list[str]:
    """Return the name of each GPU of CUDA that this process sees, as a value of CUDA_VISIBLE_DEVICES."""
    given = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    n_gpus = torch.cuda.device_count()
    return given[:n_gpus] if len(given) >= n_gpus else [str(number) for number in range(n_gpus)]


def find_float64_device(device: torch.device) -> torch.device:
    """Return the device, or the CPU for an Apple GPU, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def read_clock(device: torch.device) -> float:
    """Return a time in seconds, read after the device has finished all work given to it; GPUs work asynchronously."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def read_free_memory(device: torch.device) -> int:
    """Return the bytes of GPU memory that torch can allocate; memory that it reserved and does not use is free."""
    n_unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + n_unused


def move_async(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on a device without waiting for the copy; later operations on the device wait for it."""
    return pin(tensor, device).to(device, non_blocking=True)


def pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor in the memory from which a GPU copies asynchronously: from other memory the host may wait."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


@contextmanager
def configure_device(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Set threads and algorithms of torch for this block, and restore the settings afterwards.

    torch uses at most as many threads as CPUs are available. With `deterministic`, results on a GPU are identical on
    the same machine and versions. On a CPU they always are.

    Raises TrainingError for an operation without a deterministic implementation.
    """
    with ExitStack() as settings:
        n_threads = torch.get_num_threads()
        if n_threads > count_cpus():
            torch.set_num_threads(count_cpus())
            settings.callback(torch.set_num_threads, n_threads)
        if device.type == "cuda":
            settings.enter_context(search_algorithms(enabled=False))
            settings.enter_context(_select_cuda_algorithms(deterministic=deterministic))
        yield


@contextmanager
def search_algorithms(*, enabled: bool) -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape of a batch in this block, or not.

    The search takes longer than a short training: see benchmarks/README.md. fastai enables it when it is imported.
    """
    previous = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = previous


@contextmanager
def _select_cuda_algorithms(*, deterministic: bool) -> Iterator[None]:
    was_deterministic = torch.backends.cudnn.deterministic
    mode, workspace = torch.get_deterministic_debug_mode(), os.environ.get(CUBLAS_VARIABLE)
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        torch.use_deterministic_algorithms(True)
        os.environ.setdefault(CUBLAS_VARIABLE, CUBLAS_WORKSPACE)
    try:
        yield
    except RuntimeError as error:
        if NOT_DETERMINISTIC_TEXT not in str(error):
            raise
        problem = f"{str(error).split()[0]}, an operation of the network, is not deterministic on a GPU"
        raise TrainingError(problem, "Pass `deterministic=False`, or choose another backbone") from error
    finally:
        torch.backends.cudnn.deterministic = was_deterministic
        torch.set_deterministic_debug_mode(mode)
        if workspace is None:
            os.environ.pop(CUBLAS_VARIABLE, None)
