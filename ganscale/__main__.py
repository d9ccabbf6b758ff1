"""``python -m ganscale`` is the ``ganscale`` command."""

from __future__ import annotations

from ganscale.cli import main

if __name__ == "__main__":
    main(prog_name="ganscale")
