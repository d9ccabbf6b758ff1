"""How the tests call the command line, and the smallest run that is still one."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner, Result

from ganscale.cli import main

FORM = re.compile(r"^error: .+ must .+, got .+; .+$")
TINY = [
    *("--set", "train.batch=32", "--set", "train.tick_kimg=0.128", "--set", "model.width=4", "--set", "model.latent=8"),
    *("--set", "checkpoint.every_kimg=0.128", "--set", "sample.num=4"),
]


def call(*arguments: object) -> Result:
    """Run the command line in this process; stdout and stderr stay apart."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def files_below(folder: Path) -> dict[str, bytes]:
    """Return name -> content of every file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
