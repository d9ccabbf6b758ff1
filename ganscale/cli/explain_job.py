"""``ganscale explain --submit``: an explanation as a job of a Ray cluster, checked here before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ganscale.cli.jobs import warn
from ganscale.cli.output import note, result, result_json
from ganscale.errors import UserError


def submit_explanation(
    run: Path, method: str, *, own: dict[str, str], address: str | None, as_json: bool, options: dict[str, Any]
) -> None:
    """Send ``ganscale explain`` of ``run`` with ``options`` (by name, as the command line has them) and print its id.

    ``own`` are the method's options, to be tried here. The nodes must see the run under the same path. A classifier
    given as package.module:function travels with the files of this folder. Raises the UserError family before anything
    is sent.
    """
    from ganscale.explain import EXPLAINERS, Target, find_explainer
    from ganscale.explain.base import parse_options
    from ganscale.runtime import jobs
    from ganscale.runtime.explain_all import refuse_short
    from ganscale.runtime.jobs_package import Package, collect

    if method == "all":
        refuse_short(options["budget"])
    else:
        parse_options(find_explainer(method, EXPLAINERS), own)
    Target.parse(options["target"])
    classifier = str(options.get("classifier") or "")
    is_file = Path(classifier).suffix in (".pt", ".onnx", ".pth") or Path(classifier).exists()
    if classifier and is_file and not Path(classifier).is_absolute():
        remedy = "put it on storage that every node sees, and name it as the nodes do"
        raise UserError("--classifier", "be an absolute path for a job", classifier, remedy)
    here = Path.cwd()
    package = collect(here) if ":" in classifier else Package(root=here, files={}, left_out=())
    server = jobs.connect(address, warn=warn)
    if different := jobs.check_versions(server):
        note(f"note: {different}")
    given = {"method": method, **options}
    words = jobs.words_of("explain", given, str(run.absolute()))
    job_id = jobs.new_job_id(f"{run.name}-{method}")
    note(f"command: {' '.join(words)}")
    jobs.submit(server, words, package, job_id=job_id, run=run.name)
    if as_json:
        result_json({"job": job_id, "run": run.name, "address": server.url, "command": words})
        return
    result(job_id)
    note(f"next: ganscale logs -f {job_id}")
