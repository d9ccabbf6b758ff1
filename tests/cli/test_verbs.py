"""The verbs on a real run: what they write, what they say, where they say it."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from calls import TINY, call, files_below
from PIL import Image
from ray_head import free_ports

from ganscale.cli.dashboard import find_events
from ganscale.cli.doctor import CHECKS, Check, examine
from ganscale.cli.listing import options_of
from ganscale.cli.progress import Progress, tick_line
from ganscale.errors import UserError
from ganscale.runtime import load
from ganscale.runtime.run import Run

HEADER = {"device", "data", "workers", "batch", "run directory", "parameters", "memory", "disk", "kernels", "penalty"}

TICK = {
    "images": 2000,
    "kimg": 2.0,
    "scalars": {"loss/critic": 1.25, "loss/generator": 0.5},
    "timing": {"kimg_per_s": 0.5, "tick_s": 4.0, "elapsed_s": 4.0},
    "partial": False,
}


def test_a_launch_says_on_stderr_what_it_resolved_and_one_line_a_tick(launched):
    lines = launched[0].stderr.splitlines()
    facts = dict(line.split(": ", 1) for line in lines if ": " in line)
    assert facts.keys() == HEADER
    ticks = [line for line in lines if " of 0.256 kimg, " in line]
    assert [line.split()[0] for line in ticks] == ["0.128", "0.256"]
    assert all("kimg/s" in line and "left" in line and "critic" in line and "generator" in line for line in ticks)


def test_a_launch_says_on_stdout_what_was_written_and_three_next_commands(launched):
    done, run = launched
    first, *rest = done.stdout.splitlines()
    assert first.startswith("wrote ")
    assert {"checkpoints", "config.json", "metrics.jsonl", "samples", "tensorboard"} <= {p.name for p in run.iterdir()}
    assert [line.split("ganscale ")[1].split()[0] for line in rest] == ["generate", "explain", "dashboard"]
    for line in rest:
        assert call(*line.split("ganscale ")[1].split(), "--help").exit_code == 0


def test_a_launch_keeps_its_command_line(launched):
    assert json.loads((launched[1] / "config.json").read_text())["command"][0] == "ganscale"


def test_json_of_a_launch_is_all_of_stdout(tmp_path):
    done = call("launch", "--workers", 0, "--runs-dir", tmp_path, "--kimg", 0.064, "--json", *TINY)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["checkpoints"] == ["kimg-000000.064"]


def test_a_dry_run_prints_config_data_and_placement_and_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("launch", "--dry-run", "--kimg", 1, *TINY)
    assert done.exit_code == 0
    names = {line.split("  ")[0] for line in done.stdout.splitlines()}
    assert {"train.batch", "data", "split", "becomes", "workers", "memory", "disk", "time"} <= names
    assert list(tmp_path.iterdir()) == []


def test_json_of_a_dry_run_holds_config_data_and_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = json.loads(call("launch", "--dry-run", "--json", "--kimg", 1, *TINY).stdout)
    assert page["config"]["train"]["batch"] == 32
    assert page["data"]["train"] + page["data"]["held_out"] == page["data"]["usable"]
    assert page["plan"]["batch_per_worker"] == 32


def test_a_dry_run_of_a_resume_shows_the_directory_that_would_go_on(launched):
    before = files_below(launched[1])
    page = json.loads(call("launch", "--dry-run", "--json", "--resume", launched[1], "--kimg", 1).stdout)
    assert page["plan"]["run_dir"] == str(launched[1])
    assert page["config"]["model"]["width"] == 4  # the run's own settings, not those of the default preset
    assert files_below(launched[1]) == before


@pytest.mark.ray
def test_under_ray_stdout_is_json_and_stderr_our_own_lines_alone(tmp_path):
    options = ["--workers", "1", "--runs-dir", str(tmp_path), "--name", "ray", "--kimg", "0.128", "--json", *TINY]
    command = [sys.executable, "-m", "ganscale", "launch", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(tmp_path / "ray")
    *header, tick = done.stderr.splitlines()
    assert tick.startswith("0.128 of 0.128 kimg, ")
    assert {line.split(":")[0] for line in header} == HEADER


def test_ctrl_c_ends_a_launch_with_130_a_checkpoint_and_the_way_on(tmp_path):
    options = ["--workers", "0", "--runs-dir", str(tmp_path), "--name", "long", "--kimg", "1000", *TINY]
    command = [sys.executable, "-m", "ganscale", "launch", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launch:
        try:
            while "of 1000 kimg" not in launch.stderr.readline():
                assert launch.poll() is None
            launch.send_signal(signal.SIGINT)
            stdout, stderr = launch.communicate(timeout=60)
        finally:
            launch.kill()
    assert (launch.returncode, stdout) == (130, "")
    last = stderr.splitlines()[-1]
    saved = sorted(path.name for path in (tmp_path / "long" / "checkpoints").iterdir())[-1]
    assert last.startswith("interrupted: ")
    assert saved in last
    assert f"--resume {tmp_path / 'long'}" in last


def test_generated_images_depend_on_the_seed_alone(launched, tmp_path):
    made = {}
    for name, seed in {"a": 3, "b": 3, "c": 4}.items():
        done = call("generate", launched[1], "--num", 5, "--seed", seed, "--out", tmp_path / f"{name}.png")
        assert done.stdout.strip() == str(tmp_path / f"{name}.png")
        made[name] = Image.open(tmp_path / f"{name}.png").tobytes()
    assert made["a"] == made["b"]
    assert made["a"] != made["c"]


def test_a_folder_gets_one_file_an_image_at_the_run_s_size(launched, tmp_path):
    done = call("generate", launched[1], "--num", 3, "--out", tmp_path / "images", "--json")
    files = json.loads(done.stdout)["files"]
    assert [Path(file).name for file in files] == ["000000.png", "000001.png", "000002.png"]
    assert {Image.open(file).size for file in files} == {(28, 28)}


def test_a_run_is_found_by_its_name_below_runs(launched, monkeypatch):
    monkeypatch.chdir(launched[1].parent)
    Path("runs").symlink_to(".")
    try:
        assert call("generate", "tiny", "--num", 1, "--json").exit_code == 0
        assert find_events("tiny") == Path("tiny")
    finally:
        Path("runs").unlink()


def test_a_walk_is_one_row_and_other_images_a_square(launched, tmp_path):
    walk, square = tmp_path / "walk.png", tmp_path / "square.png"
    assert call("generate", launched[1], "--num", 9, "--interpolate", "--out", walk).exit_code == 0
    assert call("generate", launched[1], "--num", 9, "--out", square).exit_code == 0
    assert Image.open(walk).size == (9 * 30 + 2, 30 + 2)
    assert Image.open(square).size == (3 * 30 + 2, 3 * 30 + 2)


def test_a_run_or_checkpoint_that_is_not_there_is_refused_with_those_that_are(launched, monkeypatch, expect_refused):
    expect_refused(call("generate", launched[1] / "checkpoints" / "kimg-9"), "kimg-000000.128", "kimg-000000.256")
    monkeypatch.chdir(launched[1].parent)
    Path("runs").symlink_to(".")
    try:
        expect_refused(call("dashboard", "runs/tyni"), "did you mean tiny?")
        expect_refused(call("dashboard", "runs/nope"), "choose one of tiny")
    finally:
        Path("runs").unlink()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("num_sampls", "did you mean num_samples"),
        ("num_coalitons", "did you mean num_coalitions"),
    ],
)
def test_an_argument_that_explain_does_not_know_is_refused_with_the_one_that_was_meant(launched, argument, words):
    with pytest.raises(UserError, match=f"argument of explain must be a known one, got {argument}; {words}"):
        load(launched[1]).explain("kernel-shap", workers=0, **{argument: 4})


def test_an_option_of_the_method_is_an_argument_as_well_but_is_given_once(launched):
    with pytest.raises(UserError, match="kernel-shap option cells must be greater than or equal to 2, got 1"):
        load(launched[1]).explain("kernel-shap", workers=0, cells=1)
    with pytest.raises(UserError, match="option cells must be given once"):
        load(launched[1]).explain("kernel-shap", workers=0, cells=2, options={"cells": 3})


def test_no_option_of_a_method_is_called_like_an_argument_of_explain():
    from ganscale.explain import EXPLAINERS, explain

    taken = {name for called in (Run.explain, explain) for name in inspect.signature(called).parameters}
    assert not [method for method, each in EXPLAINERS.items() if taken & {*each.Options.model_fields}]


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Path:
    """A run on points of the plane, whose evaluation needs no feature extractor."""
    runs = tmp_path_factory.mktemp("points")
    options = ("--kimg", 0.256, "--set", "train.batch=64", "--set", "model.width=8")
    done = call(
        "launch", "--preset", "r3gan-gaussians", "--workers", 0, "--runs-dir", runs, "--name", "points", *options
    )
    assert done.exit_code == 0, done.stderr
    return runs / "points"


def test_points_become_a_scatter_plot_and_never_a_folder(points, tmp_path, expect_refused):
    expect_refused(call("generate", points, "--out", tmp_path / "folder"), "points", ".png")
    assert not (tmp_path / "folder").exists()
    assert call("generate", points, "--out", tmp_path / "points.png").exit_code == 0
    assert Image.open(tmp_path / "points.png").mode == "L"


def test_an_evaluation_prints_each_value_beside_real_and_untrained(points):
    done = call("evaluate", points, "--num", 500, "--untrained")
    assert done.exit_code == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert [word.strip() for word in head.split("  ") if word] == [
        "metric",
        "value",
        "spread",
        "real v real",
        "untrained",
        "better",
    ]
    page = json.loads(call("evaluate", points, "--num", 500, "--untrained", "--json").stdout)
    assert [row.split("  ")[0] for row in rows] == list(page["values"]) == list(page["untrained"])
    assert page["values"]["modes hit"]["floor"] == 25  # real points hit every mode
    assert Path(page["path"]).is_file()


def test_what_was_measured_of_the_first_weights_stays_as_long_as_it_is_measured_alike(points):
    first = json.loads(call("evaluate", points, "--num", 500, "--untrained", "--json").stdout)
    again = json.loads(call("evaluate", points, "--num", 500, "--json").stdout)
    assert first["untrained"]
    assert again["untrained"] == first["untrained"]
    assert json.loads(Path(again["path"]).read_text())["untrained"]
    other = json.loads(call("evaluate", points, "--num", 600, "--json").stdout)
    assert other["untrained"] is None


def test_an_explanation_prints_scores_beside_their_controls(launched):
    options = ("--method", "directions", "--workers", 0, "--num-samples", 2, "--set", "num_directions=2")
    done = call("explain", launched[1], *options)
    assert done.exit_code == 0, done.stderr
    head = done.stdout.splitlines()[0].split()
    assert head == ["score", "value", "margin", "(95", "%)", "control", "wanted", "n", "verdict"]
    page = json.loads(call("explain", launched[1], *options, "--json").stdout)
    assert Path(page["path"]).name == "directions-002"
    assert (Path(page["path"]) / "explanation.json").is_file()
    assert all(score["control"] is not None for score in page["scores"].values())


def test_the_report_names_its_file(launched):
    page = Path(call("report", launched[1]).stdout.strip())
    assert page == launched[1] / "report.html"
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")


@pytest.mark.parametrize("host", [None, "0.0.0.0"])
def test_the_dashboard_answers_where_it_says_warns_of_who_else_could_and_ends_with_ctrl_c(launched, host):
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "ganscale", "dashboard", str(launched[1]), "--port", str(port)]
    command += [] if host is None else ["--host", host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            said = server.stdout.readline()
            if host is None:
                assert f" at http://127.0.0.1:{port}/ " in said
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=30) as page:
                assert b"TensorBoard" in page.read()
            server.send_signal(signal.SIGINT)
            _, error = server.communicate(timeout=30)
        finally:
            server.kill()
    assert server.returncode == 0
    warned = f"warning: TensorBoard has no password: whoever reaches port {port} of this machine sees every run"
    assert (warned in error) == (host is not None), error


@pytest.mark.parametrize("kind", ["presets", "losses", "penalties", "models", "datasets", "explainers", "metrics"])
def test_a_list_says_something_of_each_name_it_knows(kind):
    lines = json.loads(call("list", kind, "--json").stdout)
    assert lines
    assert all(len(line) > 10 for line in lines.values())
    assert [line.split()[0] for line in call("list", kind).stdout.splitlines()] == list(lines)


def test_options_of_every_method_are_listed_with_what_set_takes_and_what_they_are():
    from ganscale.explain import EXPLAINERS
    from ganscale.explain.base import parse_options

    for method, explainer in EXPLAINERS.items():
        found = options_of(method)
        assert list(found) == list(explainer.Options.model_fields)
        for name, option in found.items():
            assert len(option["description"]) >= 8, f"{method} {name}"
            assert option["values"], f"{method} {name}"
        parse_options(explainer, {name: option["default"] for name, option in found.items()})
    rows = call("list", "options", "attack-input").stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["option", *options_of("attack-input")]
    shown = json.loads(call("list", "options", "attack-input", "--json").stdout)["step"]
    assert (shown["default"], shown["values"]) == (0.25, "above 0 to 10")
    assert options_of("lime")["regions"]["values"] == "auto, grid, slic"


def test_what_is_listed_is_what_the_configuration_accepts():
    from ganscale.config import AUTOENCODING_NAMES, LOSS_NAMES, METRIC_NAMES, MODEL_NAMES, PENALTY_NAMES

    for kind, names in {
        "losses": LOSS_NAMES + AUTOENCODING_NAMES,
        "penalties": PENALTY_NAMES,
        "models": MODEL_NAMES,
    }.items():
        assert set(json.loads(call("list", kind, "--json").stdout)) == set(names)
    assert set(json.loads(call("list", "metrics", "--json").stdout)) == set(METRIC_NAMES)


def test_doctor_has_a_line_for_every_check_and_passes_here():
    done = call("doctor", "--json")
    checks = json.loads(done.stdout)
    assert [check["name"] for check in checks] == list(CHECKS)
    assert done.exit_code == (1 if any(check["status"] == "bad" for check in checks) else 0)
    assert all(check["remedy"] for check in checks if check["status"] == "bad")
    # what the package cannot do without
    assert {check["status"] for check in checks if check["name"] in {"python", "torch", "data"}} == {"ok"}


def test_a_check_that_raises_becomes_a_line_of_its_own(monkeypatch):
    monkeypatch.setitem(CHECKS, "torch", lambda: 1 // 0)
    assert examine("torch").status == "bad"
    assert call("doctor").exit_code == 1


def test_doctor_passes_with_notes_alone(monkeypatch):
    for name in list(CHECKS):
        monkeypatch.setitem(CHECKS, name, lambda: Check(name="x", status="note", said="could be better"))
    assert call("doctor").exit_code == 0


def test_a_tick_is_told_in_one_line():
    assert tick_line(TICK, total_kimg=4) == "2 of 4 kimg, 0.50 kimg/s, 4 s left, critic 1.25, generator 0.5"
    assert tick_line(TICK, total_kimg=1.99).startswith("1.99 of 1.99 kimg, ")  # as the last batch went a little beyond


def test_on_a_terminal_a_bar_shows_the_same_words():
    master, slave = os.openpty()
    script = (
        "from ganscale.cli.progress import Progress\n"
        f"with Progress(4) as progress:\n    progress.begin()\n    progress({TICK!r})"
    )
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", script], stderr=slave, check=True, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # how Linux says that the other side of a terminal is closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert "critic 1.25, generator 0.5" in shown.decode()


def test_elsewhere_a_tick_is_one_plain_line(capsys):
    with Progress(4) as progress:
        progress.begin()
        progress(TICK)
    assert capsys.readouterr().err == tick_line(TICK, total_kimg=4) + "\n"
