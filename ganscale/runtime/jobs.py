"""Launches as jobs of a Ray cluster: checked here, sent there, followed and stopped from anywhere.

A job runs ``ganscale launch`` on the head node. Stopping it sends that process SIGTERM, which it takes as it takes
Ctrl-C: a checkpoint is written first. The cluster kills it ``STOP_S`` later.
"""

from __future__ import annotations

import platform
import re
import shlex
import time
import uuid
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ganscale.config import RunConfig
from ganscale.errors import DataError, GanscaleError, Interrupted, RunFailed, UserError
from ganscale.runtime.jobs_logs import follow
from ganscale.runtime.jobs_package import Package
from ganscale.runtime.jobs_server import Job, JobServer, find_token, is_loopback, server_url
from ganscale.runtime.placement import Plan, place

STOP_S = 30  # for the checkpoint, between being asked to stop and being killed
END_S = 10.0  # beyond it, for the cluster to notice
POLL_S = 0.5
OURS = (0, 1, 2, 130)  # exit codes of ganscale


def connect(address: str | None, *, insecure: bool = False, warn: Callable[[str], None] | None = None) -> JobServer:
    """Return the job server at ``address``, whose answer and token were tried; raises as JobServer does.

    ``warn`` is told what an observer of the network could do.
    """
    url = server_url(address)
    token = find_token(insecure=insecure)
    if warn is not None and token is None:
        warn(f"no token: whoever reaches {url} can run any program on the cluster, as the user who started Ray")
    if warn is not None and token is not None and url.startswith("http:") and not is_loopback(url):
        warn(
            f"the token goes to {url} in the clear: whoever listens can run any program on the cluster; "
            "a tunnel hides it: ssh -L 8265:localhost:8265 HEAD, then --address http://localhost:8265"
        )
    server = JobServer(url, token)
    server.ray_version()
    return server


def check_versions(server: JobServer) -> str | None:
    """Raise UserError unless the cluster has our Ray; return a note where its Python is another one.

    The job itself is run by the Python over there. A difference matters to `ganscale launch --address`, which joins
    the cluster.
    """
    ours, theirs = metadata.version("ray"), server.ray_version()
    if theirs != ours:
        remedy = f"install ray=={theirs} here, or start the cluster with {ours}"
        raise UserError("Ray", f"be {theirs} as on the cluster at {server.url}", ours, remedy)
    here, there = platform.python_version(), server.python_version()
    if there is None or here == there:
        return None
    return f"Python is {there} on the cluster and {here} here: jobs run, but `launch --address` needs the same"


def check_fits(server: JobServer, config: RunConfig, placement: dict[str, Any]) -> Plan:
    """Return where the workers would run; raises ResourceError with the numbers where the cluster has too little."""
    return place(config, server.resources(), **placement)


def check_paths(config: RunConfig, resume: str | None) -> None:
    """Raise DataError or UserError for a path that means nothing on another machine."""
    from ganscale.data import DATASETS  # here, because it loads torch

    path = config.data.path
    if path not in DATASETS and "://" not in path and not Path(path).is_absolute():
        remedy = "put the data on storage that every node sees, and name it as the nodes do"
        raise DataError("--data", "be a built-in set, an absolute path or a URL for a job", path, remedy)
    if resume is not None and "://" not in resume and not Path(resume).is_absolute():
        remedy = "name it as the nodes of the cluster do"
        raise UserError("--resume", "be an absolute path for a job", resume, remedy)


def launch_words(options: dict[str, Any]) -> list[str]:
    """Return the command that does on the cluster what ``options`` (those of ``launch``, by name) ask for."""
    return words_of("launch", options)


def words_of(verb: str, options: dict[str, Any], *arguments: str) -> list[str]:
    """Return the command of a verb that joins the cluster it runs on; ``options`` by name."""
    words = ["ganscale", verb, *arguments, "--address", "auto"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "settings":
            words += [word for text in value for word in ("--set", text)]
        elif value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            words += [flag, ",".join(f"{number:g}" for number in value)]
        elif value is not None and value is not False:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return words


def new_job_id(run: str) -> str:
    """Return an id for a job that trains ``run``; no two are equal."""
    return f"ganscale-{re.sub('[^A-Za-z0-9_.]+', '-', run).strip('-') or 'run'}-{uuid.uuid4().hex[:8]}"


def submit(server: JobServer, words: Sequence[str], package: Package, *, job_id: str, run: str) -> None:
    """Send ``package`` and start ``words`` as a job in it; raises UserError where the package is too large."""
    package.check()
    runtime_env: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}}
    if package.files:
        runtime_env["working_dir"] = server.upload(*package.zip())
    facts = {"run": run, "ganscale": metadata.version("ganscale")}
    server.submit(job_id, shlex.join(words), runtime_env=runtime_env, metadata=facts)


def follow_to_end(server: JobServer, job_id: str, on_line: Callable[[str], object]) -> None:
    """Hand the lines of a job's log to ``on_line`` until it ends; then raise what the job came to, unless it is done.

    Raises Interrupted on Ctrl-C, also in the midst of ``on_line``, which ends the following and not the job.
    """
    try:
        for line in follow(server, job_id):
            on_line(line)
    except KeyboardInterrupt:
        words = f"no longer watching {job_id}, which goes on: ganscale logs -f {job_id}, or ganscale stop {job_id}"
        raise Interrupted(words) from None
    failure = outcome(server.job(job_id))
    if failure is not None:
        raise failure


def stop(server: JobServer, job_id: str) -> Job:
    """Stop a job, which writes a checkpoint first, and return what became of it; raises RunFailed if it goes on."""
    deadline = time.monotonic() + STOP_S + END_S
    if server.job(job_id).has_ended:
        return server.job(job_id)
    server.stop(job_id)
    while not (job := server.job(job_id)).has_ended:
        if time.monotonic() > deadline:
            raise RunFailed(f"{job_id} was asked to stop and still is {job.status}; see ganscale logs {job_id}")
        time.sleep(POLL_S)
    return job


def last_words(server: JobServer, job_id: str) -> str | None:
    """Return the last line that ``launch`` itself printed about its end (what was saved, how to go on), if any."""
    lines = [line for line in server.logs(job_id).splitlines() if line.startswith(("interrupted: ", "error: "))]
    return lines[-1] if lines else None


def outcome(job: Job) -> GanscaleError | None:
    """Return the error that a job which has ended stands for, with its exit code; None where it is done."""
    if job.status == "SUCCEEDED":
        return None
    if job.status == "STOPPED" or job.exit_code == Interrupted.exit_code:
        return Interrupted(f"{job.id} was stopped; its last lines say what was saved")
    if job.exit_code == UserError.exit_code:
        remedy = "the last line of its log says why"
        return UserError(f"the launch of {job.id}", "be one that the cluster can do", "a refusal", remedy)
    return RunFailed(f"{job.id} {_failure(job)}")


def _failure(job: Job) -> str:
    code = job.exit_code
    if code == 127:
        remedy = "start Ray from the environment that holds ganscale"
        return f"did not start: ganscale is not on the PATH of Ray on the head node; {remedy}"
    if code in (-9, 137):
        return "was killed on the head node, most likely for want of memory"
    if code in OURS:
        return "failed; the last line of its log says why and how to go on"
    if code is not None:
        return f"ended with exit code {code}; see its log"
    lines = [line for line in job.message.strip().splitlines() if line.strip()]
    return f"failed on the cluster: {lines[-1][:300] if lines else 'it gave no reason'}"
