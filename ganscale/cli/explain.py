"""``ganscale explain``: what a run's critic looks at, or which directions its generator knows, with scores."""

from __future__ import annotations

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import note, result, result_json, table
from ganscale.cli.params import Name, WholeNumber, find_run, json_option, run_argument
from ganscale.errors import UserError


@click.command(cls=Verb)
@run_argument
@click.option("--method", metavar="NAME", required=True, help="Which method; see `ganscale list explainers`.")
@click.option("--target", default="critic", show_default=True, help="What to explain: critic, class:K, critic@G, ...")
@click.option(
    "--classifier", metavar="NAME|PATH", help="A data set's name, a file or package.module:function."
)
@click.option(
    "--samples",
    type=Name("kind of samples", ("both", "real", "generated")),
    default="both",
    show_default=True,
    help="Which images.",
)
@click.option("--num-samples", metavar="N", type=WholeNumber(1), default=8, show_default=True, help="How many samples.")
@click.option("--workers", metavar="N", type=WholeNumber(0), default=1, show_default=True, help="0: here, without Ray.")
@click.option("--seed", type=WholeNumber(0), default=0, show_default=True, help="Seed of samples and draws.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="An option of the method; may be repeated.")
@json_option
def explain(
    run: str,
    method: str,
    target: str,
    classifier: str | None,
    samples: str,
    num_samples: int,
    workers: int,
    seed: int,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Explain a run's critic or generator, or a classifier on its images."""
    path = find_run(run)
    options = dict(_key_and_value(text) for text in settings)
    from ganscale.runtime import load

    explained = load(path)
    found = explained.explain(
        method,
        target=target,
        num_samples=num_samples,
        workers=workers,
        seed=seed,
        options=options,
        classifier=classifier,
        samples=samples,
    )
    # one process explains a run at a time: the newest directory of the method is the one just written
    written = max((explained.path / "explanations").glob(f"{method}-*"))
    if as_json:
        result_json(
            {
                "path": written,
                "method": found.method,
                "target": str(found.target),
                "scores": found.scores,
                "meta": found.meta,
            }
            | {"not_better_than_random": found.not_better_than_random}
        )
        return
    rows = [("score", "value", "95 % interval", "control", "better", "n")]
    for name, score in found.scores.items():
        interval = "" if score.low is None or score.high is None else f"{score.low:.4g} to {score.high:.4g}"
        rows.append((name, f"{score.value:.4g}", interval, f"{score.control:.4g}", score.better, str(score.n)))
    result(table(rows))
    if found.not_better_than_random:
        result("not better than random: a primary score does not beat its control")
    note(f"wrote {written}")


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError("--set", "be written key=value", text, "for example --set micro_batch=32")
    return key.strip(), value.strip()
