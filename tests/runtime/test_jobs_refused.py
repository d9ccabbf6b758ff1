"""Jobs without a cluster: addresses, tokens, versions, paths, and what an ended job stands for."""

from __future__ import annotations

import http.server
import json
import platform
import socket
import threading
from contextlib import contextmanager
from importlib import metadata

import click
import pytest

from ganscale.cli import main
from ganscale.config import override
from ganscale.errors import DataError, Interrupted, ResourceError, RunFailed, UserError
from ganscale.presets import preset
from ganscale.runtime import jobs
from ganscale.runtime.jobs_logs import Lines
from ganscale.runtime.jobs_server import Job, JobServer, find_token, is_loopback, server_url

pytestmark = pytest.mark.distributed


@pytest.fixture(autouse=True)
def no_ray_settings(monkeypatch, tmp_path):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (None, "http://127.0.0.1:8265"),
        ("head", "http://head:8265"),
        ("head:99", "http://head:99"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.example.org", "https://ray.example.org"),
        ("http://[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_an_address_may_be_short(said, meant):
    assert server_url(said) == meant


@pytest.mark.parametrize(
    "said", ["ray://head:10001", "http://", "head:port", "http://head/jobs", "http://me:pw@head", "auto://x"]
)
def test_what_is_no_dashboard_is_refused_before_anything_is_sent(said):
    with pytest.raises(ResourceError, match="--address must be http://HOST:8265"):
        server_url(said)


def test_an_address_that_was_given_is_never_overruled_by_the_environment(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://other:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://third:1")
    assert server_url("http://head:8265") == "http://head:8265"
    assert server_url(None) == "http://third:1"
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    assert server_url(None) == "http://other:1"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # of the cluster, not of its dashboard
    assert server_url(None) == "http://127.0.0.1:8265"


def test_a_missing_token_is_refused_with_the_way_to_get_one(tmp_path):
    with pytest.raises(UserError, match=r"the Ray token must be in .*token, got no such file; copy it"):
        find_token(insecure=False)
    assert find_token(insecure=True) is None
    assert list(tmp_path.iterdir()) == []  # none is made up for a cluster that has its own


def test_the_token_is_read_as_ray_reads_it_and_kept_to_its_owner(tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text("0123abcd\n")
    path.chmod(0o644)
    assert find_token(insecure=False) == "0123abcd"
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    assert find_token(insecure=False) == "0123abcd"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-the-environment")
    assert find_token(insecure=False) == "from-the-environment"


@pytest.mark.parametrize("content", ["", "\n", "two\nlines", "schlüssel"])
def test_a_file_that_cannot_be_a_token_is_refused(tmp_path, content):
    (tmp_path / "token").write_text(content)
    with pytest.raises(UserError, match="be one line of text"):
        find_token(insecure=False)


def test_turning_authentication_off_takes_a_word_of_its_own(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UserError, match="RAY_AUTH_MODE must not turn authentication off"):
        find_token(insecure=False)
    assert find_token(insecure=True) is None


class _Cluster(http.server.BaseHTTPRequestHandler):
    """Answers like a dashboard of another version, and remembers what it was asked."""

    asked: list[str]
    pages: dict[str, object]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = json.dumps(self.pages.get(self.path.partition("?")[0], {})).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        self.send_error(500)

    do_PUT = do_POST

    def log_message(self, *words: object) -> None:
        """Stay quiet."""


@contextmanager
def answering(version: str, **pages: object):
    """Yield the address of a dashboard of Ray ``version`` with these pages of its state, and what it is asked."""
    told = {
        "/api/version": {"ray_version": version},
        **{f"/api/v0/{name}": {"data": page} for name, page in pages.items()},
    }
    handler = type("Handler", (_Cluster,), {"asked": [], "pages": told})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.asked
        finally:
            server.shutdown()
            thread.join()


def test_another_ray_is_refused_before_the_upload(tmp_path, monkeypatch, capsys):
    (tmp_path / "token").write_text("0123")
    with answering("2.1.0") as (url, asked), pytest.raises(SystemExit) as ended:
        main(["submit", "--address", url, "--working-dir", str(tmp_path)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"error: Ray must be 2.1.0 as on the cluster at {url}, got {metadata.version('ray')};" in error
    assert error.count("\n") == 1
    assert set(asked) == {"/api/version"}


def test_another_python_is_a_note_to_a_job_which_the_python_over_there_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "token").write_text("0123")
    monkeypatch.chdir(tmp_path)
    here = platform.python_version()
    nodes = {"result": {"result": [{"state": "ALIVE", "resources_total": {"CPU": 2}}]}}
    note = f"note: Python is 3.9.1 on the cluster and {here} here: jobs run, but `launch --address` needs the same"
    for there, notes in (("3.9.1", [note]), (here, [])):
        page = {"cluster_metadata": {"pythonVersion": there}, "nodes": nodes}
        with answering(metadata.version("ray"), **page) as (url, asked), pytest.raises(SystemExit) as ended:
            main(["submit", "--dry-run", "--address", url])
        assert ended.value.code == 0
        assert [line for line in capsys.readouterr().err.splitlines() if "Python" in line] == notes
        assert "/api/v0/cluster_metadata" in asked


def test_a_server_that_is_no_ray_is_told_apart(tmp_path):
    class Other(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            """Stay quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with pytest.raises(ResourceError, match="which is another server"):
                JobServer(f"http://127.0.0.1:{server.server_port}", "t").ray_version()
        finally:
            server.shutdown()
            thread.join()


def test_nobody_there_is_one_line_with_the_reason():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ResourceError, match=r"running Ray dashboard, got http://\S+ \(Connection refused\); start"):
            JobServer(url, "t").ray_version()


def test_a_token_that_crosses_the_network_in_the_clear_is_warned_of_and_one_in_a_tunnel_is_not(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "token").write_text("0123")
    monkeypatch.setenv("NO_PROXY", "*")
    with answering(metadata.version("ray")) as (url, asked):
        abroad = url.replace("127.0.0.1", "0.0.0.0")  # which leads here too, but is not known to
        for address in (abroad, url):
            with pytest.raises(SystemExit) as ended:
                main(["list-jobs", "--address", address])
            assert ended.value.code == 0
    warned = f"warning: the token goes to {abroad} in the clear: whoever listens can run any program on the cluster; "
    assert [line for line in capsys.readouterr().err.splitlines() if "warning" in line] == [warned + TUNNEL]
    assert asked == 2 * ["/api/version", "/api/jobs/"]


TUNNEL = "a tunnel hides it: ssh -L 8265:localhost:8265 HEAD, then --address http://localhost:8265"


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8265", True),
        ("http://127.0.0.1:1", True),
        ("http://127.8.9.1:1", True),
        ("http://[::1]:8265", True),
        ("http://a:1", False),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org:8265", False),
        ("http://[::1:2]:8265", False),
    ],
)
def test_an_address_of_this_machine_is_known_and_one_that_begins_like_it_is_not(url, local):
    assert is_loopback(url) == local


@pytest.mark.parametrize("path", ["faces", "./faces", "../faces", "~/faces"])
def test_data_named_relative_to_here_mean_nothing_over_there(path):
    with pytest.raises(DataError, match="--data must be a built-in set, an absolute path or a URL for a job"):
        jobs.check_paths(override(preset("dcgan-fashion"), {"data.path": path}), None)


@pytest.mark.parametrize("path", ["/shared/faces", "s3://bucket/faces", "fashion-mnist-10k"])
def test_data_that_every_node_can_name_are_taken(path):
    jobs.check_paths(override(preset("dcgan-fashion"), {"data.path": path}), "/shared/runs/x")


def test_a_relative_run_is_refused_for_a_job():
    with pytest.raises(UserError, match="--resume must be an absolute path"):
        jobs.check_paths(preset("dcgan-fashion"), "runs/x")


def test_the_command_of_a_job_asks_launch_for_what_submit_was_asked():
    given = ["--preset", "wgan-gp-fashion", "--gpus", "2", "--kimg", "0.5", "--name", "a b", "--runs-dir", "/r"]
    given += ["--set", "train.batch=32", "--set", "data.path=/it's here", "--verbose"]
    asked = {key: main.commands["submit"].make_context("submit", list(given)).params[key] for key in _RECIPE}
    words = jobs.launch_words({key: value for key, value in asked.items() if key != "dry_run"})
    assert words[:2] == ["ganscale", "launch"]
    done = main.commands["launch"].make_context("launch", words[2:]).params
    assert {key: done[key] for key in _RECIPE} == asked
    assert done["address"] == "auto"


_RECIPE = [
    p.name
    for p in main.commands["launch"].params
    if isinstance(p, click.Option) and p.name not in ("address", "as_json", "insecure")
]


def test_launch_needs_the_same_word_for_a_ray_without_a_token(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--kimg", "0.1", "--name", "x"])
    assert ended.value.code == 2
    assert "error: RAY_AUTH_MODE must not turn authentication off" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*"))
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--insecure", "--dry-run", "--set", "model.width=4"])
    assert ended.value.code == 0
    assert "warning: RAY_AUTH_MODE is disabled: whoever reaches a port" in capsys.readouterr().err


def test_submit_takes_every_option_of_launch():
    assert {p.name for p in main.commands["launch"].params} <= {p.name for p in main.commands["submit"].params}


def test_ids_of_jobs_differ_and_can_stand_in_a_url():
    first, second = (jobs.new_job_id("größer / 2") for _ in range(2))
    assert first != second
    assert first.replace("-", "").isascii()
    assert first.replace("-", "").isalnum()


def job(status: str, code: int | None, message: str = "") -> Job:
    return Job(id="j", status=status, run="r", command="c", message=message, started=None, ended=None, exit_code=code)


@pytest.mark.parametrize(
    ("ended", "kind", "words"),
    [
        (job("STOPPED", None), Interrupted, "was stopped"),
        (job("FAILED", 130), Interrupted, "was stopped"),
        (job("FAILED", 2), UserError, "the last line of its log says why"),
        (job("FAILED", 1), RunFailed, "how to go on"),
        (job("FAILED", 127), RunFailed, "not on the PATH"),
        (job("FAILED", -9), RunFailed, "memory"),
        (job("FAILED", 137), RunFailed, "memory"),
        (job("FAILED", 3), RunFailed, "exit code 3"),
        (job("FAILED", None, "Traceback\n  no such package\n"), RunFailed, "no such package"),
        (job("FAILED", None), RunFailed, "no reason"),
    ],
)
def test_what_a_job_came_to_decides_the_exit_code(ended, kind, words):
    failure = jobs.outcome(ended)
    assert type(failure) is kind
    assert failure.exit_code == {Interrupted: 130, UserError: 2, RunFailed: 1}[kind]
    assert words in str(failure)


def test_a_job_that_is_done_is_no_failure():
    assert jobs.outcome(job("SUCCEEDED", 0)) is None


TEXT = "first\n\nthird, with ümläut\r\nno end"


@pytest.mark.parametrize("size", range(1, len(TEXT) + 1))
def test_lines_do_not_depend_on_how_the_text_was_cut(size):
    lines = Lines()
    got = [line for start in range(0, len(TEXT), size) for line in lines.feed(TEXT[start : start + size])]
    assert got + lines.rest() == ["first", "", "third, with ümläut\r", "no end"]
    assert lines.rest() == []
