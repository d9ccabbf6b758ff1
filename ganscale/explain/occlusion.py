"""Occlusion (Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2): how f falls while a window is hidden.

A pixel's value is the mean fall over the windows that cover it. Windows at the edge are cut off, so that every pixel is
covered. Where small windows are hidden one at a time a network goes by what is left around them, and their order says
little about what goes when more and more is hidden: on garments of 28 pixels a side windows of 4 ranked cells worse
than random in 3 to 8 % of the images, windows of 7 in one of 320.

Legend: N samples, M players, V windows, P pixels or features.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale import ops
from ganscale.explain.attribution import AttributionExplainer, AttributionOptions, Maps
from ganscale.explain.base import Meter
from ganscale.explain.errors import ExplainOptionError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.subject import Subject, are_images

ROWS_A_CHUNK = 512


class OcclusionOptions(AttributionOptions):
    """The window and its way. Vectors have one window a feature."""

    window: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        "auto", description="side of the window in pixels; auto: a quarter of the picture's"
    )
    stride: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        "auto", description="pixels from one window to the next, at most the window; auto: half of it"
    )


class Occlusion(AttributionExplainer):
    """What f loses with each window."""

    name = "occlusion"
    summary = "what f loses while a window over the picture is hidden, averaged over the windows that cover a pixel"
    Options = OcclusionOptions
    options: OcclusionOptions
    weighs = "pixels"

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        self.masks = self._windows()  # bool [V, H, W], or [V, D]: what each window hides

    def first_round(self) -> list[Chunk]:
        """Return chunks of several whole samples, or of a part of one's windows where there are many."""
        windows, together = range(0, len(self.masks), ROWS_A_CHUNK), max(1, ROWS_A_CHUNK // (2 + len(self.masks)))
        places = [(row, part, start) for row in range(0, len(self.x), together) for part, start in enumerate(windows)]
        return [
            Chunk(round=0, index=index, explanation=row, part=part, work={"start": start, "samples": together})
            for index, (row, part, start) in enumerate(places)
        ]

    def attribute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return of each of a chunk's samples the summed falls over each pixel [n, P], and f at both ends [n]."""
        samples = slice(chunk.explanation, chunk.explanation + chunk.work["samples"])
        x, baseline = self.x[samples], self.baseline[samples]
        windows = range(len(self.masks))[chunk.work["start"] :][:ROWS_A_CHUNK]
        y = self._by_patches(x, baseline, windows, meter)
        if y is None:
            y = self._by_rows(x, baseline, windows, meter)
        hidden = self.masks[windows.start : windows.stop].flatten(1).double()
        return {"sum": (y[:, :1] - y[:, 2:]) @ hidden, "full": y[:, 0], "empty": y[:, 1]}

    def _by_rows(self, x: Tensor, baseline: Tensor, windows: range, meter: Meter) -> Tensor:
        """Return f of each sample, of what stands for it where all is hidden, and behind each window [n, 2 + V]."""
        hidden = self.masks[windows.start : windows.stop]
        none, all_ = torch.zeros_like(hidden[:1]), torch.ones_like(hidden[:1])
        gone = torch.cat([none, all_, hidden])  # the rows of one sample: the ends, then the windows
        table = gone.to(x.dtype)
        table = table[:, None] if x.ndim == 4 and table.ndim == 3 else table.reshape(-1, *x.shape[1:])
        drawn = None if self.inpainting is None else [self._best(one, gone) for one in x]

        def build(part: slice) -> Tensor:
            rows, start = [], part.start
            while start < part.stop:  # lerp is exactly either one, at 0 and 1
                sample, which = divmod(start, len(table))
                stop = min(part.stop, start - which + len(table))
                shown = slice(which, which + stop - start)
                absent = baseline[sample] if drawn is None else self.inpainting.bank[drawn[sample][shown]].to(x.dtype)
                rows.append(torch.lerp(x[sample], absent, table[shown]))
                start = stop
            return torch.cat(rows) if len(rows) > 1 else rows[0]

        return torch.from_numpy(meter.evaluate(self.subject.fn, len(x) * len(table), build)).reshape(len(x), -1)

    def _by_patches(self, x: Tensor, baseline: Tensor, windows: range, meter: Meter) -> Tensor | None:
        """Return the same, with the first layers computed where a window reaches; None where that cannot be."""
        if meter.ready is None or self.inpainting is not None or self.windowed is None:
            return None
        count = self.windowed.images // 2
        parts = [slice(start, start + count) for start in range(0, len(x), count)]
        return torch.cat([self._patched(x[part], baseline[part], windows, meter) for part in parts])

    def _patched(self, x: Tensor, baseline: Tensor, windows: range, meter: Meter) -> Tensor:
        count, none = len(x), len(self.masks)  # the last window hides nothing
        rows = [[(n, none), (count + n, none), *((n, window) for window in windows)] for n in range(count)]
        places = torch.tensor(rows).flatten(0, 1)
        fn = self.windowed.on(torch.cat([x, baseline]), torch.cat([baseline, baseline]), places, self.micro_batch)
        y = meter.evaluate(fn, len(places), torch.arange(len(places)).__getitem__)
        return torch.from_numpy(y).reshape(count, -1)

    @cached_property
    def windowed(self) -> ops.Windowed | None:
        """The explained function behind windows, where its first layers see little of a picture at once."""
        if self.frozen is None or self.masks.ndim != 3:
            return None
        sides = self.masks.any(dim=2), self.masks.any(dim=1)
        boxes = [end for side in sides for end in (side.int().argmax(1), side.int().argmax(1) + side.sum(1))]
        boxes = torch.cat([torch.stack(boxes, dim=1), torch.zeros(1, 4, dtype=torch.int64)])
        found = ops.Windowed.of(self.frozen, boxes, tuple(self.x.shape[2:]))
        return None if found is None or found.images < 2 else found

    def collect(self, partial: Partial) -> Maps:
        """Divide the falls by how often each pixel was hidden."""
        sums_NP = torch.zeros(len(self.x), self.masks[0].numel(), dtype=torch.float64)
        ends = np.zeros((2, len(self.x)))
        for first, _, data in partial.of_round(0):
            rows = slice(first, first + len(data["sum"]))
            sums_NP[rows] += data["sum"]
            ends[:, rows] = data["full"], data["empty"]
        mean_NP = sums_NP / self.masks.flatten(1).sum(dim=0)
        picture = self.x.ndim == 4 and self.masks.ndim == 3
        maps = mean_NP.reshape(-1, 1, *self.masks.shape[1:]).expand(self.x.shape) if picture else mean_NP
        maps = maps.reshape(self.x.shape).to(self.x.dtype).contiguous()
        # a window's fall belongs to all that it hides: a cell's share of it goes by area
        area = float(self.masks[0].sum()) * (self.x.shape[1] if picture else 1)
        return Maps(
            attribution=maps,
            weights_NM=self.sums(maps) / area,
            fx_N=ends[0],
            baseline_N=ends[1],
            meta={"windows": len(self.masks), "window": self._side()[0], "stride": self._side()[1]},
        )

    def _best(self, x: Tensor, gone: Tensor) -> Tensor:
        """Return which image of the bank fits best what is left of a sample beside each window, int64 [n]."""
        pixels = torch.arange(gone[0].numel()).reshape(gone.shape[1:] if gone.ndim == 3 else x.shape)
        return self.inpainting.best(x, ~gone.flatten(1).numpy(), pixels)

    def _side(self) -> tuple[int, int]:
        """Return the window's side and stride in pixels."""
        if not are_images(self.x):
            return 1, 1
        side = -(-min(self.x.shape[2:]) // 4) if self.options.window == "auto" else self.options.window
        stride = (side + 1) // 2 if self.options.stride == "auto" else self.options.stride
        if stride > side:
            rule = f"be at most the window's side, {side}: else pixels lie between the windows"
            raise ExplainOptionError("stride", rule, stride, "take a larger window or a smaller stride")
        return side, stride

    def _windows(self) -> Tensor:
        if not are_images(self.x):
            return torch.eye(self.x[0].numel(), dtype=torch.bool)
        (height, width), (side, stride) = self.x.shape[2:], self._side()
        bands = []
        for length in (height, width):
            first = torch.arange(-(-max(length - side, 0) // stride) + 1)[:, None] * stride
            place = torch.arange(length)
            bands.append((place >= first) & (place < first + side))
        rows, columns = bands
        return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(-1, height, width)
