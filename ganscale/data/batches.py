"""Endless batches, sharded by rank, whose whole state is one integer.

The real images form one endless sequence of *slots*: slot s belongs to epoch e = s // N and holds sample p[s mod N],
where p is the permutation keyed by (seed, e). A global batch is the next B slots; rank r of w takes slots
[r B/w, (r+1) B/w) of it, rounded down, so shares differ by one at most. So any number of workers sees the same global
batches, every sample comes exactly once an epoch, and the number of images consumed is all there is to save.

Legend: N samples in the set, B global batch, n local batch.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ganscale.data.dataset import Dataset
from ganscale.data.keyed import keyed_permutation
from ganscale.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One rank's share of a global batch: float32 ``[n, C, H, W]`` in [-1, 1] (or points) and int64 labels ``[n]``."""

    images: torch.Tensor
    labels: torch.Tensor


class EpochOrder:
    """Which sample each slot holds: ``order(slots) -> indices``, a function of (N, seed) alone."""

    def __init__(self, num_samples: int, seed: int) -> None:
        assert num_samples > 0
        self._num_samples, self._seed = num_samples, seed
        self._epochs: dict[int, np.ndarray] = {}

    def __call__(self, slots: np.ndarray) -> np.ndarray:
        """Return the int64 sample indices of int64 ``slots``, which may straddle epochs."""
        epochs, places = np.divmod(slots, self._num_samples)
        indices = np.empty(len(slots), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[places[here]]
        return indices

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            if len(self._epochs) == 2:  # a batch straddles two epochs at most once the set is larger than the batch
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = keyed_permutation(self._num_samples, self._seed, epoch, purpose="epoch")
        return self._epochs[epoch]


class ShardedBatches:
    """Iterate for ever over one rank's batches of ``dataset``; see the head of this file for the order.

    ``batch`` is global, ``start_images`` the global count of images already consumed (the state to resume from),
    ``prefetch`` how many batches a background thread keeps ready (0: none, everything in the caller's thread). What the
    thread raises is raised to the consumer. Close it, or use it in a ``with`` statement, to end the thread.
    Raises ``ConfigError`` where there is no image for every rank.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch: int,
        rank: int,
        world: int,
        seed: int,
        start_images: int = 0,
        prefetch: int = 2,
    ) -> None:
        if batch < world:
            remedy = f"use --set train.batch={world}"
            raise ConfigError("train.batch", f"hold an image for each of the {world} workers", batch, remedy)
        assert 0 <= rank < world
        assert min(start_images, prefetch) >= 0
        first, end = rank * batch // world, (rank + 1) * batch // world
        self.dataset, self.batch, self.local_batch = dataset, batch, end - first
        self._images, self._closed = start_images, False
        produce = _producer(dataset, first=first, count=self.local_batch, seed=seed)
        self._produce, self._ahead = produce, None
        if prefetch:
            self._ahead = _Ahead(produce, start_images=start_images, step=batch, depth=prefetch)
            weakref.finalize(self, self._ahead.close)  # also at interpreter exit, before torch is torn down

    @property
    def images(self) -> int:
        """Global images consumed so far: the whole state. Batches that lie ready but were not taken do not count."""
        return self._images

    def __iter__(self) -> ShardedBatches:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        batch = self._ahead.take() if self._ahead else self._produce(self._images)
        self._images += self.batch
        return batch

    def close(self) -> None:
        """End the background thread and wait for it; iteration is over. May be called twice."""
        self._closed = True
        if self._ahead:
            self._ahead.close()

    def __enter__(self) -> ShardedBatches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _producer(dataset: Dataset, *, first: int, count: int, seed: int) -> Callable[[int], Batch]:
    """Return the function images consumed -> this rank's next batch. It holds no reference to its ShardedBatches."""
    order = EpochOrder(len(dataset), seed)

    def produce(images: int) -> Batch:
        from ganscale.data.pixels import to_float

        slots = np.arange(images + first, images + first + count, dtype=np.int64)
        pixels, labels = dataset.read(order(slots))
        return Batch(images=to_float(pixels) if dataset.kind == "image" else pixels, labels=labels)

    return produce


class _Ahead:
    """A thread that keeps up to ``depth`` batches ready, in order."""

    def __init__(self, produce: Callable[[int], Batch], *, start_images: int, step: int, depth: int) -> None:
        self._ready: deque[Batch] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._depth = depth
        self._changed = threading.Condition()
        work = (produce, start_images, step)
        self._thread = threading.Thread(target=self._run, args=work, name="ganscale-prefetch", daemon=True)
        self._thread.start()

    def _run(self, produce: Callable[[int], Batch], images: int, step: int) -> None:
        try:
            while self._wait_for_room():
                batch = produce(images)
                images += step
                with self._changed:
                    self._ready.append(batch)
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, it belongs to the consumer, who would wait for ever otherwise
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
            return not self._closed

    def take(self) -> Batch:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error or self._closed)
            if self._ready:
                batch = self._ready.popleft()
                self._changed.notify_all()
                return batch
            if self._error:
                raise self._error
            raise StopIteration

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()
