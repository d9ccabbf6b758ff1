"""``ganscale explain``: a run's critic, its generator or a classifier, by one method or by all, with scores."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import note, result, result_json, table
from ganscale.cli.params import Amount, Duration, Name, Pair, WholeNumber, find_run, json_option, run_argument
from ganscale.cli.progress import Counting
from ganscale.errors import Interrupted, UserError

if TYPE_CHECKING:
    from ganscale.explain import Explanation
    from ganscale.runtime.explain_all import AllMade, Made

ALL = "all"
UNDEFINED = "undefined"
KINDS = Name("kind of samples", ("both", "real", "generated"))


@click.command(cls=Verb)
@run_argument
@click.option("--method", metavar="NAME", required=True, help="Which: see `ganscale list explainers`; all for each.")
@click.option(
    "--target",
    metavar="WHAT",
    default="critic",
    show_default=True,
    help="What to explain: critic, class:K, critic@G, ...",
)
@click.option("--classifier", metavar="NAME|PATH", help="A data set's name, a file or package.module:function.")
@click.option("--classifier-range", metavar="LOW,HIGH", type=Pair(), help="The range of images that it takes.")
@click.option(
    "--samples",
    metavar="KIND",
    type=KINDS,
    default="both",
    show_default=True,
    help="Which images: real, generated or both.",
)
@click.option("--num-samples", metavar="N", type=WholeNumber(1), default=8, show_default=True, help="How many samples.")
@click.option("--workers", metavar="N", type=WholeNumber(0), default=1, show_default=True, help="0: here, without Ray.")
@click.option("--budget", metavar="TIME", type=Duration(), help="Stop after 90s, 10m or 1h, with what is finished.")
@click.option("--rows", metavar="N", type=WholeNumber(1), help="Stop after so many rows through the network.")
@click.option("--width", metavar="X", type=Amount(), help="Stop when no interval is wider than X of the largest share.")
@click.option("--address", metavar="ADDR", help="The Ray cluster to join; with --submit, its dashboard.")
@click.option("--submit", "as_job", is_flag=True, help="Send it to the cluster as a job, and print the job's id.")
@click.option("--seed", type=WholeNumber(0), default=0, show_default=True, help="Seed of samples and draws.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="An option of the method; may be repeated.")
@json_option
def explain(
    run: str,
    method: str,
    classifier: str | None,
    classifier_range: tuple[float, float] | None,
    budget: float | None,
    rows: int | None,
    width: float | None,
    address: str | None,
    as_job: bool,
    settings: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Explain a run's networks, or a classifier.

    Ctrl-C keeps the samples that are finished (exit code 130).
    """
    warnings.filterwarnings("ignore", module=r"ganscale\.explain\.")  # they come back as notes
    path = find_run(run)
    chosen = dict(_key_and_value(text) for text in settings)
    if classifier_range is not None and classifier is None:
        raise UserError("--classifier-range", "come with --classifier", "none", "name the classifier")
    if method == ALL and (chosen or rows is not None or width is not None):
        raise UserError("--method all", "come without --set, --rows and --width", "one of them", "use --budget")
    if as_job:
        from ganscale.cli.explain_job import submit_explanation

        options |= {"classifier": classifier, "classifier_range": classifier_range, "settings": settings}
        options |= {"budget": budget, "rows": rows, "width": width}
        submit_explanation(path, method, own=chosen, address=address, as_json=as_json, options=options)
        return
    with Counting() as shown:
        from ganscale.explain import Limits
        from ganscale.runtime import load

        explained = load(path)
        options["address"] = address
        if classifier is not None:
            from ganscale.runtime.classifiers import find_classifier

            options["classifier"] = find_classifier(classifier, explained.config.data, value_range=classifier_range)
        if method != ALL:
            limits = Limits(seconds=budget, rows=rows, width=width)
            found = explained.explain(method, options=chosen, limits=limits, on_progress=shown, **options)
    if method == ALL:
        from ganscale.runtime.explain_all import explain_all

        _show_all(explain_all(explained, budget=budget, say=note, **options), as_json)
        return
    # one process explains a run at a time: the newest directory of the method is the one just written
    _show(found, max((explained.path / "explanations").glob(f"{method}-*")), as_json)


def _show(found: Explanation, written: Path, as_json: bool) -> None:
    if as_json:
        facts = {"path": written, "method": found.method, "target": str(found.target), "scores": found.scores}
        result_json(facts | {"meta": found.meta, "not_better_than_random": found.not_better_than_random})
    else:
        rows = [("score", "value", "margin (95 %)", "control", "wanted", "n", "verdict")]
        for name, score in found.scores.items():
            known = score.margin is not None and math.isfinite(score.margin)
            margin = f"±{score.margin:.3g} {score.margin_of}" if known else ""
            control = _shown(score.control)
            rows.append((name, _shown(score.value), margin, control, score.better, str(score.n), score.verdict))
        result(table(rows))
        if any(row[1] == UNDEFINED for row in rows):
            result("undefined: the score divides by zero, as where the output or the map is the same everywhere")
        if found.not_better_than_random:
            result(found.meta.get("banner", "not better than random: a primary score does not beat its control"))
        for words in found.meta["warnings"]:
            note(f"note: {words}")
        note(f"wrote {written}; its page is explanation.html there")
    if found.meta.get("stopped", {}).get("reason") == "interrupted":
        raise Interrupted(f"the explanation was stopped; what was finished is in {written}")


def _shown(number: float) -> str:
    return f"{number:.4g}" if math.isfinite(number) else UNDEFINED


def _show_all(found: AllMade, as_json: bool) -> None:
    if as_json:
        made = [_facts(one) for one in found.made]
        result_json({"made": made, "report": found.report, "seconds": found.seconds, "budget": found.budget})
    else:
        rows = [("method", "samples", "than chance", "deciding score v control")]
        rows += [_row(one) for one in found.made if one.explanation is not None]
        result(table(rows))
        left_out: dict[str, list[str]] = {}
        for one in found.made:
            if one.explanation is None:
                left_out.setdefault(one.reason or "interrupted", []).append(one.method)
        for reason, methods in left_out.items():
            result(f"{', '.join(methods)}: left out: {reason}")
        of = "" if found.budget is None else f" of {found.budget:.0f} s"
        note(f"{found.seconds:.0f} s{of}; wrote {found.report}")
    if found.interrupted:
        raise Interrupted(f"the explanations were stopped; what was finished is in {found.report}")


def _row(made: Made) -> tuple[str, ...]:
    found = made.explanation
    name = next(iter(found.meta.get("primary") or found.scores))
    score = found.scores[name]
    return made.method, made.held(), found.verdict, f"{name} {_shown(score.value)} v {_shown(score.control)}"


def _facts(made: Made) -> dict[str, Any]:
    if made.explanation is None:
        return {"method": made.method, "left_out": made.reason or "interrupted"}
    found = made.explanation
    facts = {"method": made.method, "path": made.path, "samples": made.asked, "seconds": made.seconds}
    return facts | {"scores": found.scores, "not_better_than_random": found.not_better_than_random}


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError("--set", "be written key=value", text, "for example --set micro_batch=32")
    return key.strip(), value.strip()
