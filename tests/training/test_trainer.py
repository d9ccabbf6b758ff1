"""Laws of the trainer: what a run directory holds, exact resume, stopping before harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ganscale.config import RunConfig, override
from ganscale.errors import CheckpointError, NonFiniteError
from ganscale.training import checkpoint as cp
from ganscale.training import train
from ganscale.training.process_group import solo_group
from ganscale.training.records import SampleRecord, StartRecord, TickRecord
from ganscale.training.state import TrainState


def lines(run_dir: Path) -> list[dict]:
    """The metrics without what depends on the clock."""
    return [
        {key: value for key, value in json.loads(line).items() if key != "timing"}
        for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    ]


def start(path: Path, config: RunConfig, **options) -> Path:
    path.mkdir(exist_ok=True)
    train(config, path, **options)
    return path


class Collect:
    """Keeps every record."""

    def __init__(self) -> None:
        self.records = []

    def write(self, record) -> None:
        self.records.append(record)


def test_a_run_directory_holds_metrics_samples_and_the_newest_checkpoints(tmp_path: Path, tiny: RunConfig):
    sink = Collect()
    run = start(tmp_path / "run", tiny, sink=sink)
    assert [path.name for path in cp.names(run / "checkpoints")] == ["kimg-000000.608", "kimg-000000.800"]
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "kimg-000000.400.png", "kimg-000000.800.png", "kimg-000000.png",
    ]  # fmt: skip
    ticks = lines(run)
    assert [tick["images"] for tick in ticks] == [160, 304, 464, 608, 752, 800]
    assert [tick["partial"] for tick in ticks] == [False] * 5 + [True]
    assert {"loss/critic", "loss/generator", "penalty", "logits/real", "logits/fake"} <= ticks[0]["scalars"].keys()
    kinds = [type(record) for record in sink.records]
    assert kinds[0] is StartRecord
    assert kinds.count(SampleRecord) == 3
    assert kinds.count(TickRecord) == len(ticks)
    tick = next(record for record in sink.records if isinstance(record, TickRecord))
    assert tick.histograms["logits/real"].counts.sum() == 160


@pytest.mark.parametrize("stop_kimg", [0.304, 0.4])
def test_stopped_and_resumed_equals_never_stopped(tmp_path: Path, tiny: RunConfig, stop_kimg: float):
    tiny = override(tiny, {"penalty.every": 3})  # a lazy phase has state of its own in Adam's moments
    straight = start(tmp_path / "straight", tiny)
    broken = start(tmp_path / "broken", override(tiny, {"train.kimg": stop_kimg}))
    start(broken, tiny, resume_from=cp.newest(broken))
    assert lines(broken) == lines(straight)
    one, other = cp.load(cp.newest(straight)), cp.load(cp.newest(broken))
    assert one.meta["weights"] == other.meta["weights"]
    for part, tensors in one.parts.items():
        assert tensors.keys() == other.parts[part].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other.parts[part][name]), f"{part}/{name}"
    for name in ("kimg-000000.400.png", "kimg-000000.800.png"):
        assert (straight / "samples" / name).read_bytes() == (broken / "samples" / name).read_bytes()


def test_a_crash_between_checkpoints_repeats_that_ground_and_ends_the_same(tmp_path: Path, tiny: RunConfig):
    straight = start(tmp_path / "straight", tiny)
    crashed = start(tmp_path / "crashed", tiny)
    newest = cp.names(crashed / "checkpoints")[-1]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    with (crashed / "metrics.jsonl").open("a") as stream:
        stream.write('{"images": 9')  # a line cut short
    good, _ = cp.newest_good(crashed)
    start(crashed, tiny, resume_from=good)
    assert lines(crashed) == lines(straight)


def test_what_is_saved_after_damaged_checkpoints_is_kept_and_they_are_not_lost(tmp_path: Path, tiny: RunConfig):
    run = start(tmp_path / "run", override(tiny, {"checkpoint.keep": 3}))
    good, *damaged = cp.names(run / "checkpoints")
    assert len(damaged) == tiny.checkpoint.keep
    for path in damaged:
        (path / cp.MANIFEST).unlink()
    (run / "evaluations").mkdir()
    for path in (good, *damaged):
        (run / "evaluations" / f"{path.name}.json").touch()
    shorter = override(tiny, {"train.kimg": 0.4, "checkpoint.every_kimg": 9})
    result = train(shorter, run, resume_from=good)
    assert cp.newest(run) == result.checkpoint
    assert cp.names(run / "checkpoints") == [good, result.checkpoint]
    aside = sorted(path.name for path in (run / "checkpoints").iterdir() if path.name.startswith("aside-"))
    assert aside == [f"aside-{path.name}" for path in damaged]
    assert [path.stem for path in (run / "evaluations").iterdir()] == [good.name]  # else they would count for new ones


def test_a_stop_is_obeyed_at_the_next_question_however_far_the_tick_is_and_saved(tmp_path: Path, tiny: RunConfig):
    (tmp_path / "run").mkdir()
    result = train(override(tiny, {"train.tick_kimg": 1e6}), tmp_path / "run", should_stop=lambda: True)
    assert result.stopped
    assert result.images == 16  # the first question comes after the first step
    assert cp.newest(tmp_path / "run") == result.checkpoint
    assert [(tick["images"], tick["partial"]) for tick in lines(tmp_path / "run")] == [(16, True)]


def test_a_run_stopped_between_ticks_goes_on_as_if_it_had_never_stopped(tmp_path: Path, tiny: RunConfig):
    straight, broken = start(tmp_path / "straight", tiny), tmp_path / "broken"
    start(broken, tiny, should_stop=lambda: True)
    start(broken, tiny, resume_from=cp.newest(broken))
    assert lines(broken) == lines(straight)
    assert cp.load(cp.newest(broken)).meta["weights"] == cp.load(cp.newest(straight)).meta["weights"]


def test_a_tick_names_only_a_checkpoint_that_is_on_the_disk(tmp_path: Path, tiny: RunConfig):
    class Verify(Collect):
        def write(self, record) -> None:
            super().write(record)
            if isinstance(record, TickRecord) and record.checkpoint is not None:
                cp.verify(tmp_path / "run" / "checkpoints" / record.checkpoint)

    sink = Verify()
    often = override(tiny, {"checkpoint.every_kimg": 0.048, "checkpoint.keep": 99, "train.tick_kimg": 0.016})
    start(tmp_path / "run", often, sink=sink)
    named = [record.checkpoint for record in sink.records if isinstance(record, TickRecord)]
    assert named[0] is None
    assert len({name for name in named if name}) > 3


def test_the_seconds_that_training_waits_for_saves_are_in_the_metrics(tmp_path: Path, tiny: RunConfig):
    (tmp_path / "run").mkdir()
    result = train(override(tiny, {"checkpoint.every_kimg": 0.048}), tmp_path / "run")
    ticks = [json.loads(line)["timing"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < tick["checkpoint_stall_s"] < tick["tick_s"] for tick in ticks)
    assert sum(tick["checkpoint_stall_s"] for tick in ticks) == pytest.approx(result.checkpoint_stall_s)


def test_the_optimisers_of_a_resumed_run_keep_their_state_on_the_device_of_the_parameters(tiny: RunConfig):
    state = TrainState(tiny, solo_group("cpu"))
    for net in ("generator", "critic"):
        for parameter in state.nets[net].parameters():
            parameter.grad = torch.ones_like(parameter)
        state.optimisers[net].step()
    other = TrainState(tiny, solo_group("cpu"))
    other.load(cp.Checkpoint(path=Path("x"), images=16, meta={}, parts=state.parts()))
    for net, optimiser in other.optimisers.items():
        for parameter, fields in optimiser.state.items():
            for name, value in fields.items():
                assert value.device == parameter.device, f"{net} {name}"
                assert torch.equal(value, state.optimisers[net].state[_twin(state, other, net, parameter)][name])


def _twin(state: TrainState, other: TrainState, net: str, parameter: torch.Tensor) -> torch.Tensor:
    pairs = zip(other.nets[net].parameters(), state.nets[net].parameters(), strict=True)
    return next(mine for theirs, mine in pairs if theirs is parameter)


def test_a_non_finite_gradient_stops_before_the_update_and_names_the_parameter(tmp_path: Path, tiny: RunConfig):
    explosive = override(tiny, {"optim.critic.lr": 1e30})
    with pytest.raises(NonFiniteError, match=r"gradient of (critic|generator)\.\S+ is not finite in phase"):
        start(tmp_path / "run", explosive)


def test_points_train_without_sample_grids(tmp_path: Path, tiny_points: RunConfig):
    run = start(tmp_path / "run", tiny_points)
    assert not (run / "samples").exists()
    assert len(lines(run)) == 6


def test_resume_refuses_other_networks_and_other_data(tmp_path: Path, tiny: RunConfig):
    run = start(tmp_path / "run", override(tiny, {"train.kimg": 0.1}))
    with pytest.raises(CheckpointError, match="fit the configured network"):
        start(run, override(tiny, {"model.width": 8}), resume_from=cp.newest(run))
    with pytest.raises(CheckpointError, match="be of the same data"):
        start(run, override(tiny, {"data.seed": 5, "data.fit": "pad"}), resume_from=cp.newest(run))


KEYS_THAT_MUST_CHANGE_THE_WEIGHTS = {
    "model.width": 8, "model.latent": 9, "model.critic": "mlp", "model.generator": "mlp",
    "loss.name": "least-squares",  # hinge equals wasserstein while all logits lie inside its margin
    "penalty.name": "wgan-gp-one-sided", "penalty.weight": 1.0, "penalty.every": 2, "penalty.center": 0.5,
    "optim.generator.lr": 1e-3, "optim.generator.betas": "0.5,0.9",
    "optim.critic.lr": 1e-3, "optim.critic.betas": "0.5,0.9", "optim.critic.repeats": 1,
    "train.batch": 20, "train.kimg": 0.2, "train.seed": 1, "train.precision": "bf16",
    "ema.half_life_kimg": 0.001, "data.seed": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory):
    """Return a function: config -> hash of the weights after a short run."""
    root = tmp_path_factory.mktemp("weights")

    def run(config: RunConfig) -> str:
        path = root / str(len(list(root.iterdir())))
        return cp.load(cp.newest(start(path, config))).meta["weights"]

    return run


@pytest.mark.parametrize("key", KEYS_THAT_MUST_CHANGE_THE_WEIGHTS)
def test_no_configuration_key_is_accepted_and_then_ignored(tiny: RunConfig, weights, key: str):
    short = override(tiny, {"train.kimg": 0.1})
    assert weights(override(short, {key: KEYS_THAT_MUST_CHANGE_THE_WEIGHTS[key]})) != weights(short)


def test_decay_lowers_the_learning_rate_to_zero_by_progress(tmp_path: Path, tiny: RunConfig):
    decaying = override(tiny, {"optim.decay": "linear", "optim.decay_kimg": 0.8})
    rates = [line["scalars"]["lr/generator"] for line in lines(start(tmp_path / "run", decaying))]
    assert rates == sorted(rates, reverse=True)
    first = tiny.optim.generator.lr
    # the rate of a tick was set by the images before its last batch of 16
    assert rates[0] == pytest.approx(first * (1 - (160 - 16) / 800))
