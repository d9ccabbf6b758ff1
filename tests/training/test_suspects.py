"""A value that is not finite on one rank stops all before the update, and its rank is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ganscale.config import override
from ganscale.errors import NonFiniteError
from ganscale.presets import preset
from ganscale.training.process_group import torch_group
from ganscale.training.trainer import Trainer

pytestmark = pytest.mark.distributed
SETTINGS = {
    "data.path": "gaussians-8",
    "data.resolution": 1,
    "data.channels": 2,
    "model.generator": "mlp",
    "model.critic": "mlp",
    "model.width": 8,
    "train.batch": 8,
    "train.kimg": 1,
}
BAD_FROM = 64  # images
CASES = [((1,), "critic", float("nan")), ((0,), "generator", float("-inf")), ((0, 1), "critic", 3e38)]
WHOSE = [  # what is said of each case; of the last one only the sum is too large for a float
    "it arose on worker 1",
    "it arose on worker 0",
    "each worker's own gradients are finite when computed again: their sum overflows, or a device erred",
]


def _rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for number, case in enumerate(CASES):
        _train(rank, Path(folder, str(number)), *case)
    dist.destroy_process_group()


def _train(rank: int, folder: Path, bad_ranks: tuple[int, ...], phase: str, value: float) -> None:
    folder.mkdir(exist_ok=True)
    trainer = Trainer(override(preset("dcgan-fashion"), SETTINGS), folder, torch_group("cpu"), _Sink())
    leave, before = trainer.gradients, {}

    def gradients(turn, step) -> None:
        before.clear()
        before.update({n: p.detach().clone() for n, p in trainer.state.nets[turn.net].named_parameters()})
        leave(turn, step)
        if turn.name == phase and trainer.state.images >= BAD_FROM and rank in bad_ranks:
            next(trainer.state.nets[turn.net].parameters()).grad.view(-1)[0] = value

    trainer.gradients = gradients
    try:
        trainer.run(lambda: False, None)
    except NonFiniteError as error:
        same = all(torch.equal(before[n], p) for n, p in trainer.state.nets[phase].named_parameters())
        (folder / f"{rank}.txt").write_text(f"{same} {trainer.state.images} {error}")


class _Sink:
    def write(self, record: object) -> None:
        """Drop it."""


def test_all_ranks_stop_before_the_update_with_tensor_phase_and_guilty_rank(tmp_path):
    mp.spawn(_rank_main, args=(str(tmp_path),), nprocs=2)
    for number, (_, phase, _) in enumerate(CASES):
        for rank in range(2):
            same, images, words = (tmp_path / str(number) / f"{rank}.txt").read_text().split(" ", 2)
            assert (same, int(images)) == ("True", BAD_FROM)
            assert f"{phase}." in words
            assert f"phase {phase}" in words
            assert f"; {WHOSE[number]}; " in words
            assert "\n" not in words
