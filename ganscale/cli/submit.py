"""``ganscale submit``: a launch as a job of a Ray cluster, checked here before anything is sent."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ganscale.cli.group import Verb
from ganscale.cli.jobs import address_option, insecure_option, warn
from ganscale.cli.launch import recipe_options
from ganscale.cli.output import note, result, result_json
from ganscale.cli.params import json_option

if TYPE_CHECKING:
    from ganscale.config import RunConfig
    from ganscale.runtime.jobs_package import Package
    from ganscale.runtime.jobs_server import JobServer

PACKAGING = (
    click.option("--working-dir", metavar="DIR", default=".", help="What the job takes along (default: this folder)."),
    click.option("--exclude", metavar="PATTERN", multiple=True, help="Leave these files at home; may be repeated."),
    click.option("--wait", is_flag=True, help="Show the job's log, and end with the job's exit code."),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Order:
    """What will be asked of the cluster."""

    job_id: str
    run: str
    words: list[str]
    package: Package
    placement: dict[str, str]


def _packaging_options(function: Any) -> Any:
    for option in reversed(PACKAGING):
        function = option(function)
    return function


@click.command(cls=Verb)
@recipe_options
@address_option
@_packaging_options
@insecure_option
@json_option
def submit(
    address: str | None,
    working_dir: str,
    exclude: tuple[str, ...],
    wait: bool,
    insecure: bool,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Send a launch to a Ray cluster as a job."""
    from ganscale.runtime import jobs

    config = _config(options)
    server = jobs.connect(address, insecure=insecure, warn=warn)
    if different := jobs.check_versions(server):
        note(f"note: {different}")
    order = _order(server, config, options, working_dir, exclude)
    _show(server, order)
    if dry_run:
        facts = {"job": None, "address": server.url, "command": order.words, "upload": _upload_facts(order.package)}
        result_json(facts) if as_json else result("nothing was sent (--dry-run)")
        return
    jobs.submit(server, order.words, order.package, job_id=order.job_id, run=order.run)
    if not as_json:
        result(order.job_id)
    if wait:
        _follow(server, order.job_id)
    else:
        note(f"next: ganscale logs -f {order.job_id}")
    if as_json:
        facts = {"job": order.job_id, "run": order.run, "address": server.url, "command": order.words}
        result_json(facts | {"upload": _upload_facts(order.package)})


def _config(options: dict[str, Any]) -> RunConfig | None:
    """Return the config that the job will train; None where it goes on in a run that cannot be seen from here."""
    from ganscale.presets import compose
    from ganscale.runtime.jobs import check_paths

    base, resume = None, options["resume"]
    given = {key: options[key] for key in ("data", "kimg", "settings")}
    if resume is not None:
        from ganscale.runtime.resume import config_to_resume

        resume = options["resume"] = _as_nodes_see(resume, options["runs_dir"])
        if not (Path(resume) / "config.json").is_file():
            check_paths(compose(options["preset"], **given), resume)
            return None
        base = config_to_resume(resume)
    config = compose(options["preset"], base=base, **given)
    check_paths(config, resume)
    return config


def _as_nodes_see(run: str, runs_dir: str) -> str:
    """Return the path of ``run`` in full where it is one of this machine, which the nodes may share."""
    for path in (Path(run), Path(runs_dir) / run):
        if path.is_dir():
            return str(path.absolute())
    return run


def _order(
    server: JobServer, config: RunConfig | None, options: dict[str, Any], working_dir: str, exclude: tuple[str, ...]
) -> _Order:
    from ganscale.runtime import jobs
    from ganscale.runtime.jobs_package import collect

    if "://" not in options["runs_dir"]:  # the job's own directory goes away with it
        options["runs_dir"] = str(Path(options["runs_dir"]).absolute())
    keep_out = [Path(options["runs_dir"])]
    placement = {}
    if config is not None:
        workers = 1 if options["workers"] is None else options["workers"]
        plan = jobs.check_fits(server, config, {"workers": workers, "gpus": options["gpus"], "cpus": options["cpus"]})
        placement = plan.lines()
        keep_out.append(Path(config.data.path))
    if options["resume"] is not None:
        run = Path(options["resume"]).name
        job_id = jobs.new_job_id(run)
    else:
        job_id = jobs.new_job_id(options["name"] or config.preset)
        # a name of its own, as the runs that are there already cannot be seen from here
        run = options["name"] = options["name"] or job_id.removeprefix("ganscale-")
    package = collect(Path(working_dir), exclude=exclude, keep_out=keep_out)
    package.check()
    return _Order(job_id=job_id, run=run, words=jobs.launch_words(options), package=package, placement=placement)


def _show(server: JobServer, order: _Order) -> None:
    note(f"cluster: {server.url}")
    for name, value in order.placement.items():
        note(f"{name}: {value}")
    first, *rest = order.package.lines()
    note(f"upload: {first}")
    for line in rest:
        note(line)
    note(f"command: {' '.join(order.words)}")


def _upload_facts(package: Package) -> dict[str, Any]:
    return {"from": package.root, "bytes": package.size, "files": package.files, "left_out": package.left_out}


def _follow(server: JobServer, job_id: str) -> None:
    from ganscale.runtime.jobs import follow_to_end

    follow_to_end(server, job_id, note)
