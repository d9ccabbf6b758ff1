"""The job server of a Ray cluster, over HTTP: a request a method, every refusal as one of our errors.

Ray's Jobs REST API is spoken directly. Ray's own client lets RAY_ADDRESS overrule the address that it was given, waits
for an answer without end and takes seconds to import; and jobs need no connection into the cluster (Ray Client).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import requests

from ganscale.errors import GanscaleError, ResourceError, RunFailed, UserError, unknown
from ganscale.runtime.joining import TOKEN_REMEDY
from ganscale.runtime.local import require_token
from ganscale.runtime.placement import Resources

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
PORT = 8265  # of Ray's dashboard, which serves the jobs
CONNECT_S, ANSWER_S, UPLOAD_S = 5.0, 30.0, 300.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job as its cluster tells it; times are ISO 8601 in UTC, ``exit_code`` is that of its own process."""

    id: str
    status: str  # PENDING, RUNNING or one of ENDED
    run: str | None
    command: str
    message: str
    started: str | None
    ended: str | None
    exit_code: int | None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ENDED


def server_url(address: str | None) -> str:
    """Return the URL of the dashboard that ``address`` (HOST, HOST:PORT or URL) means; raises ResourceError.

    Without one: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS where it is a URL of this kind, or this machine.
    """
    said = address or os.environ.get("RAY_API_SERVER_ADDRESS") or ""
    if not said and os.environ.get("RAY_ADDRESS", "").startswith("http"):
        said = os.environ["RAY_ADDRESS"]
    said = said or DEFAULT_ADDRESS
    parts = urlsplit(said if "://" in said else f"http://{said}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.path.strip("/") or parts.query:
        rule = f"be http://HOST:{PORT}, the dashboard of a Ray cluster"
        remedy = "jobs need no Ray Client" if parts.scheme == "ray" else f"for example {DEFAULT_ADDRESS}"
        raise ResourceError("--address", rule, said, remedy)
    host = f"[{host}]" if ":" in host else host
    port = port or (None if "://" in said else PORT)
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def is_loopback(url: str) -> bool:
    """Whether what is sent to ``url`` stays on this machine (or in the tunnel that listens on it)."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def find_token(*, insecure: bool) -> str | None:
    """Return the token for an existing cluster, as Ray looks for it; ``insecure`` allows that there is none.

    Raises UserError where none is found, or where RAY_AUTH_MODE turns authentication off without ``insecure``.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return None if insecure else require_token(create=False)
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    try:
        path = require_token(create=False)
    except UserError:
        if insecure:
            return None
        raise
    token = path.read_text(encoding="utf-8", errors="replace").strip()
    if not token.isascii() or not token.isprintable() or not token:
        got = "an empty file" if not token else "a file that holds something else"
        raise UserError(f"the Ray token in {path}", "be one line of text", got, "copy it from the head node again")
    return token


class JobServer:
    """The job server at ``url``; every method raises ResourceError where nobody answers, UserError for a bad token."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url, self.token = url, token
        self._session = requests.Session()
        self._session.trust_env = not is_loopback(url)  # a proxy knows another localhost

    @property
    def headers(self) -> dict[str, str]:
        """What shows who is asking."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def ray_version(self) -> str:
        """Return the version of Ray on the cluster."""
        answer = self._ask("GET", "/api/version")
        try:
            return str(answer.json()["ray_version"])
        except (ValueError, KeyError, TypeError):
            raise self._not_ray() from None

    def python_version(self) -> str | None:
        """Return the version of Python on the head node; None where the cluster does not tell."""
        return self._data("/api/v0/cluster_metadata").get("pythonVersion")

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that are alive, as Ray describes them."""
        found = self._data("/api/v0/nodes?detail=1&limit=10000").get("result") or {}
        return [node for node in found.get("result") or [] if node.get("state") == "ALIVE"]

    def resources(self) -> Resources:
        """Return what the living nodes have together."""
        totals = [node.get("resources_total") or {} for node in self.nodes()]
        return Resources(
            cpus=int(sum(total.get("CPU", 0) for total in totals)),
            gpus=int(sum(total.get("GPU", 0) for total in totals)),
            memory_bytes=int(sum(total.get("memory", 0) for total in totals)) or None,
            where=f"the cluster at {self.url}",
            nodes=tuple((int(total.get("CPU", 0)), int(total.get("GPU", 0))) for total in totals),
        )

    def jobs(self) -> list[Job]:
        """Return every job that was submitted, the latest first."""
        found = [_job(page) for page in self._ask("GET", "/api/jobs/").json() if page.get("submission_id")]
        return sorted(found, key=lambda job: (job.started or "", job.id), reverse=True)

    def job(self, job_id: str) -> Job:
        """Return one job; raises UserError that names the nearest where there is none of that name."""
        return _job(self._of_job("GET", job_id).json())

    def logs(self, job_id: str) -> str:
        """Return all that the job has printed so far."""
        return self._of_job("GET", job_id, "/logs").json()["logs"] or ""

    def stop(self, job_id: str) -> bool:
        """Ask a job to end; returns whether it was running. Its process gets SIGTERM, and later SIGKILL."""
        return bool(self._of_job("POST", job_id, "/stop").json().get("stopped"))

    def upload(self, name: str, content: bytes) -> str:
        """Store a zip on the cluster unless it is there; returns its URI."""
        path = f"/api/packages/gcs/{name}"
        if self._ask("GET", path, accept=(200, 404)).status_code == 404:  # asking also keeps it there for minutes
            self._ask("PUT", path, data=content, answer_s=UPLOAD_S)
        return f"gcs://{name}"

    def submit(
        self, job_id: str, entrypoint: str, *, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> None:
        """Start a job."""
        request = {"entrypoint": entrypoint, "submission_id": job_id}
        self._ask("POST", "/api/jobs/", json=request | {"runtime_env": runtime_env, "metadata": metadata})

    def _of_job(self, method: str, job_id: str, rest: str = "") -> requests.Response:
        if not job_id.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise UserError("JOB", "be the id of a job", job_id, "see `ganscale list-jobs`")
        answer = self._ask(method, f"/api/jobs/{job_id}{rest}", accept=(200, 404))
        if answer.status_code == 404:
            known = [job.id for job in self.jobs()]
            if not known:
                raise UserError("JOB", "be the id of a job", job_id, f"{self.url} has none; start one: ganscale submit")
            raise unknown("JOB", job_id, known[:20], error=UserError)
        return answer

    def _data(self, path: str) -> dict[str, Any]:
        answer = self._ask("GET", path, accept=(200, 404))
        return answer.json().get("data") or {} if answer.status_code == 200 else {}

    def _ask(
        self, method: str, path: str, *, accept: tuple[int, ...] = (200,), answer_s: float = ANSWER_S, **what: Any
    ) -> requests.Response:
        try:
            answer = self._session.request(
                method,
                self.url + path,
                auth=self._sign,  # not a header: requests would let a line of ~/.netrc take its place
                timeout=(CONNECT_S, answer_s),
                allow_redirects=False,
                **what,
            )
        except requests.RequestException as error:
            raise self._no_answer(error) from None
        if answer.status_code not in accept:
            raise self._refusal(answer)
        return answer

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self.headers)
        return request

    def _refusal(self, answer: requests.Response) -> GanscaleError:
        if answer.status_code == 401:
            return UserError("the Ray token", f"be sent to {self.url}", "none", TOKEN_REMEDY)
        if answer.status_code == 403:
            return UserError("the Ray token", f"be that of the cluster at {self.url}", "another one", TOKEN_REMEDY)
        if answer.status_code == 413:
            return UserError("the upload", "be small enough for the cluster", "too large a package", "use --exclude")
        if answer.status_code in (404, 405) or answer.is_redirect:
            return self._not_ray()
        lines = answer.text.strip().splitlines() or [answer.reason]
        return RunFailed(f"{self.url} answered {answer.status_code}: {lines[-1][:300]}")

    def _not_ray(self) -> ResourceError:
        return ResourceError(
            "--address",
            "be the dashboard of a Ray cluster",
            f"{self.url}, which is another server",
            f"the dashboard's port is {PORT} unless it was chosen otherwise",
        )

    def _no_answer(self, error: requests.RequestException) -> ResourceError:
        tunnel = f"start a cluster, or open a tunnel to one: ssh -L {PORT}:localhost:{PORT} HEAD"
        rule = "be that of a running Ray dashboard"
        return ResourceError("--address", rule, f"{self.url} ({_why(error)})", tunnel)


def _why(error: BaseException) -> str:
    """Return the reason of a failed request in a few words: the innermost error's."""
    words, seen = "no answer", set()
    pending: list[Any] = [error]
    while pending:
        inner = pending.pop()
        if not isinstance(inner, BaseException) or id(inner) in seen:
            continue
        seen.add(id(inner))
        if isinstance(inner, OSError) and inner.strerror and not isinstance(inner, requests.RequestException):
            return inner.strerror
        if isinstance(inner, requests.Timeout):
            words = "no answer in time"
        pending += [inner.__cause__, inner.__context__, getattr(inner, "reason", None), *inner.args]
    return words


def _job(page: Mapping[str, Any]) -> Job:
    return Job(
        id=page["submission_id"],
        status=page["status"],
        run=(page.get("metadata") or {}).get("run"),
        command=page["entrypoint"],
        message=page.get("message") or "",
        started=_time(page.get("start_time")),
        ended=_time(page.get("end_time")),
        exit_code=page.get("driver_exit_code"),
    )


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
