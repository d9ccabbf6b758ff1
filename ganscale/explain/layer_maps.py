"""Maps from an inner layer: Grad-CAM and layer conductance, drawn over the input.

Both give each place of a layer's map a share; the shares are spread over the pixels above it, sums kept.

Legend: N samples, n rows, K channels of the layer, h height, w width of its map, S steps.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ganscale.explain.attribution import AttributionOptions, Maps
from ganscale.explain.base import Meter
from ganscale.explain.beside import own_rows
from ganscale.explain.errors import ExplainInputError, ExplainTargetError, LayerError
from ganscale.explain.gradients import GradientExplainer
from ganscale.explain.layers import layer_calls, layer_names
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.subject import Subject


class LayerMapOptions(AttributionOptions):
    """Whose map it is."""

    layer: str = Field(
        "auto", description="a dotted name; auto: the last layer with weights whose map has more than one place"
    )


class LayerMap(GradientExplainer):
    """Base of the maps of one layer. Subclasses write ``shares``."""

    Options = LayerMapOptions
    options: LayerMapOptions
    domains = ("x",)

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        if self.x.ndim != 4:
            raise ExplainInputError("inputs", f"be images for {self.name}", tuple(self.x.shape), "use saliency")
        if subject.module is None:
            raise ExplainTargetError(
                "the subject", f"have a network for {self.name}", subject.name, "pass a Module, or name it in a Subject"
            )
        module = subject.module if subject.companions is None else subject.critic
        model = getattr(module, "model", module)
        self.network = model if isinstance(model, nn.Module) else module

    def maps(self, rows: slice, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the layer's shares [n, h, w] and the same over the pixels of the input."""
        layer = self._layer(self.x[rows][:1])
        shares = self.shares(rows, layer, meter)
        sized = interpolate(shares[:, None], self.x.shape[2:], mode="bilinear", align_corners=False)
        before, after = shares.double().sum(dim=(1, 2)), sized.double().sum(dim=(1, 2, 3))
        # bilinear weights at the edge change the sum a little: put the difference back evenly
        even = ((before * (self.x.shape[2:].numel() / shares[0].numel()) - after) / self.x.shape[2:].numel()).to(sized)
        sized = (sized + even[:, None, None, None]) * (shares[0].numel() / self.x.shape[2:].numel())
        maps = (sized / self.x.shape[1]).expand(-1, self.x.shape[1], -1, -1).contiguous()
        return {"maps": maps.to(self.x.dtype), "shares": shares, "layer": layer}

    @abstractmethod
    def shares(self, rows: slice, layer: str, meter: Meter) -> Tensor:
        """Return the share of each place of the layer's map, [n, h, w]."""

    def collect(self, partial: Partial) -> Maps:
        """Put the samples together; ``layer_shares`` [N, h, w] are the shares before they were spread."""
        found = [data for _, _, data in partial.of_round(0)]
        maps = super().collect(partial)
        maps.values["layer_shares"] = torch.cat([data["shares"] for data in found])
        return maps

    def facts(self, found: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the layer's name."""
        return {"layer": found[0]["layer"]}

    def activations(self, layer: str, rows: Tensor, meter: Meter) -> tuple[Tensor, Tensor]:
        """Return the layer's output and f's gradient there, both [n, K, h, w] on the CPU; raises LayerError."""
        meter.rows_forward += len(rows)
        meter.rows_backward += len(rows)
        outputs, slopes = [], []
        with torch.enable_grad():
            for part in rows.split(meter.micro_batch):
                short = meter.micro_batch - len(part)
                padded = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
                leaf = padded.detach().to(self.subject.device, copy=True).requires_grad_()
                values: list[Tensor] = []
                calls = layer_calls(self.network, layer, lambda x=leaf, v=values: v.append(self.subject.fn(x)))
                output = own_rows(self.network, calls)
                if output.ndim != 4 or len(output) != len(leaf):
                    raise LayerError(
                        f"layer {layer}", "put out maps [n, K, h, w]", tuple(output.shape), "name a conv layer"
                    )
                slopes_of_calls = torch.autograd.grad(values[0].sum(), calls, allow_unused=True)
                if None in slopes_of_calls:
                    rule, remedy = "be one that the target goes through", "name an earlier one: --set layer=NAME"
                    raise LayerError("layer", rule, f"{layer}, for {self.subject.name}", remedy)
                slope = own_rows(self.network, slopes_of_calls)
                outputs.append(output[: len(part)].detach().cpu())
                slopes.append(slope[: len(part)].cpu())
        return (
            meter.finite(torch.cat(outputs), f"layer {layer}", "put out finite numbers"),
            meter.finite(torch.cat(slopes), "the gradient", "be finite"),
        )

    def _layer(self, x: Tensor) -> str:
        """Return the layer's name: found by a forward pass, which knows the order of use."""
        if self.options.layer != "auto":
            return self.options.layer
        seen: list[str] = []

        def watch(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1:
                    seen.append(name)

            return hook

        weighted = [(name, part) for name, part in layer_names(self.network).items() if [*part.parameters()]]
        handles = [part.register_forward_hook(watch(name)) for name, part in weighted]
        try:
            with torch.no_grad():
                self.subject.fn(x.to(self.subject.device))
        finally:
            for handle in handles:
                handle.remove()
        if not seen:
            raise LayerError("the network", "have a layer with a map", "none", "use saliency, or name a layer")
        # a layer may run its parts' weights itself: take the innermost of those that were called
        seen = [name for name in seen if not any(other.startswith(f"{name}.") for other in seen)]
        uses = seen.count(seen[-1])
        return seen[-1] if uses == 1 else f"{seen[-1]}#{uses - 1}"


class GradCamOptions(LayerMapOptions):
    """What of the map is kept."""

    relu: bool = Field(False, description="keep only what speaks for the target, as in the paper")


class GradCam(LayerMap):
    """A layer's maps, weighted by f's mean gradient in each (Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2)."""

    name = "grad-cam"
    summary = "a coarse map of one conv layer: its channels weighted by the mean gradient of f in each"
    Options = GradCamOptions
    options: GradCamOptions

    def shares(self, rows: slice, layer: str, meter: Meter) -> Tensor:
        """Return the weighted sum over the channels."""
        output, slope = self.activations(layer, self.x[rows], meter)
        cam = (output * slope.mean(dim=(2, 3), keepdim=True)).sum(dim=1)
        return cam.relu() if self.options.relu else cam


class LayerConductanceOptions(LayerMapOptions):
    """How finely the path is followed."""

    steps: Annotated[int, Field(ge=1, le=10_000)] = Field(
        50, description="pieces of the straight path from the baseline"
    )


class LayerConductance(LayerMap):
    """How much of f(x) - f(baseline) flows through each place of a layer (Dhamdhere et al. 2018, arXiv:1805.12233).

    Their path integral by the trapezoid rule over the layer's own values: complete for every layer that all of f passes
    through.
    """

    name = "layer-conductance"
    summary = "what flows through each place of one layer on the way from the baseline; sums to f(x) - f(baseline)"
    Options = LayerConductanceOptions
    options: LayerConductanceOptions

    def shares(self, rows: slice, layer: str, meter: Meter) -> Tensor:
        """Return the conductance summed over the channels."""
        way = torch.linspace(0, 1, self.options.steps + 1, dtype=self.x.dtype).reshape(-1, 1, 1, 1)
        found = []
        for x, baseline in zip(self.x[rows], self.baseline[rows], strict=True):
            output, slope = self.activations(layer, baseline + way * (x - baseline), meter)
            output, slope = output.double(), slope.double()
            found.append(((slope[1:] + slope[:-1]) / 2 * output.diff(dim=0)).sum(dim=(0, 1)))
        return torch.stack(found).to(self.x.dtype)
