"""Orders in which training samples are visited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from dynavit.errors import InputError


class ShuffledSampler(Sampler[int]):
    """A permutation that is a function of ``(seed, epoch)`` alone, the same on every process.

    Accelerate then hands each process its own batches of it.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's permutation."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = _generator(self.seed, self.epoch)
        yield from torch.randperm(self.size, generator=generator).tolist()


class PKSampler(Sampler[int]):
    """Batches of P identities with K images each (Hermans et al. 2017, In Defense of the Triplet Loss, section 2).

    Every run of ``P * K`` indices is one batch, the K images of an identity side by side: use it as
    ``DataLoader(batch_size=P * K, sampler=..., drop_last=True)``, on several processes through
    Accelerate, which hands each process whole batches. The order is a function of ``(seed, epoch)``
    alone, the same on every process.

    An identity with n images is visited ``max(1, n // K)`` times an epoch, with other images each time,
    less often only where whole batches of *distinct* identities cannot be made otherwise. With
    ``batches_per_epoch`` all identities are visited equally often instead, give or take one. If n < K,
    a visit shows all images, and then some of them again.

    Args:
        labels: identity of every image.
        identities_per_batch: P.
        images_per_identity: K.
        seed: of the order.
        batches_per_epoch: of all processes together; as many as the images allow if None.
        num_processes: divides the number of batches, so that every process gets equally many.

    Attributes:
        num_batches: in an epoch, of all processes together.

    Raises:
        InputError: P or K below 2, with which a triplet has no negative or no positive; more identities
            a batch than there are; not one batch for each process; or a ``batches_per_epoch`` that
            ``num_processes`` does not divide.

    Example:
        >>> list(PKSampler([0, 0, 1, 1, 1, 2, 2], identities_per_batch=2, images_per_identity=2))
        [3, 4, 1, 0]
    """

    def __init__(
        self,
        labels: Sequence[int] | Tensor,
        identities_per_batch: int,
        images_per_identity: int,
        seed: int = 0,
        batches_per_epoch: int | None = None,
        num_processes: int = 1,
    ) -> None:
        for name, value, lack in (
            ("identities_per_batch", identities_per_batch, "negative"),
            ("images_per_identity", images_per_identity, "positive"),
        ):
            if value < 2:
                raise InputError(f"{name} must be at least 2, or a triplet has no {lack}; got {value}.")
        labels = torch.as_tensor(labels)
        counts = torch.unique(labels, return_counts=True)[1]
        if identities_per_batch > len(counts):
            raise InputError(
                f"identities_per_batch={identities_per_batch}, but there are only {len(counts)} training identities."
            )
        self.identities_per_batch = identities_per_batch
        self.images_per_identity = images_per_identity
        self.seed = seed
        self.epoch = 0
        self._images = torch.argsort(labels, stable=True).split(counts.tolist())
        visits = (counts // images_per_identity).clamp(min=1)
        if batches_per_epoch is None:
            self.num_batches = _most_batches(visits, identities_per_batch)
            self.num_batches -= self.num_batches % num_processes
            if not self.num_batches:
                raise InputError(
                    f"{len(labels)} images of {len(counts)} identities do not make one batch of "
                    f"{identities_per_batch} x {images_per_identity} for each of {num_processes} processes; lower "
                    f"identities_per_batch or images_per_identity, or set batches_per_epoch."
                )
        else:
            if batches_per_epoch < 1 or batches_per_epoch % num_processes:
                raise InputError(
                    f"batches_per_epoch={batches_per_epoch} must be a multiple of the {num_processes} processes, "
                    f"which share them."
                )
            self.num_batches = batches_per_epoch
            visits = torch.full_like(visits, -(-batches_per_epoch * identities_per_batch // len(visits)))
        self._visits = visits.clamp(max=self.num_batches)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's batches."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches * self.identities_per_batch * self.images_per_identity

    def __iter__(self) -> Iterator[int]:
        generator = _generator(self.seed, self.epoch)
        visits = self._whole_batches(generator)
        # Deal the visits out to the batches in turn. Those of one identity follow each other and are not
        # more than there are batches, so no batch gets an identity twice; and all get P.
        batches: list[list[list[int]]] = [[] for _ in range(self.num_batches)]
        turn = 0
        for identity in torch.randperm(len(visits), generator=generator).tolist():
            for chunk in self._chunks(self._images[identity], int(visits[identity]), generator):
                batches[turn % self.num_batches].append(chunk)
                turn += 1
        for number in torch.randperm(self.num_batches, generator=generator).tolist():
            for chunk in batches[number]:
                yield from chunk

    def _whole_batches(self, generator: torch.Generator) -> Tensor:
        """Return visits by identity without the surplus, taken from those visited most often."""
        visits = self._visits.clone()
        surplus = int(visits.sum()) - self.num_batches * self.identities_per_batch
        while surplus:
            most = torch.nonzero(visits == visits.max()).flatten()
            chosen = most[torch.randperm(len(most), generator=generator)[:surplus]]
            visits[chosen] -= 1
            surplus -= len(chosen)
        return visits

    def _chunks(self, images: Tensor, visits: int, generator: torch.Generator) -> Iterator[list[int]]:
        """Yield K images a visit: all in random order, then all again, but never one twice if K suffice."""
        k = self.images_per_identity
        waiting: list[int] = []
        for _ in range(visits):
            while len(waiting) < k:
                again = images[torch.randperm(len(images), generator=generator)].tolist()
                waiting += sorted(again, key=waiting.__contains__)  # those that wait already come last
            yield waiting[:k]
            waiting = waiting[k:]


def fitting_identities(labels: Sequence[int] | Tensor, wanted: int, images_per_identity: int, batches: int) -> int:
    """Return the largest P, at most ``wanted`` and at least 2, with which an epoch has so many batches.

    Args:
        labels: identity of every image.
        wanted: P where there are enough identities.
        images_per_identity: K.
        batches: of all processes together.

    Example:
        >>> fitting_identities([0, 0, 1, 1, 1, 2, 2], wanted=16, images_per_identity=2, batches=1)
        3
    """
    counts = torch.unique(torch.as_tensor(labels), return_counts=True)[1]
    visits = (counts // images_per_identity).clamp(min=1)
    largest = min(wanted, len(counts))
    return next((size for size in range(largest, 2, -1) if _most_batches(visits, size) >= batches), 2)


def _most_batches(visits: Tensor, size: int) -> int:
    """Return how many batches of ``size`` distinct identities there can be with so many visits of each.

    B batches can be made exactly if ``sum(min(visits, B)) >= B * size``; if B can, B - 1 can.
    """
    low, high = 0, int(visits.sum()) // size
    while low < high:
        middle = (low + high + 1) // 2
        if int(visits.clamp(max=middle).sum()) >= middle * size:
            low = middle
        else:
            high = middle - 1
    return low


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)
