"""Real explanations and run directories, made once where tests only read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dashboard_cases import Stripes, critic_subject, image_inputs, make_bare, make_whole

from ganscale.dashboards import write_report
from ganscale.explain import Explanation, explain


@pytest.fixture(scope="session")
def shapley() -> Explanation:
    """KernelSHAP of the corner critic on 3 x 3 cells of four images; better than random."""
    return explain(critic_subject(), image_inputs(), "kernel-shap", cells=3, num_coalitions=64)


@pytest.fixture(scope="session")
def directions() -> Explanation:
    """Directions of the stripe generator."""
    z = torch.randn(3, Stripes.latent, generator=torch.Generator().manual_seed(2))
    return explain(critic_subject(), {"z": z}, "directions", num_directions=2)


@pytest.fixture(scope="session")
def worthless(shapley: Explanation) -> Explanation:
    """The same map as ``shapley``, with a deciding score that its control beats."""
    deletion = shapley.scores["deletion_auc"]
    beaten = replace(deletion, value=deletion.control, low=deletion.control - 1, high=deletion.control + 1)
    explanation = replace(shapley, scores={**shapley.scores, "deletion_auc": beaten})
    assert explanation.not_better_than_random
    return explanation


@pytest.fixture
def bare_run(tmp_path: Path) -> Path:
    """A run that was only just created: nothing but config.json, with a hostile command line."""
    return make_bare(tmp_path)


@pytest.fixture
def whole_run(tmp_path: Path, explanations: dict[str, Explanation]) -> Path:
    """A finished run with everything that a report shows, for the test to damage."""
    return make_whole(tmp_path, explanations)


@pytest.fixture(scope="session")
def whole_text(tmp_path_factory: pytest.TempPathFactory, explanations: dict[str, Explanation]) -> str:
    """The report of such a run, written once for all who only read it."""
    return write_report(make_whole(tmp_path_factory.mktemp("whole"), explanations)).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def explanations(shapley: Explanation, worthless: Explanation, directions: Explanation) -> dict[str, Explanation]:
    """What the whole run holds, by directory: one of the three is not better than random."""
    found = {"kernel-shap-001": shapley, "kernel-shap-002": worthless, "directions-001": directions}
    assert [name for name, explanation in found.items() if explanation.not_better_than_random] == ["kernel-shap-002"]
    return found


@pytest.fixture
def without_critic(directions: Explanation) -> Explanation:
    """Directions of a generator alone: no logits to print."""
    values = {name: tensor for name, tensor in directions.values.items() if not name.startswith("critic")}
    scores = {name: score for name, score in directions.scores.items() if not name.startswith("critic")}
    return replace(directions, values=values, scores=scores)
