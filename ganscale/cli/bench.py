"""``ganscale bench``: the claims of this project, measured here against named peers."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import note, result, result_json, show_table
from ganscale.cli.params import Name, WholeNumber, json_option
from ganscale.errors import ResourceError, UserError, unknown

ROUNDS, QUICK_ROUNDS = 7, 3


@click.command(cls=Verb)
@click.argument("suite", metavar="[ops]", default="ops", type=Name("suite", ("ops",)))
@click.option("--only", metavar="NAMES", help="Measure these claims alone (commas between them).")
@click.option(
    "--device", metavar="NAME", default="cpu", type=Name("--device", ("cpu", "cuda")), help="cpu (default) or cuda."
)
@click.option("--rounds", type=WholeNumber(1), help=f"Turns of each contender (default {ROUNDS}).")
@click.option("--quick", is_flag=True, help=f"Small shapes, no torch.compile, {QUICK_ROUNDS} rounds.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables to this Markdown file.")
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    suite: str,
    only: str | None,
    device: str,
    rounds: int | None,
    quick: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure what this project claims, here.

    Each line is a ratio against a named peer in the same run, above 1 where ours is better. On the CPU one thread's
    process time counts, on a GPU the device's events. Takes some minutes; --quick one or two. The exit code is 1
    where something could not be measured; a goal that is missed is a result.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is loaded: its profiler chats on every start
    names = _claims(only)
    _refuse_missing(device, out)
    from ganscale.bench import CLAIMS, Settings, measure
    from ganscale.bench.machine import facts, prepare
    from ganscale.bench.writing import COLUMNS, cells, markdown, verdict, words

    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    memory_kept = prepare(device)
    command = _command(only, device, rounds, quick)
    head = facts(device, rounds=rounds, memory_kept=memory_kept, command=command)
    for fact in head.items():
        note(": ".join(fact))
    lines = []
    for line in measure(names, Settings(device=device, rounds=rounds, quick=quick)):
        note(words(line))
        lines.append(line)
    if out is not None:
        summaries = {name: CLAIMS[name].summary for name in names}
        page = markdown(f"Operators against their peers, {device}", head, lines, summaries=summaries)
        out.write_text(page, encoding="utf-8")
    if as_json:
        result_json({"facts": head, "lines": lines})
    else:
        title = "Operators against their peers: peer / ours, above 1 ours is better"
        styles = [{None: "", True: "green", False: "red"}[line.met] for line in lines]
        show_table([COLUMNS, *map(cells, lines)], title=title, styles=styles)
        result(verdict(lines))
    ctx.exit(1 if any(line.failed for line in lines) else 0)


def _claims(only: str | None) -> list[str]:
    from ganscale.bench import CLAIMS

    names = list(CLAIMS) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in CLAIMS:
            raise unknown("--only", name, CLAIMS, error=UserError)
    return names


def _refuse_missing(device: str, out: Path | None) -> None:
    from ganscale import ops

    info = ops.build_info()
    if not info["compiled"]:
        raise ResourceError("bench", "find the compiled core", str(info["reason"]), "install again with a C++ compiler")
    if device == "cuda" and not info.get("cuda_devices"):
        problem = info.get("cuda_problem") or "a core without CUDA kernels"
        raise ResourceError("--device cuda", "find a GPU and CUDA kernels", str(problem), "use --device cpu")
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError("--out", "lie in a folder that exists", str(out), "create it, or choose another")


def _command(only: str | None, device: str, rounds: int, quick: bool) -> str:
    parts = ["ganscale bench ops", *(["--only", only] if only else []), "--device", device, "--rounds", str(rounds)]
    return " ".join([*parts, *(["--quick"] if quick else [])])
