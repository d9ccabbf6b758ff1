"""What an evaluation says: values beside floors, stamps, and whether damage shows in order."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from ganscale.config import EXTRACTOR_NAMES, METRIC_NAMES
from ganscale.errors import ConfigError, UserError
from ganscale.metrics import EXTRACTORS, METRICS, InDomainCNN, Reference, TrainingSet

N = 1000
FD, KD = "FD (in-domain CNN)", "KD (in-domain CNN)"


@pytest.fixture(scope="module")
def halves(garments: TrainingSet) -> tuple[torch.Tensor, torch.Tensor]:
    return garments.images[:N], garments.images[N : 2 * N]


@pytest.fixture(scope="module")
def standing(judge: InDomainCNN, halves) -> Reference:
    return Reference(judge, *halves, reference={"split": "train"})


@pytest.fixture(scope="module")
def others(garments: TrainingSet) -> TrainingSet:
    """Real images that are in neither half."""
    return TrainingSet(garments.images[2 * N :], garments.labels[2 * N :], *garments[2:])


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    return images.clamp(0, 255).round().to(torch.uint8)


def noisy(others: TrainingSet, sigma: float) -> torch.Tensor:
    noise = torch.randn(N, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return to_uint8(others.images[:N] + sigma * noise)


def blurred(others: TrainingSet, sigma: float) -> torch.Tensor:
    reach = int(3 * sigma + 1)
    taps = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2))
    taps = taps / taps.sum()
    padded = F.pad(others.images[:N].float(), (reach,) * 4, mode="reflect")
    return to_uint8(F.conv2d(F.conv2d(padded, taps[None, None, :, None]), taps[None, None, None]))


def few_classes(others: TrainingSet, classes: int) -> torch.Tensor:
    return others.images[others.labels < classes][:N]


def copies(others: TrainingSet, times: int) -> torch.Tensor:
    return others.images[: N // times].repeat(times, 1, 1, 1)


LADDERS = {
    "noise": (noisy, (40, 80)),  # noise of sigma 10 of 255 does not stand clear of the floor of this small network
    "blur": (blurred, (0.5, 1, 2)),
    "dropped classes": (few_classes, (7, 4, 2)),
    "duplicates": (copies, (10, 20)),
}


@pytest.mark.parametrize("damage", LADDERS)
def test_damage_ranks_in_order_and_stands_clear_of_the_floor(damage: str, standing: Reference, others):
    spoil, rungs = LADDERS[damage]
    values = [standing.measure(spoil(others, rung), metrics=["fd", "kd"]) for rung in rungs]
    fd = [value[FD].value for value in values]
    kd = [value[KD].value for value in values]
    floor = values[0][FD].floor
    assert {value[FD].floor for value in values} == {floor}
    assert fd == sorted(fd)
    assert fd[0] > 2 * floor
    assert kd == sorted(kd)
    assert kd[-1] > values[-1][KD].floor + 2 * values[-1][KD].spread


def test_duplicates_show_in_coverage_long_before_they_show_in_precision(standing: Reference, others):
    values = standing.measure(copies(others, 10), metrics=["prdc"])
    coverage, precision = (values[f"{name} (in-domain CNN)"] for name in ("coverage", "precision"))
    assert coverage.value < 0.6 * coverage.floor
    assert precision.value == pytest.approx(precision.floor, abs=0.1)


def test_undamaged_images_lie_at_the_floor(standing: Reference, others):
    values = standing.measure(others.images[:N])
    assert values[FD].value == pytest.approx(values[FD].floor, rel=0.3)  # two draws of one distribution
    for name in ("precision", "recall", "density", "coverage"):
        found = values[f"{name} (in-domain CNN)"]
        assert found.value == pytest.approx(found.floor, abs=0.1)


def test_registries_hold_exactly_the_names_that_a_config_may_use():
    assert tuple(METRICS) == METRIC_NAMES
    assert tuple(EXTRACTORS) == EXTRACTOR_NAMES


def test_every_value_says_how_it_was_measured_and_none_is_called_fid(judge: InDomainCNN, halves, others):
    reference = {"data": "garments", "split": "train", "fingerprint": "abc"}
    values = Reference(judge, *halves, reference=reference).measure(others.images[:N], seed=3, subject={"run": "demo"})
    assert list(values) == [
        FD, KD, *(f"{name} (in-domain CNN)" for name in ("precision", "recall", "density", "coverage"))
    ]  # fmt: skip
    for name, value in values.items():
        assert name == value.name
        assert "FID" not in name
        assert "KID" not in name
        expected = {**reference, **judge.describe(), "n_real": "1000", "n_fake": "1000", "seed": "3"}
        assert expected.items() <= value.stamp.items()
        assert value.subject == {"run": "demo"}
        assert json.loads(json.dumps(value.to_json(), allow_nan=False))["stamp"] == value.stamp
    assert "real v real" in str(values[FD])
    assert "n=1000, split=train" in str(values[FD])


def test_a_measurement_can_be_repeated_exactly(judge, halves, others):
    first, second = (Reference(judge, *halves).measure(others.images[:N], metrics=["kd"], seed=9) for _ in range(2))
    assert first == second


def test_values_that_were_not_measured_alike_have_other_stamps(judge, halves, others):
    (a, b), fake = (part[:200] for part in halves), others.images[:200]

    def stamp(a=a, b=b, fake=fake, split="train", **options) -> dict[str, str]:
        return Reference(judge, a, b, reference={"split": split}).measure(fake, metrics=["fd"], **options)[FD].stamp

    usual = stamp()
    assert stamp(fake=others.images[200:400]) == usual
    for other, differing in (
        (stamp(seed=1), {"seed"}),
        (stamp(split="held-out"), {"split"}),
        (stamp(a=halves[0][200:400]), {"reals_sha256"}),
        (stamp(b=b[:150], fake=fake[:150]), {"reals_sha256", "n_fake"}),
    ):
        assert {key for key in usual if usual[key] != other[key]} == differing


def test_bad_requests_are_refused(judge, halves, others):
    a, b, fake = (part[:50] for part in (*halves, others.images))
    reference = Reference(judge, a, b)
    with pytest.raises(ConfigError, match="did you mean fd"):
        reference.measure(fake, metrics=["fid"])
    with pytest.raises(UserError, match="list of names"):
        reference.measure(fake, metrics="fd")
    with pytest.raises(UserError, match="equally many samples, got 50 and 40"):
        reference.measure(fake[:40])
    with pytest.raises(UserError, match="one shape"):
        reference.measure(fake[..., :20])
    with pytest.raises(UserError, match="at least 10 each"):
        Reference(judge, a, b[:5])
