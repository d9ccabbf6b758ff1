"""``ganscale status``, ``logs``, ``stop`` and ``list-jobs``: the jobs of a Ray cluster, from anywhere."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import note, result, result_json, table
from ganscale.cli.params import json_option

if TYPE_CHECKING:
    from ganscale.runtime.jobs_server import Job, JobServer

address_option = click.option(
    "--address", metavar="URL", help="The cluster's dashboard (default: http://127.0.0.1:8265)."
)
insecure_option = click.option(
    "--insecure", is_flag=True, help="Go on without a token, where the cluster asks for none."
)


def _accept_open_ray(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from ganscale.runtime.local import open_ray_accepted

        ctx.with_resource(open_ray_accepted())
        if os.environ.get("RAY_AUTH_MODE") == "disabled":
            warn("RAY_AUTH_MODE is disabled: whoever reaches a port of this Ray can run any program, as you")


open_ray_option = click.option(
    "--insecure",
    is_flag=True,
    expose_value=False,
    callback=_accept_open_ray,
    help="Go on where RAY_AUTH_MODE turns Ray's token off.",
)


def warn(text: str) -> None:
    """Say what is open to others."""
    note(f"warning: {text}")


def _connect(address: str | None, insecure: bool) -> JobServer:
    from ganscale.runtime import jobs

    return jobs.connect(address, insecure=insecure, warn=warn)


@click.command(cls=Verb)
@click.argument("job", metavar="[JOB]", required=False)
@address_option
@insecure_option
@json_option
def status(job: str | None, address: str | None, insecure: bool, as_json: bool) -> None:
    """Say how a job is doing.

    Without JOB: what the cluster has, and how many jobs run on it.
    """
    server = _connect(address, insecure)
    facts = _cluster_facts(server) if job is None else _job_facts(server, job)
    if as_json:
        result_json(facts)
    else:
        result(table([(name.replace("_", " "), str(value)) for name, value in facts.items() if value is not None]))


def _cluster_facts(server: JobServer) -> dict[str, Any]:
    has, nodes = server.resources(), server.nodes()
    states = [job.status for job in server.jobs()]
    return {
        "address": server.url,
        "ray": server.ray_version(),
        "python": server.python_version(),
        "nodes": len(nodes),
        "cpus": has.cpus,
        "gpus": has.gpus,
        "jobs_running": states.count("RUNNING"),
        "jobs_waiting": states.count("PENDING"),
        "jobs_ended": sum(state not in ("RUNNING", "PENDING") for state in states),
    }


def _job_facts(server: JobServer, job_id: str) -> dict[str, Any]:
    job = server.job(job_id)
    lines = [line for line in server.logs(job_id).splitlines() if line.strip()]
    return {**_facts(job), "command": job.command, "last_line": lines[-1] if lines else None}


def _facts(job: Job) -> dict[str, Any]:
    from ganscale.runtime.jobs import outcome

    failure = outcome(job) if job.has_ended else None
    code = None if not job.has_ended else 0 if failure is None else failure.exit_code
    return {
        "job": job.id,
        "status": job.status,
        "run": job.run,
        "started": job.started,
        "ended": job.ended,
        "exit_code": code,
        "reason": None if failure is None else str(failure),
    }


@click.command(cls=Verb)
@click.argument("job", metavar="JOB")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends, and end with its exit code.")
@address_option
@insecure_option
@json_option
def logs(job: str, follow: bool, address: str | None, insecure: bool, as_json: bool) -> None:
    """Print what a job has printed.

    With -f it goes on until the job ends; a connection that drops is taken up again.
    """
    server = _connect(address, insecure)
    if not follow:
        text = server.logs(job)
        if as_json:
            result_json({"job": job, "lines": text.splitlines()})
        else:
            for line in text.splitlines():
                result(line)
        return
    from ganscale.runtime.jobs import follow_to_end

    follow_to_end(server, job, lambda line: result(json.dumps({"line": line}) if as_json else line))


@click.command(cls=Verb)
@click.argument("job", metavar="JOB")
@address_option
@insecure_option
@json_option
def stop(job: str, address: str | None, insecure: bool, as_json: bool) -> None:
    """Stop a job; its run writes a checkpoint first."""
    server = _connect(address, insecure)
    from ganscale.runtime import jobs

    before = server.job(job)
    if not before.has_ended:
        note(f"asked {job} to stop; it has {jobs.STOP_S} s to write a checkpoint")
    after = jobs.stop(server, job)
    said = jobs.last_words(server, job)
    if as_json:
        result_json(_facts(after) | {"said": said})
        return
    what = "had ended already" if before.has_ended else "has ended"
    result(f"{job} {what}: {after.status}" + (f"; {said}" if said else ""))


@click.command("list-jobs", cls=Verb)
@address_option
@insecure_option
@json_option
def list_jobs(address: str | None, insecure: bool, as_json: bool) -> None:
    """Name the jobs of a cluster, the latest first."""
    server = _connect(address, insecure)
    found = [_facts(job) for job in server.jobs()]
    if as_json:
        result_json(found)
    elif found:
        head = ("job", "status", "exit_code", "run", "started", "ended")
        rows = [tuple("" if facts[name] is None else str(facts[name]) for name in head) for facts in found]
        result(table([tuple(name.replace("_", " ") for name in head), *rows]))
    else:
        note(f"{server.url} has no jobs; start one: ganscale submit")
