"""README and docs say what is true: their commands parse, their links lead somewhere, their keys and names exist."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

import ganscale
from ganscale.cli import main
from ganscale.cli.listing import KINDS, OPTIONS
from ganscale.config import RunConfig, override, settings_of
from ganscale.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "cluster").rglob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def _blocks(page: Path, language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))


def _commands() -> list[str]:
    lines = {line.strip() for page in PAGES for line in _blocks(page, "bash").splitlines()}
    return sorted(line for line in lines if line.startswith("ganscale "))


@pytest.mark.parametrize("line", _commands())
def test_every_command_in_the_documents_parses(line):
    verb, *arguments = shlex.split(line, comments=True)[1:]
    context = main.commands[verb].make_context(verb, arguments)
    assert context.params.get("preset") in {None, *PRESETS}
    assert context.params.get("kind") in {None, *KINDS, OPTIONS}
    if context.params.get("method"):
        from ganscale.explain import EXPLAINERS

        assert context.params["method"] in {"all", *EXPLAINERS}


def test_every_method_and_every_source_of_directions_has_an_example():
    from ganscale.explain import EXPLAINERS
    from ganscale.explain.latent.directions import DirectionsOptions

    examples = [line for line in _blocks(ROOT / "docs" / "explain.md", "bash").splitlines() if "--method" in line]
    assert {shlex.split(line)[shlex.split(line).index("--method") + 1] for line in examples} >= {*EXPLAINERS}
    sources = get_args(DirectionsOptions.model_fields["by"].annotation)
    assert {by for by in sources if any(f"--set by={by}" in line for line in examples)} == {*sources}


def test_readme_names_every_step_that_a_user_takes():
    verbs = {line.split()[1] for line in _commands()}
    assert verbs >= {"doctor", "launch", "generate", "evaluate", "explain", "dashboard"}


def test_readme_counts_the_presets():
    assert re.findall(r"(\d+) presets", (ROOT / "README.md").read_text()) == [str(len(PRESETS))]


def test_readme_fits_on_one_screen_and_a_bit():
    # one screen of a document page, not of a terminal; growth belongs into docs/
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_python_in_readme_calls_what_exists():
    calls = [node for node in ast.walk(ast.parse(_blocks(ROOT / "README.md", "python"))) if isinstance(node, ast.Call)]
    known = {"launch": ganscale.launch, "generate": ganscale.Run.generate, "explain": ganscale.Run.explain}
    assert {call.func.attr for call in calls} == known.keys()
    for call in calls:
        function = known[call.func.attr]
        receiver = [] if function is ganscale.launch else [None]
        keywords = {keyword.arg: None for keyword in call.keywords}
        inspect.signature(function).bind(*receiver, *call.args, **keywords)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_to_files_and_headings_lead_somewhere(page):
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if "://" not in target and not (file.exists() and (not anchor or anchor in _anchors(file))):
            missing.append(target)
    assert missing == []


def _anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives to the headings of ``page``."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_page_of_settings_lists_every_key_with_its_default():
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]*)` \|", (ROOT / "docs" / "configuration.md").read_text(), re.MULTILINE)
    assert rows == settings_of(RunConfig())


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_that_is_shown_can_be_set(name):
    config = PRESETS[name]()
    assert override(config, [f"{key}={value}" for key, value in settings_of(config)]) == config


def test_the_page_of_the_command_line_names_every_verb():
    page = (ROOT / "docs" / "command-line.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)[ `]", page, re.MULTILINE)) == set(main.commands)


def test_the_changelog_names_the_version():
    assert f"## [{ganscale.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
