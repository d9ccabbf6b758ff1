"""What a run will take: the time is that of a usual step, whatever one of them met."""

from __future__ import annotations

import pytest
from tiny_runs import tiny_config

from ganscale.runtime import estimate

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("usual", "held_up", "most"), [(0.1, 5.0, 12), (4.0, 60.0, 4)])
def test_the_time_of_an_image_is_that_of_a_usual_step(monkeypatch, usual, held_up, most):
    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            return self.now

    clock, steps = Clock(), []

    def step(*_):
        steps.append(1)
        clock.now += held_up if len(steps) < 3 else usual  # the first one starts up, the second one is held up

    monkeypatch.setattr(estimate, "time", clock)
    monkeypatch.setattr("ganscale.training.step.train_step", step)
    image_s = estimate.seconds_per_image(tiny_config(), 32, device="cpu", threads=1)
    assert image_s == pytest.approx(usual / 32)
    assert len(steps) <= most  # about a second of them, or three
