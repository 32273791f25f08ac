"""Stored squares become batches: read and put together whole batches at a time, on the device where they are wanted.

fastai asks a dataset for one item after the other; a picture that is a square of bytes already needs none of that.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from fastai.data.core import TfmdDL
from fastai.torch_core import TensorCategory, TensorImageBW

from fastcxr.data.store import Pictures

SHARE_OF_DEVICE = 0.3  # of a GPU's free memory, that a cohort may take


class PictureLoader(TfmdDL):
    """A loader that reads the squares of whole batches, and that may draw rows more than once.

    `pictures`: where the files of the dataset are found; a dataset of other files is read one by one.
    `weights`: one a row, how likely each draw, with replacement, takes it. `rows`: the positions that one epoch shows,
    before shuffling. The draws come from the loader's own generator in the main process, whatever the workers do.
    """

    def __init__(
        self, dataset: Any = None, bs: int = 64, pictures: Pictures | None = None, weights=None, rows=None, **options
    ):
        self.pictures, self.weights, self.rows = pictures, weights, rows
        self.skipped, self.order = 0, []
        self.places = find_places(dataset, pictures)
        super().__init__(dataset, bs=bs, **(options | ({} if rows is None else {"n": len(rows)})))
        self.resident = None if self.places is None or options.get("num_workers") else keep_on_device(self)

    def new(self, dataset: Any = None, cls: type | None = None, **options) -> TfmdDL:
        """The same loader for another dataset; each row comes once."""
        return super().new(dataset, cls, **({"pictures": self.pictures} | options))

    def skip(self, batches: int) -> None:
        """Leave out the first batches of the epoch that comes; whatever draws, draws as after them."""
        self.skipped = batches
        # torch draws a seed for the workers at the beginning of an epoch: that draw lies behind us
        self.fake_l.generator = torch.Generator() if batches else None

    def positions_of(self, number: int) -> list[int]:
        """Where the images of a batch stand in the dataset; `number` counts what the epoch under way shows, from 0."""
        return self.order[number * self.bs : (number + 1) * self.bs]

    def get_idxs(self) -> list[int]:
        """Positions in the dataset, in the order of this epoch."""
        self.order = self.draw_order()[self.skipped * self.bs :]
        return self.order

    def draw_order(self) -> list[int]:
        """Positions of a whole epoch."""
        if self.weights is not None:
            return self.rng.choices(range(self.n), weights=self.weights, k=self.n)
        positions = list(super().get_idxs())
        return positions if self.rows is None else [self.rows[i] for i in positions]

    def create_batches(self, samps: Sequence[int]) -> Iterator[tuple]:
        """Batches of gray bytes, shape (n, 1, size, size), and class numbers."""
        if self.places is None:
            yield from super().create_batches(samps)
            return
        for positions in self.chunkify(samps):
            yield self.read(list(positions))

    def read(self, positions: list[int]) -> tuple:
        """The batch of these positions in the dataset."""
        if self.resident is not None:
            squares = self.resident[torch.tensor(positions, device=self.resident.device)]
        else:
            squares = torch.from_numpy(self.pictures.read(self.places[positions]))
        labels = [torch.stack([torch.as_tensor(part[i]) for i in positions]) for part in self.dataset.tls[1:]]
        return TensorImageBW(squares[:, None]), *(TensorCategory(label) for label in labels)


def find_places(dataset: Any, pictures: Pictures | None) -> np.ndarray | None:
    """Rows of `pictures` that hold the images of the dataset; None where it has other ones."""
    items = getattr(dataset, "items", None)
    if pictures is None or not hasattr(items, "columns") or "file" not in items:
        return None
    row_of = {file: row for row, file in enumerate(pictures.files)}
    places = [row_of.get(file) for file in items["file"]]
    return None if None in places else np.array(places, np.int64)


def keep_on_device(loader: PictureLoader) -> torch.Tensor | None:
    """All squares of a loader on its GPU, as bytes, where they fit; batches then never touch the host."""
    device = torch.device(loader.device or "cpu")
    if (
        device.type != "cuda"
        or len(loader.places) * loader.pictures.size**2 > SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]
    ):
        return None
    return torch.from_numpy(loader.pictures.read(loader.places)).to(device)
