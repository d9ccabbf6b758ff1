"""The one table of what TensorBoard shows: tag, kind, what it means, where the number is born.

The trainer's names of scalars are the tags, so ``metrics.jsonl``, the report and TensorBoard speak the same words. A
name ending in ``/*`` stands for a family. Steps are images shown to the critic, always.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """One tag or family of tags."""

    name: str
    kind: Literal["scalar", "histogram", "image", "text", "layout"]
    description: str
    source: str


def _tag(kind: str, name: str, source: str, description: str) -> Tag:
    return Tag(name=name, kind=kind, description=description, source=source)


_STEP = "training/step.py"
_TRAINER = "training/trainer.py"

TAGS: tuple[Tag, ...] = (
    _tag("scalar", "loss/critic", _STEP, "Adversarial loss of the critic, without its penalty; mean over the tick."),
    _tag("scalar", "loss/generator", _STEP, "Adversarial loss of the generator; mean over the tick."),
    _tag(
        "scalar", "loss/autoencoder", "training/autoencoding.py", "What an autoencoder minimises; mean over the tick."
    ),
    _tag("scalar", "loss/reconstruction", "training/autoencoding.py", "Half the squared error of decoded images."),
    _tag("scalar", "loss/divergence", "training/autoencoding.py", "KL of a variational code from N(0, I), in nats."),
    _tag("scalar", "quality/*", "training/autoencoding.py", "PSNR (dB) and SSIM of decoded training images."),
    _tag("scalar", "penalty", _STEP, "Gradient penalty of the critic before its weight; mean over the tick."),
    _tag("scalar", "logits/real", _STEP, "Mean raw logit D(x) on real images; no sigmoid."),
    _tag("scalar", "logits/fake", _STEP, "Mean raw logit D(G(z)) on generated images; no sigmoid."),
    _tag("scalar", "grad_norm/*", _STEP, "L2 norm of all gradients of one phase, after the sum over workers."),
    _tag("scalar", "lr/*", _TRAINER, "Learning rate of one optimiser at the end of the tick."),
    _tag("scalar", "speed/kimg_per_s", _TRAINER, "Thousands of real images a second over the tick, all workers."),
    _tag("scalar", "speed/tick_s", _TRAINER, "Seconds the tick took."),
    _tag("scalar", "speed/elapsed_s", _TRAINER, "Seconds since this process began to train."),
    _tag("scalar", "speed/checkpoint_stall_s", _TRAINER, "Seconds of the tick in which training waited for a save."),
    _tag(
        "scalar", "speed/workers", _TRAINER, "Workers that trained it; changes in an elastic run (--workers MIN:MAX)."
    ),
    _tag("histogram", "logits_histogram/real", _STEP, "Distribution of D(x) on real images over the tick."),
    _tag("histogram", "logits_histogram/fake", _STEP, "Distribution of D(G(z)) over the tick."),
    _tag(
        "image", "logits_overlap", _STEP, "D(x) and D(G(z)) over the last tick on one axis: where they overlap, D errs."
    ),
    _tag("image", "samples/ema", _TRAINER, "EMA generator on the run's fixed latents: the same z in every grid."),
    _tag("text", "run/config", _TRAINER, "The resolved configuration."),
    _tag("text", "run/facts", _TRAINER, "Data, networks, workers and which implementation of the kernels is on."),
    _tag("scalar", "evaluation/*", "metrics", "A distance or score with its real-against-real floor beside it."),
    _tag("image", "evaluation_table", "metrics", "The newest evaluation as a table, each value beside its floor."),
    _tag("image", "explanation/*", "explain", "Panels of one explanation."),
    _tag(
        "scalar", "explanation_score/*", "explain", "A faithfulness score, and its control measured in the same call."
    ),
    _tag("layout", "custom_scalars__config__", "dashboards", "Charts that belong together."),
)

#: Charts of the Custom Scalars page: category -> chart -> regular expressions of tags. Only tags that every run has.
LAYOUT: dict[str, dict[str, list[str]]] = {
    "Training": {
        "losses": [r"^loss/critic$", r"^loss/generator$"],
        "D(real) and D(fake)": [r"^logits/real$", r"^logits/fake$"],
        "gradient norms": [r"^grad_norm/.*$"],
        "throughput (kimg/s)": [r"^speed/kimg_per_s$"],
    },
}


def find(name: str) -> Tag | None:
    """Return the table's entry for ``name``, its family's where it has none of its own, or None."""
    family = name.split("/", 1)[0] + "/*"
    return next((tag for wanted in (name, family) for tag in TAGS if tag.name == wanted), None)


def histogram_tag(name: str) -> str:
    """Return the tag under which the histogram of scalar ``name`` is shown: a tag can hold one kind only."""
    group, _, rest = name.partition("/")
    return f"{group}_histogram/{rest}" if rest else f"{group}_histogram"


def metric_label(name: str, stamp: Mapping[str, str]) -> str:
    """Return a metric's full name, as it may stand alone: with extractor (in ``name``), n, split and resizer."""
    known = [f"n={stamp['n_fake']}" if "n_fake" in stamp else "", stamp.get("split", ""), stamp.get("resizer", "")]
    return ", ".join([name, *(words.replace("/", " ") for words in known if words)])
