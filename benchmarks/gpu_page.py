"""Write the page of a GPU check from the logs of its stages: ``python benchmarks/gpu_page.py LOGS [PAGE]``."""

from __future__ import annotations

import datetime
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

STAGES = ("build", "tests", "memcheck", "racecheck", "initcheck", "synccheck", "bench")
# what the last words of a stage look like: pytest's count, the sanitizers' verdict, the count of goals
VERDICTS = (
    r"=*\s*((?:\d+ \w+,? ?)+ in [\d.]+s.*?)\s*=*$",
    r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)$",
    r"(\d+ of \d+ goals met, \d+ lines.*)$",
    r"(error: .*)$",
    r"=+ (Error: .*)$",
)


def machine() -> dict[str, str]:
    """Return what the check ran on; "unknown" for what cannot be asked here."""
    facts = {"date": datetime.date.today().isoformat(), "command": "make gpu-check"}
    try:
        import torch

        facts["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        facts["versions"] = f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}"
    except ImportError:
        facts["device"], facts["versions"] = "unknown", f"Python {platform.python_version()}"
    facts["driver"] = _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    facts["nvcc"] = _said(["nvcc", "--version"])
    return facts


def _said(command: list[str]) -> str:
    """Return the last line that a command prints, or "unknown"."""
    if shutil.which(command[0]) is None:
        return "unknown"
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "unknown")


def stage_row(logs: Path, stage: str) -> str:
    """Return a stage's line of the table: its status, seconds and last words."""
    record = logs / f"{stage}.status"
    if not record.is_file():
        return f"| {stage} | not run | | |"
    status, seconds = record.read_text().split()
    found = []
    for line in (logs / f"{stage}.log").read_text(errors="replace").splitlines():
        found += [match.group(1) for pattern in VERDICTS if (match := re.search(pattern, line.strip()))]
    said = "; ".join(dict.fromkeys(found[-2:])).replace("|", "\\|")
    return f"| {stage} | {'passed' if status == '0' else f'FAILED ({status})'} | {seconds} s | {said} |"


def page(logs: Path, facts: dict[str, str]) -> str:
    """Return the whole page."""
    lines = [f"# GPU check: {facts['device']}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += [
        "| stage | result | time | said |",
        "|---|---|---|---|",
        *(stage_row(logs, stage) for stage in STAGES),
        "",
    ]
    lines += [f"    {line}" for line in resources(logs)]
    bench = logs / "bench.md"
    if bench.is_file():
        lines += ["", bench.read_text().replace("\n## ", "\n### ").replace("# ", "## ", 1)]
    return "\n".join(lines).rstrip() + "\n"


def resources(logs: Path) -> list[str]:
    """Return the kernels that spill registers, as ptxas saw them while it built."""
    log = logs / "build.log"
    if not log.is_file():
        return []
    text = log.read_text(errors="replace")
    kernels = re.findall(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads", text, re.S
    )
    spilling = [f"{name} ({arch}): {stores} bytes spilled" for name, arch, stores, _ in kernels if stores != "0"]
    return [f"{len(kernels)} kernels compiled, {len(spilling)} of them spill registers", *spilling] if kernels else []


def main(logs: Path, target: Path | None) -> None:
    """Write the page to ``target``, or to the folder of results under the device's name."""
    facts = machine()
    name = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    target = target or Path("docs/results") / f"gpu-{name}.md"
    target.write_text(page(logs, facts), encoding="utf-8")
    print(f"# the page: {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
