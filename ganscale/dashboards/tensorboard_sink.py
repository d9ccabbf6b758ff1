"""Writes the trainer's records, evaluations and explanations as TensorBoard events. Steps are images, never iterations.

One process writes a run (rank 0). This package alone imports TensorBoard.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import FileWriter, summary

from ganscale.config import RunConfig
from ganscale.dashboards.enlarging import enlarge
from ganscale.dashboards.tags import LAYOUT, find, histogram_tag, metric_label
from ganscale.training.records import Histogram, Record, SampleRecord, StartRecord, TickRecord

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

_PLUGINS = {"simple_value": "scalars", "histo": "histograms", "image": "images"}
_GRID_SIDE = 320  # CSS pixels to which a small sample grid is enlarged


class TensorBoardSink:
    """A ``Sink`` that appends to the event files in ``log_dir``.

    ``purge_images`` is given on resume: whatever was written after that many images is hidden by TensorBoard, because
    the run goes over that ground again. Use as a context manager, or call ``close``.
    """

    def __init__(self, log_dir: str | Path, purge_images: int | None = None) -> None:
        self._writer = FileWriter(str(log_dir))
        self._last_tick: TickRecord | None = None
        if purge_images is not None:
            # events at the purge step itself are dropped too, and those of the checkpoint's own tick are good
            first_redone = purge_images + 1
            self._writer.add_event(Event(step=first_redone, file_version="brain.Event:2"))
            self._writer.add_event(Event(step=first_redone, session_log=SessionLog(status=SessionLog.START)))
            self._writer.flush()

    def __enter__(self) -> TensorBoardSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, record: Record) -> None:
        """Write one record of the trainer and flush, so that a watcher sees it at once."""
        if isinstance(record, StartRecord):
            self._start(record)
        elif isinstance(record, TickRecord):
            self._tick(record)
        else:
            assert isinstance(record, SampleRecord), type(record)
            self._image("samples/ema", _to_rgb(record.grid), record.images)
            self._overlap()
        self._writer.flush()

    def write_metrics(self, values: Mapping[str, Any], step: int) -> None:
        """Write an evaluation, name -> value with ``value spread floor stamp``: each value beside its floor.

        The tag says extractor, n, split and resizer, its description holds the whole stamp.
        """
        entries = {name: value if isinstance(value, Mapping) else asdict(value) for name, value in values.items()}
        labels = {name: metric_label(name, entry["stamp"]) for name, entry in entries.items()}
        for name, entry in entries.items():
            words = ", ".join(f"{key} {value}" for key, value in entry["stamp"].items())
            for part in ("value", "floor"):
                if entry[part] is not None and np.isfinite(entry[part]):
                    tag = f"evaluation/{labels[name]}/{part}"
                    self._scalar(tag, float(entry[part]), step, description=words)
        from ganscale.dashboards.panels import (
            metric_panel,  # here and below: it loads matplotlib, a start need not wait
        )

        self._image("evaluation_table", metric_panel(entries, title=f"Evaluation at {step / 1000:g} kimg"), step)
        self._writer.flush()

    def write_explanation(
        self, explanation: Explanation, step: int, panels: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Write the panels of one explanation as images, each score beside its control, and codes for the projector.

        ``panels`` are those of ``draw_panels`` where they were drawn already.
        """
        from ganscale.dashboards.panels import draw_panels, with_scores

        method = explanation.method
        drawn = draw_panels(explanation) if panels is None else panels
        for name, panel in with_scores(explanation, drawn).items():
            self._image(f"explanation/{method}/{name}", panel, step)
        for name, score in explanation.scores.items():
            for part in ("value", "control"):
                number = getattr(score, part)
                if number is not None and np.isfinite(number):
                    self._scalar(f"explanation_score/{method}/{name}/{part}", float(number), step)
        if "codes" in explanation.values:
            from ganscale.dashboards.projector import write_codes

            write_codes(explanation, self._writer.get_logdir(), step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is still queued and close the event file."""
        self._writer.close()

    def _start(self, record: StartRecord) -> None:
        self._add(summary.custom_scalars(_charts(LAYOUT)), record.images)
        self._add(summary.text("run/config", _config_table(record.config)), record.images)
        self._add(summary.text("run/facts", _table(record.facts, ("fact", "value"))), record.images)

    def _tick(self, record: TickRecord) -> None:
        named = record.scalars | {f"speed/{name}": value for name, value in record.timing.items()}
        for name, value in named.items():
            self._scalar(name, value, record.images)
        for name, histogram in record.histograms.items():
            if histogram.counts.sum() > 0:
                self._add(_histogram(histogram_tag(name), histogram), record.images)

        self._last_tick = record

    def _overlap(self) -> None:
        """Draw the newest logit histograms over each other, at the pace of the samples: drawing takes its time."""
        tick, self._last_tick = self._last_tick, None
        if tick is not None and {"logits/real", "logits/fake"} <= tick.histograms.keys():
            from ganscale.dashboards.curves import logit_panel

            panel = logit_panel(tick.histograms["logits/real"], tick.histograms["logits/fake"], images=tick.images)
            self._image("logits_overlap", panel, tick.images)

    def _scalar(self, name: str, value: float, step: int, *, description: str | None = None) -> None:
        self._add(summary.scalar(name, value), step, description=description)

    def _image(self, name: str, pixels_HWC: np.ndarray, step: int) -> None:
        self._add(summary.image(name, pixels_HWC, dataformats="HWC"), step)

    def _add(self, written: Summary, step: int, *, description: str | None = None) -> None:
        for value in written.value:
            known = find(value.tag)
            words = description or (known.description if known else None)
            if words:
                value.metadata.summary_description = words
                kind = value.WhichOneof("value")  # metadata without a plugin's name would be taken for an unknown one's
                value.metadata.plugin_data.plugin_name = _PLUGINS.get(kind, value.metadata.plugin_data.plugin_name)
        self._writer.add_summary(written, step)


def _to_rgb(grid: np.ndarray) -> np.ndarray:
    pixels = grid if grid.ndim == 3 else grid[..., None]
    pixels = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
    return enlarge(np.ascontiguousarray(pixels), side=max(_GRID_SIDE, *pixels.shape[:2]))


def _histogram(tag: str, histogram: Histogram) -> Summary:
    """Turn bins into the event's form, without the empty bins at both ends, which would squeeze the picture."""
    filled = np.flatnonzero(histogram.counts)
    counts = np.asarray(histogram.counts[filled[0] : filled[-1] + 1], dtype=np.float64)
    edges = np.asarray(histogram.edges[filled[0] : filled[-1] + 2], dtype=np.float64)
    middles = (edges[:-1] + edges[1:]) / 2  # the values themselves are gone: moments are those of the bins' middles
    return summary.histogram_raw(
        tag,
        min=edges[0],
        max=edges[-1],
        num=counts.sum(),
        sum=(counts * middles).sum(),
        sum_squares=(counts * middles**2).sum(),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
    )


def _charts(layout: Mapping[str, Mapping[str, list[str]]]) -> dict[str, dict[str, list]]:
    return {
        category: {title: ["Multiline", tags] for title, tags in charts.items()} for category, charts in layout.items()
    }


def _config_table(config: RunConfig) -> str:
    rows: dict[str, object] = {}
    for part, values in config.model_dump(mode="json").items():
        rows |= (
            {f"{part}.{key}": value for key, value in _leaves(values)} if isinstance(values, dict) else {part: values}
        )
    return _table(rows, ("key", "value"))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for key, value in values.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found


def _table(rows: Mapping[str, object], head: tuple[str, str]) -> str:
    """Return a Markdown table; what the user wrote is escaped, so that it stays text."""
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    for key, value in rows.items():
        words = html.escape(str(value)).replace("|", "&#124;").replace("\n", " ")
        lines.append(f"| {html.escape(str(key))} | {words} |")
    return "\n".join(lines)
