"""Where a run happens: placement, Ray, failures, the run directory. The only package that imports Ray.

Importing it loads neither torch nor Ray; ``launch``, ``load``, ``plan`` and ``Run`` bring in what they need.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Evaluation", "Plan", "Resources", "Run", "launch", "load", "plan", "this_machine"]

_HOME = {
    "Evaluation": "ganscale.runtime.evaluation",
    "Plan": "ganscale.runtime.placement",
    "Resources": "ganscale.runtime.placement",
    "Run": "ganscale.runtime.run",
    "launch": "ganscale.runtime.launcher",
    "load": "ganscale.runtime.run",
    "plan": "ganscale.runtime.planner",
    "this_machine": "ganscale.runtime.planner",
}


def __getattr__(name: str) -> Any:
    """Load the module that holds ``name`` on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'ganscale.runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
