"""What an evaluation says: values beside floors, stamps, and whether damage shows in order."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ganscale.config import METRIC_NAMES
from ganscale.errors import ConfigError, UserError
from ganscale.metrics import METRICS, InDomainCNN, TrainingSet, compare, evaluate_features, features_of, measure

N = 1000
STAMP = {"extractor": "in-domain CNN", "split": "train"}
FD, KD = "FD (in-domain CNN)", "KD (in-domain CNN)"


@pytest.fixture(scope="module")
def halves(garments: TrainingSet) -> tuple[torch.Tensor, torch.Tensor]:
    return garments.images[:N], garments.images[N : 2 * N]


@pytest.fixture(scope="module")
def half_features(judge: InDomainCNN, halves) -> list[torch.Tensor]:
    return [features_of(judge, half) for half in halves]


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
def test_damage_ranks_in_order_and_stands_clear_of_the_floor(damage: str, judge, half_features, others):
    spoil, rungs = LADDERS[damage]
    spoilt = [features_of(judge, spoil(others, rung)) for rung in rungs]
    values = [evaluate_features(*half_features, fake, metrics=["fd", "kd"], stamp=STAMP) for fake in spoilt]
    fd = [value[FD].value for value in values]
    kd = [value[KD].value for value in values]
    floor = values[0][FD].floor
    assert {value[FD].floor for value in values} == {floor}
    assert fd == sorted(fd)
    assert fd[0] > 2 * floor
    assert kd == sorted(kd)
    assert kd[-1] > values[-1][KD].floor + 2 * values[-1][KD].spread


def test_duplicates_show_in_coverage_long_before_they_show_in_precision(judge, half_features, others):
    spoilt = features_of(judge, copies(others, 10))
    values = evaluate_features(*half_features, spoilt, metrics=["prdc"], stamp=STAMP)
    coverage, precision = (values[f"{name} (in-domain CNN)"] for name in ("coverage", "precision"))
    assert coverage.value < 0.6 * coverage.floor
    assert precision.value == pytest.approx(precision.floor, abs=0.1)


def test_undamaged_images_lie_at_the_floor(judge, halves, others):
    values = measure(judge, *halves, others.images[:N])
    assert values[FD].value == pytest.approx(values[FD].floor, rel=0.3)  # two draws of one distribution
    for name in ("precision", "recall", "density", "coverage"):
        found = values[f"{name} (in-domain CNN)"]
        assert found.value == pytest.approx(found.floor, abs=0.1)


def test_registry_holds_exactly_the_names_that_a_config_may_use():
    assert tuple(METRICS) == METRIC_NAMES


def test_every_value_says_how_it_was_measured_and_none_is_called_fid(judge: InDomainCNN, halves, others):
    reference = {"data": "garments", "split": "train", "fingerprint": "abc"}
    values = measure(judge, *halves, others.images[:N], seed=3, reference=reference, subject={"run": "demo"})
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
    first, second = (measure(judge, *halves, others.images[:N], metrics=["kd"], seed=9) for _ in range(2))
    assert first == second


def stamped(judge: InDomainCNN, real_a, real_b, fake, *, split: str = "train", **options) -> dict:
    parts = [features_of(judge, part) for part in (real_a, real_b, fake)]
    return evaluate_features(*parts, stamp={"split": split, **judge.describe()}, **options)


def test_compare_gives_the_improvement_in_the_metrics_own_direction(judge, halves, others):
    small = [part[:200] for part in halves]
    good, bad = (stamped(judge, *small, fake[:200]) for fake in (others.images[:N], noisy(others, 80)))
    assert all(compare(good[name], bad[name]) > 0 > compare(bad[name], good[name]) for name in good)
    assert compare(good[FD], bad[FD]) == bad[FD].value - good[FD].value


def test_compare_refuses_values_that_were_not_measured_alike(judge, halves, others):
    small, fake = [part[:200] for part in halves], others.images
    value = stamped(judge, *small, fake[:200])[FD]
    other_n = stamped(judge, small[0], small[1][:150], fake[:150])[FD]
    with pytest.raises(UserError, match="n_fake: 200 v 150"):
        compare(value, other_n)
    with pytest.raises(UserError, match="split: train v held-out"):
        compare(value, stamped(judge, *small, fake[:200], split="held-out")[FD])
    with pytest.raises(UserError, match="extractor_sha256"):
        compare(value, replace(value, stamp={**value.stamp, "extractor_sha256": "other"}))
    with pytest.raises(UserError, match=r"name: FD .* v KD"):
        compare(value, stamped(judge, *small, fake[:200])[KD])


def test_other_reference_images_make_another_stamp(judge, halves, others):
    fake = others.images[:200]
    one = measure(judge, halves[0][:200], halves[1][:200], fake, metrics=["fd"])[FD]
    two = measure(judge, halves[0][200:400], halves[1][:200], fake, metrics=["fd"])[FD]
    with pytest.raises(UserError, match="reals_sha256"):
        compare(one, two)


def test_bad_requests_are_refused(judge, halves, others):
    a, b, fake = (part[:50] for part in (*halves, others.images))
    with pytest.raises(ConfigError, match="did you mean fd"):
        measure(judge, a, b, fake, metrics=["fid"])
    with pytest.raises(UserError, match="list of names"):
        measure(judge, a, b, fake, metrics="fd")
    with pytest.raises(UserError, match="equally many samples, got 50 and 40"):
        measure(judge, a, b, fake[:40])
    with pytest.raises(UserError, match="one shape"):
        measure(judge, a, b, fake[..., :20])
    with pytest.raises(UserError, match="at least 10 each"):
        measure(judge, a, b[:5], fake[:5])
    with pytest.raises(UserError, match="name the split"):
        evaluate_features(torch.zeros(50, 2), torch.zeros(50, 2), torch.zeros(50, 2), stamp={"extractor": "x"})
