"""What the machine may do to a training, in words: no memory for a batch, a loader's process that is gone."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fastai.learner import Learner

from fastcxr.errors import TrainingError
from fastcxr.recipe import Recipe

log = logging.getLogger("fastcxr")
WORKER = "DataLoader worker"  # how torch speaks of a loader's process, killed or out of shared memory
NO_MEMORY = ("can't allocate memory", "not enough memory")  # how it speaks of the CPU's


def lost_worker(error: Exception) -> bool:
    """Whether a process that prepared batches is gone, and with it only the batches that it had in hand.

    torch tells of it at any moment, or the pipe does from which a batch was to be fetched.
    """
    return isinstance(error, ConnectionError | EOFError) or WORKER in str(error)


def take_fewer_workers(learner: Learner) -> None:
    """Half as many processes prepare batches from now on, down to none. The batches stay the same."""
    loaders = (learner.dls.train, learner.dls.valid)
    workers = loaders[0].fake_l.num_workers // 2
    for loader in loaders:
        loader.fake_l.num_workers = workers
    log.warning("a loader's process was killed, or had no shared memory: on from the last state with %d", workers)


@contextmanager
def explaining_memory(recipe: Recipe) -> Iterator[None]:
    """Where a batch does not fit into memory, say what would. Raises TrainingError for that."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory: {recipe.batch_size} images of {recipe.image_size} px at a time, {recipe.backbone}, "
            f"precision {recipe.precision}",
            f"Give --batch-size {max(1, recipe.batch_size // 2)}, a smaller --image-size, or --precision bf16",
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on the CPU or a GPU."""
    kinds = (MemoryError, torch.cuda.OutOfMemoryError)
    return isinstance(error, kinds) or any(words in str(error) for words in NO_MEMORY)
