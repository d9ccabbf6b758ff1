"""``Run``: a run directory as an object. Generates, evaluates, explains and reports from its newest checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ganscale.config import RunConfig, from_mapping
from ganscale.errors import UserError
from ganscale.files import address_of
from ganscale.runtime.resume import read_page
from ganscale.runtime.storage import is_uri

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ganscale.explain import Explanation, Limits, Target
    from ganscale.runtime.evaluation import Evaluation
    from ganscale.training.checkpoint import Checkpoint

GENERATE_BATCH = 64
STEPS_BETWEEN = 8  # images from one latent to the next when interpolating


def load(path: str | Path) -> Run:
    """Open the run directory, or the run in an object store, at ``path``; raises UserError where there is none."""
    return Run(path)


class Run:
    """A trained run. Everything is made from the averaged generator (EMA) of its newest checkpoint.

    Where ``path`` is that of a checkpoint (``runs/demo/checkpoints/kimg-000064``), of that one.
    """

    def __init__(self, path: str | Path) -> None:
        if is_uri(path):
            from ganscale.runtime.remote import open_run, split_address

            chosen = split_address(str(path))[1]
            path = open_run(str(path))
            path = path if chosen is None else path / "checkpoints" / chosen
        path = Path(path).absolute()
        self._chosen = path if path.parent.name == "checkpoints" else None
        self.path = path if self._chosen is None else path.parent.parent
        self.page: dict[str, Any] = read_page(self.path)  # config.json: config, versions, command, created, placement
        self.config: RunConfig = from_mapping(self.page["config"])

    @property
    def name(self) -> str:
        """The name of the run: that of its directory."""
        return self.path.name

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def checkpoint(self) -> Checkpoint:
        """Read the checkpoint; raises CheckpointError where there is none, or naming the damaged file."""
        from ganscale.training import checkpoint as checkpoints

        return checkpoints.load(self._chosen or checkpoints.newest(self.path))

    @cached_property
    def networks(self) -> Networks:
        """The averaged generator and the critic of the checkpoint, in eval mode on the CPU; read once."""
        checkpoint = self.checkpoint()
        return Networks(self.config, checkpoint.parts["ema"], checkpoint.parts["critic"], images=checkpoint.images)

    def generate(self, num: int = 64, *, seed: int = 0, interpolate: bool = False) -> np.ndarray:
        """Return ``num`` images, uint8 [N, C, H, W] (float32 [N, 2, 1, 1] where the data are points).

        Image k depends on ``seed`` and k alone. ``interpolate`` walks on the sphere from one latent to the next and
        back to the first instead of drawing each image afresh.
        """
        if num < 1:
            raise UserError("num", "be at least 1", num, "ask for --num 64")
        return self.networks.draw(num, seed=seed, interpolate=interpolate)

    def evaluate(
        self,
        *,
        num: int | None = None,
        metrics: Sequence[str] | None = None,
        data: str | None = None,
        untrained: bool = False,
    ) -> Evaluation:
        """Measure the distance of generated to real images, each beside its real-v-real floor; writes evaluations/.

        ``num``, ``metrics`` and ``data`` default to the run's own. ``untrained`` measures the run's generator with its
        first weights as well. Raises UserError for an unknown metric or data that are too few or of another shape.
        """
        from ganscale.runtime.evaluation import evaluate_run

        found = evaluate_run(self, num=num, metrics=metrics, data=data, untrained=untrained)
        self.publish()
        return found

    def explain(
        self,
        method: str = "integrated-gradients",
        *,
        target: str | Target = "critic",
        num_samples: int = 8,
        workers: int = 1,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        classifier: Any = None,
        samples: str = "both",
        limits: Limits | None = None,
        address: str | None = None,
        on_progress: Callable[[int, int, str], None] | None = None,
        **more_options: Any,
    ) -> Explanation:
        """Explain the critic, the generator or a classifier, and write explanations/METHOD-001 and TensorBoard.

        ``target`` is what ``Target.parse`` reads ("critic", "class:3", "critic@G"). ``classifier`` is a name, a path,
        "package.module:function", a network or a function; by default, where one is needed, the one trained on the
        run's own data. The ``samples`` are real and generated images by turns ("both"), or one kind. ``workers`` actors
        under Ray share the work; 0 does it in this process, to the same bytes. ``limits`` ends it early: what is
        finished is kept, also at Ctrl-C. ``on_progress(done, total, what)`` hears of samples, sweeps or chunks.
        ``options`` are the method's own; they may also be named as arguments, ``cells=3``.
        Raises UserError for an unknown method, target, option or argument.
        """
        from ganscale.runtime.explain_run import all_options, explain_run

        explanation = explain_run(
            self,
            method,
            target=target,
            num_samples=num_samples,
            workers=workers,
            seed=seed,
            options=all_options(method, options, more_options),
            classifier=classifier,
            samples=samples,
            limits=limits,
            address=address or self.config.runtime.address,
            on_progress=on_progress,
        )
        self.publish()
        return explanation

    def report(self) -> Path:
        """Write ``report.html``, one self-contained page, and return its path."""
        from ganscale.dashboards import write_report

        page = write_report(self.path)
        self.publish()
        return page

    def publish(self) -> None:
        """Send what was added here to the object store that keeps the run, where there is one."""
        if address_of(self.path) is not None:
            from ganscale.runtime.remote import publish

            publish(self.path)


class Networks:
    """The averaged generator and the critic, from named arrays or tensors; they go to other processes as arrays."""

    def __init__(
        self, config: RunConfig, generator: Mapping[str, Any], critic: Mapping[str, Any], *, images: int
    ) -> None:
        from ganscale.models import build_critic, build_generator

        self.config, self.images = config, images
        self.generator = _filled(build_generator(config), generator)
        self.critic = _filled(build_critic(config), critic)

    def to_arrays(self) -> dict[str, Any]:
        """Return plain arrays from which ``Networks(**...)`` makes equal networks anywhere."""
        return {
            "config": self.config,
            "generator": {name: value.numpy() for name, value in self.generator.state_dict().items()},
            "critic": {name: value.numpy() for name, value in self.critic.state_dict().items()},
            "images": self.images,
        }

    def draw(self, num: int, *, seed: int, interpolate: bool = False, purpose: str = "generate") -> np.ndarray:
        """Return ``num`` images as ``Run.generate`` does."""
        from ganscale.data.pixels import to_uint8

        images = self.draw_float(
            latents(num, self.generator.latent, seed=seed, interpolate=interpolate, purpose=purpose)
        )
        return images.numpy() if self.config.data.channels == 2 else to_uint8(images).numpy()

    def draw_float(self, z_ND: torch.Tensor) -> torch.Tensor:
        """Return G(z), float32 [N, C, H, W], by the operators that the run asks for."""
        import torch

        from ganscale import ops

        with torch.no_grad(), ops.using(self.config.ops.impl):
            return torch.cat([self.generator(part) for part in z_ND.split(GENERATE_BATCH)])


def latents(num: int, latent: int, *, seed: int, interpolate: bool = False, purpose: str = "generate") -> torch.Tensor:
    """Return [num, latent] standard normal latents keyed by (seed, purpose, index), or a closed walk through some."""
    import torch

    from ganscale.training.random import Draws

    draws = Draws(seed, torch.device("cpu"))
    if not interpolate:
        return draws.normal(purpose, 0, num, latent)
    corners = draws.normal(purpose, 0, max(2, num // STEPS_BETWEEN), latent)
    at = torch.arange(num) * (len(corners) / num)  # position on the closed walk, in corners
    first = at.long()
    return _slerp(corners[first], corners[(first + 1) % len(corners)], (at - first)[:, None])


def _slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    # along the sphere: a straight line would pass near the origin, where a normal latent never lies (White 2016)
    cosine = (a * b).sum(1, keepdim=True) / (a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True))
    angle = cosine.clamp(-0.9999, 0.9999).acos()
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def _filled(net: nn.Module, values: Mapping[str, Any]) -> nn.Module:
    import torch

    # torch.tensor copies: arrays from Ray's object store are read-only
    state = {k: v if isinstance(v, torch.Tensor) else torch.tensor(np.asarray(v)) for k, v in values.items()}
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def untrained_networks(config: RunConfig) -> Networks:
    """Return the networks that a run of ``config`` starts from."""
    import torch

    from ganscale.models import build_critic, build_generator

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        generator, critic = build_generator(config), build_critic(config)
    return Networks(config, generator.state_dict(), critic.state_dict(), images=0)
