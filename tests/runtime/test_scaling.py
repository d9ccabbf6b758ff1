"""What more workers bring, by the stated model: against numbers worked out by hand, and laws of the ring."""

from __future__ import annotations

import json
import re
import textwrap
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ganscale.cli import main
from ganscale.config import override
from ganscale.errors import UserError
from ganscale.presets import preset
from ganscale.runtime.estimate import estimate, norm_channels
from ganscale.runtime.placement import Resources, place
from ganscale.runtime.scaling import Link, Machines, Sum, expect, ring_bytes, ring_s, step_sums, steps_up_to
from ganscale.training.autoencoding import phases_of
from ganscale.training.process_group import Group
from ganscale.training.random import Draws
from ganscale.training.state import TrainState
from ganscale.training.step import train_step

pytestmark = pytest.mark.distributed
FAST, SLOW = Link(latency_s=1e-5, bytes_per_s=2e10), Link(latency_s=1e-4, bytes_per_s=1e9)
MACHINES = Machines(per_node=8, inside=FAST, between=SLOW)
SUMS = [Sum(name="critic", bytes=8_000_000, every=1), Sum(name="generator", bytes=16_000_000, every=4)]


@pytest.mark.parametrize(
    ("size", "ranks", "link", "seconds"),
    [
        (8_000_000, 1, FAST, 0.0),
        (8_000_000, 2, FAST, 2 * (1e-5 + 4e6 / 2e10)),  # .42 ms
        (8_000_000, 8, FAST, 14 * (1e-5 + 1e6 / 2e10)),  # .84 ms
        (8_000_000, 16, SLOW, 30 * (1e-4 + 5e5 / 1e9)),  # 18 ms
        (0, 16, SLOW, 30 * 1e-4),
    ],
)
def test_the_time_of_a_ring(size, ranks, link, seconds):
    assert ring_s(size, ranks, link) == pytest.approx(seconds)


def test_what_a_rank_sends_nears_twice_the_gradient_and_never_reaches_it():
    assert [ring_bytes(100, ranks) for ranks in (1, 2, 4)] == [0, 100, 150]
    assert 199 < ring_bytes(100, 256) < 200


@pytest.mark.parametrize(
    ("workers", "nodes", "share", "compute_s", "exchange_s", "sent"),
    [
        (1, 1, 64, 0.064, 0.0, 0.0),
        (2, 1, 32, 0.032, 0.00042 + (2 * (1e-5 + 8e6 / 2e10)) / 4, 8e6 + 16e6 / 4),
        (8, 1, 8, 0.008, 0.00084 + (14 * (1e-5 + 2e6 / 2e10)) / 4, 14e6 + 28e6 / 4),
        (16, 2, 4, 0.004, 0.018 + (30 * (1e-4 + 1e6 / 1e9)) / 4, 15e6 + 30e6 / 4),
        (64, 8, 1, 0.001, 126 * (1e-4 + 125e3 / 1e9) + 126 * (1e-4 + 250e3 / 1e9) / 4, 15.75e6 + 31.5e6 / 4),
    ],
)
def test_a_step_worked_out_by_hand(workers, nodes, share, compute_s, exchange_s, sent):
    found = expect(64, workers, image_s=1e-3, sums=SUMS, machines=MACHINES)
    assert (found.workers, found.nodes, found.share) == (workers, nodes, share)
    assert found.compute_s == pytest.approx(compute_s)
    assert found.exchange_s == pytest.approx(exchange_s)
    assert found.exchange_bytes == pytest.approx(sent)
    assert found.step_s == pytest.approx(compute_s + exchange_s)
    assert found.images_per_s == pytest.approx(64 / (compute_s + exchange_s))
    assert found.efficiency == pytest.approx(compute_s / (compute_s + exchange_s))


def test_efficiency_is_the_gain_in_speed_per_worker():
    one = expect(64, 1, image_s=1e-3, sums=SUMS, machines=MACHINES)
    for workers in (2, 3, 4, 16, 48, 64):  # of 3 and of 48 some have an image more, for which the others wait
        many = expect(64, workers, image_s=1e-3, sums=SUMS, machines=MACHINES)
        assert many.efficiency == pytest.approx(many.images_per_s / one.images_per_s / workers)


def test_one_worker_more_than_a_node_holds_makes_the_network_count():
    def exchange(workers: int) -> float:
        return expect(72, workers, image_s=1e-3, sums=SUMS, machines=MACHINES).exchange_s

    assert exchange(8) < exchange(9) / 5


@pytest.mark.parametrize(
    ("workers", "exchange_s", "sent"),
    [
        (1, 0.0, 0.0),
        # 4 MB of the critic; in every batch 3 sums of 1032 bytes forward; every 5th 20 MB, 3 more, 3 of 1024 backward
        (
            8,
            14 * (1e-5 + 5e5 / 2e10 + 3 * (1e-5 + 129 / 2e10))
            + 14 / 5 * (1e-5 + 2.5e6 / 2e10 + 3 * (1e-5 + 129 / 2e10) + 3 * (1e-5 + 128 / 2e10)),
            7e6 + 1.75 * 3 * 1032 + (35e6 + 1.75 * 3 * 2056) / 5,
        ),
        (
            64,
            126 * (1e-4 + 62.5e3 / 1e9 + 3 * (1e-4 + 16.125 / 1e9))
            + 126 / 5 * (1e-4 + 312.5e3 / 1e9 + 3 * (1e-4 + 16.125 / 1e9) + 3 * (1e-4 + 16 / 1e9)),
            7.875e6 + 1.96875 * 3 * 1032 + (39.375e6 + 1.96875 * 3 * 2056) / 5,
        ),
    ],
)
def test_batch_norms_worked_out_by_hand(workers, exchange_s, sent):
    config = override(preset("dcgan-fashion"), {"optim.critic.repeats": 5})
    sums = step_sums(config, {"critic": 1_000_000, "generator": 5_000_000}, [64, 64, 64], workers=workers)
    found = expect(64, workers, image_s=1e-3, sums=sums, machines=MACHINES)
    assert found.exchange_s == pytest.approx(exchange_s)
    assert found.exchange_bytes == pytest.approx(sent)


@dataclass(frozen=True, kw_only=True)
class Counting(Group):
    """One of several ranks; what it would sum over all is written down, by bytes, and stays its own."""

    summed: list[int] = field(default_factory=list)

    def start_sum_(self, tensor):
        self.summed.append(tensor.numel() * tensor.element_size())
        return Done()


class Done:
    def wait(self) -> None:
        pass


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optim.critic.repeats": 2, "train.micro_batch": 3},  # 8 images a worker: in three passes
        {"penalty.name": "wgan-gp"},  # in the critic's own sum
        {"penalty.name": "wgan-gp", "penalty.every": 2},
        {"penalty.name": "r1", "penalty.center": 0, "penalty.every": 2},  # looks at real images alone
        {"data.resolution": 8},  # one batch norm
        {"model.generator": "mlp"},  # none
        {"model.generator": "autoencoder", "model.critic": "autoencoder", "loss.name": "reconstruction"},
    ],
)
def test_the_sums_are_those_that_training_waits_for(settings):
    """What a rank of two hands to its group in two batches, counted, is what the plan says of two batches."""
    common = {"train.batch": 16, "model.width": 2, "model.latent": 4, "penalty.name": "none"}
    config = override(preset("dcgan-fashion"), common | settings)
    group = Counting(rank=0, size=2, device=torch.device("cpu"))
    state, phases, draws = TrainState(config, group), phases_of(config), Draws(0, group.device)
    real = torch.rand(8, 1, *config.data.resolution) * 2 - 1
    for _ in range(2):
        train_step(state, phases, real, draws, nullcontext)
    placed = place(config, Resources(cpus=2, gpus=0, memory_bytes=None, where="here"), workers=2)
    parameters = estimate(config, placed, measure=False).parameters
    sums = step_sums(config, parameters, norm_channels(config), workers=2)
    assert sorted(group.summed) == sorted(one.bytes for one in sums for _ in range(2 * one.times // one.every))


@pytest.mark.parametrize(
    ("least", "workers", "batch", "sizes"),
    [
        (1, 1, 64, [1]),
        (1, 8, 64, [1, 2, 4, 8]),
        (1, 6, 12, [1, 2, 4, 6]),
        (1, 3, 9, [1, 3]),
        (3, 8, 64, [3, 4, 8]),
        (2, 3, 8, [2, 3]),
    ],
)
def test_sizes_to_compare_divide_the_batch_and_end_with_the_one_asked_for(least, workers, batch, sizes):
    assert list(steps_up_to(workers, batch, least)) == sizes


@pytest.mark.parametrize(("workers", "image_s"), [(65, 1e-3), (0, 1e-3), (2, 0.0), (2, -1.0)])
def test_what_makes_no_sense_is_refused(workers, image_s):
    with pytest.raises(UserError):
        expect(64, workers, image_s=image_s, sums=SUMS, machines=MACHINES)


def call(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


SMALL = ("--set", "model.width=4", "--set", "model.latent=8")
MLP = ("--set", "model.generator=mlp", "--set", "model.critic=mlp")  # without batch norm


def test_the_verb_prints_a_row_a_size_and_every_assumption():
    done = call("plan", "--gpus", 16, "--step-ms", 64, "--network", "100:8", "--json", *SMALL)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    rows = facts["sizes"]
    assert [row["workers"] for row in rows] == [1, 2, 4, 8, 16]
    assert [row["nodes"] for row in rows] == [1, 1, 1, 1, 2]
    assert rows[0]["step_s"] == pytest.approx(0.064)
    assert rows[0]["efficiency"] == 1
    assert rows[0]["memory_bytes"] > rows[-1]["memory_bytes"]
    sums = [4 * facts["parameters"][name] for name in ("critic", "generator")]
    sums += [8 * size for channels in (8, 4) for size in 2 * [2 * channels + 1] + [2 * channels]]  # two batch norms
    assert rows[-1]["exchange_bytes"] == pytest.approx(sum(ring_bytes(size, 16) for size in sums))
    assert rows[-1]["exchange_s"] == pytest.approx(sum(ring_s(size, 16, SLOW) for size in sums))
    told = call("plan", "--gpus", 16, "--step-ms", 64, "--network", "100:8", *SMALL)
    assert [line.removeprefix("assumed: ") for line in told.stderr.splitlines()] == facts["assumptions"]
    assert len(told.stdout.splitlines()) == 1 + len(rows)


def test_64_gpus_wait_for_every_batch_norm():
    small = ("--gpus", 64, "--step-ms", 64, "--network", "100:8", "--json", *SMALL)
    normed, plain = (json.loads(call("plan", *small, *more).stdout) for more in ((), MLP))
    last = normed["sizes"][-1]
    assert (last["workers"], last["nodes"], last["share"]) == (64, 8, 1)
    gradients = sum(ring_s(4 * count, 64, SLOW) for count in normed["parameters"].values())
    assert last["exchange_s"] - gradients == pytest.approx(6 * 126 * 1e-4, rel=1e-3)  # their bytes are next to nothing
    assert last["efficiency"] == pytest.approx(0.001 / (0.001 + last["exchange_s"]))
    assert sum("each of the 2 batch norms" in line for line in normed["assumptions"]) == 1
    gradients = sum(ring_s(4 * count, 64, SLOW) for count in plain["parameters"].values())
    assert plain["sizes"][-1]["exchange_s"] == pytest.approx(gradients)
    assert not any("batch norm" in line for line in plain["assumptions"])


def test_the_table_of_the_documents_is_what_its_command_prints():
    page = (Path(__file__).resolve().parents[2] / "docs" / "cluster.md").read_text()
    command, table = re.search(r"^ganscale (plan .*)\n(?:.*\n)*?```\n\n((?: {4}.*\n)+)", page, re.MULTILINE).groups()
    assert textwrap.dedent(table).splitlines() == [line.rstrip() for line in call(*command.split()).stdout.splitlines()]


def test_a_range_is_compared_from_its_fewest_to_its_most():
    done = call("plan", "--gpus", "3:8", "--step-ms", 64, "--json", *SMALL)
    rows = json.loads(done.stdout)["sizes"]
    assert [(row["workers"], row["share"]) for row in rows] == [(3, 22), (4, 16), (8, 8)]
    assert rows[0]["compute_s"] == pytest.approx(0.022)
    assert rows[0]["images_per_s"] == pytest.approx(64 / rows[0]["step_s"])


def test_without_a_given_step_one_is_measured_here_and_said_to_be():
    facts = json.loads(call("plan", "--workers", 2, "--json", *SMALL).stdout)
    assert facts["sizes"][0]["step_s"] > 0
    assert "as measured here on" in facts["assumptions"][0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--gpus or --workers must be given, and not both, got neither"),
        (("--gpus", 2, "--workers", 2), "got both"),
        (("--gpus", 48, "--step-ms", 1), "train.batch must be divisible by the 48 workers, got 64"),
        (("--gpus", 2, "--network", "fast"), "--network must be MICROSECONDS:GBIT"),
        (("--gpus", 2, "--inside", "1:0"), "--inside must be MICROSECONDS:GBIT"),
        (("--gpus", 2, "--step-ms", 0), "--step-ms must be a number above 0"),
    ],
)
def test_a_mistake_is_one_line(arguments, words):
    done = call("plan", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
