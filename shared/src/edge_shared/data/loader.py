"""Batches of images from uint8 arrays, turned into normalised floats one batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

Batch = tuple[torch.Tensor, torch.Tensor]


class ImageDataset:
    """Images kept as uint8; a whole batch is fetched and normalised at once."""

    def __init__(self, images_NHWC: NDArray[np.uint8], labels_N: NDArray[np.int64], mean: Sequence[float], std: Sequence[float]) -> None:
        self.images = torch.tensor(np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)))
        self.labels = torch.tensor(labels_N)
        self.mean = torch.tensor(mean, dtype=torch.float32).mul_(255).reshape(1, -1, 1, 1)
        self.scale = torch.tensor(std, dtype=torch.float32).mul_(255).reciprocal_().reshape(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Batch:
        x_NCHW, y_N = self.__getitems__([row])
        return x_NCHW[0], y_N[0]

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        index = torch.as_tensor(rows)
        return (self.images[index].float() - self.mean) * self.scale, self.labels[index]


def image_loader(
    images_NHWC: NDArray[np.uint8],
    labels_N: NDArray[np.int64],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int = 128,
    shuffle: bool = False,
    seed: int = 0,
) -> DataLoader[Batch]:
    """A `DataLoader` over uint8 images; mean and std are per channel, in [0, 1]."""
    dataset = ImageDataset(images_NHWC, labels_N, mean, std)
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, generator=generator, collate_fn=_whole)  # type: ignore[arg-type]


def _whole(batch: Batch) -> Batch:
    return batch
