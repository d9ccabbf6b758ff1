"""The sampler's laws: any number of workers sees the same images, each exactly once an epoch, from one integer on."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from ganscale.config import DataConfig
from ganscale.data import EpochOrder, ShardedBatches, open_dataset, to_float
from ganscale.data.dataset import Dataset
from ganscale.data.keyed import keyed_normal, keyed_permutation, keyed_uniform
from ganscale.errors import ConfigError, DataError
from ganscale.training.process_group import Group


class Numbers(Dataset):
    """A data set whose sample i is the number i; reading sample ``poison`` fails as a vanished file would."""

    def __init__(self, count: int, poison: int | None = None) -> None:
        super().__init__()
        self.name, self.split, self.kind, self.shape = "numbers", "train", "points", (1, 1, 1)
        self.class_names, self.labels = (), np.arange(count, dtype=np.int64)
        self.policy, self.fingerprint, self.num_files = "", "", 0
        self.poison = poison

    def read(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        if self.poison is not None and self.poison in indices:
            raise DataError("sample", "be readable", self.poison, "repair it")
        return torch.from_numpy(indices.astype(np.float32)).reshape(-1, 1, 1, 1), torch.from_numpy(indices)


def take(count: int, dataset: Dataset, **keys: int) -> list[int]:
    """The labels (here: indices) of the next ``count`` batches of one rank, end to end."""
    with ShardedBatches(dataset, **{"rank": 0, "world": 1, "seed": 0, **keys}) as batches:
        return [index for _ in range(count) for index in next(batches).labels.tolist()]


def prefetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ganscale-prefetch"]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
@pytest.mark.parametrize("start", [0, 7, 100])
def test_any_number_of_workers_sees_the_same_global_batches(world, start):
    alone = np.array(take(20, Numbers(50), batch=12, start_images=start)).reshape(20, 12)
    keys = {"batch": 12, "world": world, "start_images": start}
    shards = [np.array(take(20, Numbers(50), rank=rank, **keys)).reshape(20, -1) for rank in range(world)]
    assert np.array_equal(np.concatenate(shards, axis=1), alone)


@pytest.mark.parametrize(("samples", "batch"), [(50, 12), (5, 12), (1, 3), (64, 64)])
def test_every_epoch_holds_each_sample_exactly_once(samples, batch):
    seen = take(4 * samples, Numbers(samples), batch=batch)
    epochs = [seen[first : first + samples] for first in range(0, 4 * samples, samples)]
    assert all(sorted(epoch) == list(range(samples)) for epoch in epochs)
    assert samples < 50 or len({tuple(epoch) for epoch in epochs}) == 4, "every epoch has an order of its own"


@pytest.mark.parametrize("stop", [1, 3, 9])
def test_resuming_from_the_integer_equals_going_straight_on(stop):
    with ShardedBatches(Numbers(30), batch=8, rank=1, world=2, seed=5) as straight:
        for _ in range(stop):
            next(straight)
        state = straight.images
        expected = [next(straight).labels.tolist() for _ in range(10)]
    assert state == 8 * stop, "batches that lie ready but were not taken do not count"
    with ShardedBatches(Numbers(30), batch=8, rank=1, world=2, seed=5, start_images=state) as resumed:
        assert [next(resumed).labels.tolist() for _ in range(10)] == expected


def test_resuming_with_another_batch_goes_on_in_the_same_sequence():
    straight = take(10, Numbers(30), batch=12)
    assert take(15, Numbers(30), batch=6, start_images=30) == straight[30:]


def test_order_is_keyed_by_seed_and_prefetch_changes_nothing():
    orders = {seed: take(5, Numbers(40), batch=8, seed=seed) for seed in (0, 1, 2**62)}
    assert len({tuple(order) for order in orders.values()}) == 3
    for prefetch in (0, 1, 7):
        assert take(5, Numbers(40), batch=8, prefetch=prefetch) == orders[0]


def test_order_stays_the_same_between_releases():
    # Written down from the first release: a change here would make every saved run resume on other images.
    assert EpochOrder(8, 0)(np.arange(16)).tolist() == [2, 1, 7, 0, 4, 3, 5, 6, 0, 2, 4, 7, 3, 5, 1, 6]


def test_permutations_are_uniform():
    # 6,000 keyed permutations of 4: each of the 24 orders is expected 250 times; chi-square with 23 degrees of freedom
    # stays below 49.7 in 99.9 % of the seeds, and this one is fixed.
    draws = [tuple(keyed_permutation(4, seed, purpose="test")) for seed in range(6000)]
    counts = np.unique(draws, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 250) ** 2 / 250).sum() < 49.7


def test_keyed_normals_are_normal_and_uniforms_open():
    from scipy.stats import kstest

    normal, uniform = (draw(200_001, 7, purpose="test") for draw in (keyed_normal, keyed_uniform))
    # Kolmogorov's distance of 200,001 true draws exceeds 1.95 / sqrt(n) once in a thousand seeds; this one is fixed.
    bound = 1.95 / np.sqrt(200_001)
    assert kstest(normal, "norm").statistic < bound
    assert kstest(uniform, "uniform").statistic < bound
    assert 0 < uniform.min() < uniform.max() < 1


def test_batches_are_exact_floats_of_the_images():
    dataset = open_dataset(DataConfig())
    with ShardedBatches(dataset, batch=32, rank=1, world=2, seed=4) as batches:
        batch = next(batches)
    indices = EpochOrder(len(dataset), 4)(np.arange(16, 32))
    pixels, labels = dataset.read(indices)
    assert batch.images.dtype == torch.float32
    assert torch.equal(batch.images, to_float(pixels))
    assert torch.equal(batch.labels, labels)


@pytest.mark.parametrize(("batch", "world"), [(3, 8), (0, 1)])
def test_a_batch_that_the_workers_cannot_share_is_refused_with_one_that_they_can(batch, world):
    with pytest.raises(
        ConfigError, match=rf"train\.batch must hold an image for each of the {world} workers"
    ) as caught:
        ShardedBatches(Numbers(9), batch=batch, rank=0, world=world, seed=0)
    assert int(str(caught.value).rpartition("=")[2]) == world


@pytest.mark.parametrize("world", [1, 3, 4, 7, 10])
def test_ranks_share_a_batch_that_does_not_divide_as_their_group_says(world):
    batches = [
        ShardedBatches(Numbers(50), batch=10, rank=rank, world=world, seed=2, prefetch=0) for rank in range(world)
    ]
    alone = ShardedBatches(Numbers(50), batch=10, rank=0, world=1, seed=2, prefetch=0)
    groups = [Group(rank=rank, size=world, device=torch.device("cpu")) for rank in range(world)]
    for _ in range(3):
        shares = [next(one).labels for one in batches]
        assert [len(share) for share in shares] == [len(group.slots(10)) for group in groups]
        assert torch.equal(torch.cat(shares), next(alone).labels)


def test_the_prefetch_thread_ends_on_close_and_on_loss_of_the_last_reference():
    before = len(prefetchers())
    closed = ShardedBatches(Numbers(9), batch=3, rank=0, world=1, seed=0)
    next(closed)
    assert len(prefetchers()) == before + 1
    closed.close()
    closed.close()
    assert len(prefetchers()) == before
    with pytest.raises(StopIteration):
        next(closed)
    dropped = ShardedBatches(Numbers(9), batch=3, rank=0, world=1, seed=0)
    next(dropped)
    del dropped
    gc.collect()
    assert len(prefetchers()) == before


@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_the_reader_raises_reaches_the_consumer_after_the_good_batches(prefetch):
    order = EpochOrder(10, 0)(np.arange(10)).tolist()
    before = len(prefetchers())
    with ShardedBatches(Numbers(10, poison=order[4]), batch=2, rank=0, world=1, seed=0, prefetch=prefetch) as batches:
        assert [next(batches).labels.tolist() for _ in range(2)] == [order[0:2], order[2:4]]
        for _ in range(2):
            with pytest.raises(DataError, match="sample must be readable"):
                next(batches)
        assert batches.images == 4
    assert len(prefetchers()) == before


def test_prefetch_reads_no_further_than_its_depth():
    class Counting(Numbers):
        reads = 0

        def read(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            self.reads += 1
            return super().read(indices)

    dataset = Counting(100)
    with ShardedBatches(dataset, batch=2, rank=0, world=1, seed=0, prefetch=3) as batches:
        for taken in range(1, 30):
            next(batches)
            # Ready ones, plus the one that was begun when the taken batch made room.
            assert dataset.reads <= taken + 3 + 1
