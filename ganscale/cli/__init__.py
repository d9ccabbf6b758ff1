"""The ``ganscale`` command line: one file a verb; heavy modules are imported inside the verbs."""

from __future__ import annotations

import click

from ganscale import __version__
from ganscale.cli.bench import bench
from ganscale.cli.classifier import classifier
from ganscale.cli.dashboard import dashboard
from ganscale.cli.doctor import doctor
from ganscale.cli.evaluate import evaluate
from ganscale.cli.explain import explain
from ganscale.cli.generate import generate
from ganscale.cli.group import VerbGroup
from ganscale.cli.jobs import list_jobs, logs, open_ray_option, status, stop
from ganscale.cli.launch import launch
from ganscale.cli.listing import list_names
from ganscale.cli.plan import plan
from ganscale.cli.report import report
from ganscale.cli.submit import submit
from ganscale.cli.tune import tune

__all__ = ["main"]


@click.group(
    "ganscale", cls=VerbGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="ganscale", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Train generative adversarial networks on one machine or a cluster, and explain what they learned."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _verb in (launch, tune, explain):  # those that start or join a Ray themselves
    open_ray_option(_verb)

_TRAINING = (launch, tune, submit, status, logs, stop, list_jobs)
_RUNS = (generate, evaluate, explain, classifier, report, dashboard)
_MACHINE = (list_names, plan, doctor, bench)
for _verb in (*_TRAINING, *_RUNS, *_MACHINE):
    main.add_command(_verb)
