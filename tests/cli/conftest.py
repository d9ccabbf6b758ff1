"""A real run, as small as one can be, that all tests of the verbs share, and what it is to be refused."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calls import FORM, TINY, call
from click.testing import Result
from explaining import MODULE


@pytest.fixture(scope="session", autouse=True)
def _cache_of_our_own(tmp_path_factory) -> Iterator[None]:
    """Keep what is trained once and cached (the classifier of an evaluation) out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANSCALE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def expect_refused() -> Callable[..., None]:
    """Assert exit 2, nothing on stdout, one line on stderr in the form of the contract that holds all ``words``."""

    def check(done: Result, *words: str) -> None:
        assert done.exit_code == 2, (done.output, done.exception)
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        assert FORM.match(lines[0]), done.stderr
        for word in words:
            assert word in lines[0]

    return check


@pytest.fixture(scope="session")
def launched(tmp_path_factory) -> tuple[Result, Path]:
    """What a launch in this process said, and the run directory that it left."""
    runs = tmp_path_factory.mktemp("runs")
    done = call("launch", "--workers", 0, "--name", "tiny", "--runs-dir", runs, "--kimg", 0.256, *TINY)
    assert done.exit_code == 0, (done.output, done.exception)
    return done, runs / "tiny"


@pytest.fixture
def run(launched, tmp_path) -> Path:
    """A run of this test's own, without explanations."""
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(launched[1], copy, ignore=shutil.ignore_patterns("generated", "explanations", "tensorboard"))
    return copy


@pytest.fixture
def user_module(tmp_path, monkeypatch) -> Iterator[None]:
    """Work in a directory that holds ``my_rules``, a user's own module."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "my_rules.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path / "here")
    yield
    sys.modules.pop("my_rules", None)
