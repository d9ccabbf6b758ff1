"""What people look at: TensorBoard events, panels as images, and the report page.

The parts load on first use, so that the report needs no TensorBoard and the trainer no matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "TensorBoardSink": "tensorboard_sink",
    "TAGS": "tags",
    "draw_panels": "panels",
    "write_explanation_page": "explanation_page",
    "write_index": "explanation_index",
    "write_panels": "panels",
    "write_report": "report",
    "start_tensorboard": "server",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
