"""The image: linted, pinned, without root, without a compiler, and copying only what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"
HADOLINT = Path(sys.executable).parent / "hadolint"


def lint(text: str) -> list[str]:
    done = subprocess.run([HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, its words) in order, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(index for index, (name, _) in enumerate(found) if name == "FROM") :]


needs_hadolint = pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is not installed (the test extra has it)")


@needs_hadolint
def test_the_linter_has_nothing_to_say():
    assert lint(DOCKERFILE.read_text()) == []


@needs_hadolint
@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("nvidia/cuda:13.0.1-devel-ubuntu24.04", "nvidia/cuda", "DL3006"),
        ("nvidia/cuda:13.0.1-devel-ubuntu24.04", "nvidia/cuda:latest", "DL3007"),
        ("--no-install-recommends ", "", "DL3015"),
        ("WORKDIR /src", "WORKDIR src", "DL3000"),
        ("COPY --from=build", "COPY --from=built", "DL3022"),
        ("RUN apt-get update \\", "RUN sudo apt-get update \\", "DL3004"),
    ],
)
def test_the_linter_would_see_it(old, new, rule):
    text = DOCKERFILE.read_text()
    assert old in text
    assert any(rule in line for line in lint(text.replace(old, new, 1)))


def test_it_has_a_stage_that_compiles_and_one_that_does_not():
    stages = [words for name, words in instructions() if name == "FROM"]
    assert [("devel" in stage, " AS " in stage) for stage in stages] == [(True, True), (False, False)]
    installed = " ".join(words for name, words in final_stage() if name == "RUN")
    assert not re.search(r"\b(g\+\+|gcc|build-essential|python3-dev|cmake)\b", installed)


def test_both_stages_have_the_same_system_so_that_the_environment_can_move():
    versions = {
        re.search(r"cuda:([\d.]+)-\w+-(ubuntu[\d.]+)", words).groups()
        for name, words in instructions()
        if name == "FROM"
    }
    assert len(versions) == 1


def test_it_runs_as_a_user_whose_number_kubernetes_can_check():
    user = [words for name, words in final_stage() if name == "USER"][-1]
    assert user.isdecimal()
    assert int(user) >= 1000
    added = next(words for name, words in final_stage() if "useradd" in words)
    assert f"--uid {user} " in added
    for manifest in (ROOT / "cluster" / "kuberay").glob("ray*.yaml"):
        assert f"runAsUser: {user}," in manifest.read_text()


def test_torch_is_the_one_that_was_tested():
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)
    assert f"torch=={pinned}\n" in DOCKERFILE.read_text()
    assert metadata.version("torch").split("+")[0] == pinned


def test_everything_that_is_copied_is_there_and_reaches_the_builder():
    allowed = [
        line[1:] for line in (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    copied = [
        source
        for name, words in instructions()
        if name == "COPY" and "--from" not in words
        for source in words.split()[:-1]
    ]
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / source).exists() for source in copied)


def test_a_ray_in_the_image_asks_for_a_token():
    assert any(name == "ENV" and "RAY_AUTH_MODE=token" in words for name, words in final_stage())


def test_the_image_is_refused_without_its_kernels():
    (check,) = [words for name, words in final_stage() if "build_info" in words]
    assert "info['compiled'] and info['cuda']" in check
