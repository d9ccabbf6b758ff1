"""Panels: pure functions from results to pictures (uint8 RGB arrays). Nothing here reads a network or a run.

TensorBoard, the PNG files and the report show the same arrays, drawn from the saved tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ganscale import __version__
from ganscale.dashboards.animation import write_gifs
from ganscale.dashboards.attacked_maps import attacked_maps_panel
from ganscale.dashboards.attacks import attack_curves_panel, attack_examples_panel
from ganscale.dashboards.attributes import attributes_panel
from ganscale.dashboards.beeswarm import beeswarm_panel
from ganscale.dashboards.class_panels import class_wall, probe_panel, ways_panel
from ganscale.dashboards.codes import code_map_panel, factor_matrix_panel, reconstruction_panel
from ganscale.dashboards.concepts import concepts_panel
from ganscale.dashboards.counterfactual import counterfactual_panel
from ganscale.dashboards.curves import faithfulness_panel, logit_panel
from ganscale.dashboards.dissection import dissection_panel
from ganscale.dashboards.enlarging import DAMAGED, DENSITY
from ganscale.dashboards.feature_panels import maps_over_time_panel, maps_panel, vis_panel
from ganscale.dashboards.figures import Canvas
from ganscale.dashboards.latent_attacks import latent_attack_panel
from ganscale.dashboards.layer_effects import effects_panel
from ganscale.dashboards.layer_panels import layer_panel, mixing_panel
from ganscale.dashboards.layer_shares import shares_panel
from ganscale.dashboards.layout import (
    MARGIN,
    heading,
    heading_height,
    measured_on,
    method_title,
    number,
    score_table,
)
from ganscale.dashboards.likeness import alignment_panel, membership_panel, neighbours_panel
from ganscale.dashboards.maps import attribution_panel
from ganscale.dashboards.networks import side_by_side_panel, unit_logits_panel
from ganscale.dashboards.palette import INK, LINE, MUTED, SURFACE
from ganscale.dashboards.randomisation import randomisation_panel, retraining_panel
from ganscale.dashboards.traversal import traversal_panel
from ganscale.files import written_aside

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

__all__ = [
    "attribution_panel",
    "draw_panels",
    "faithfulness_panel",
    "logit_panel",
    "metric_panel",
    "read_panels",
    "score_panel",
    "traversal_panel",
    "with_scores",
    "write_panels",
]

_LEAST_WIDTH = 860  # CSS pixels that a table of scores needs
#: What a file says: by which version, height and width of the panel above its scores in device pixels, and all names.
_SAID = "panel"

#: Panel -> the values that an explanation must hold for it, and the function that draws it (None: it does not apply).
PANELS: dict[str, tuple[tuple[str, ...], Callable[..., np.ndarray | None]]] = {
    "maps": (("attribution",), attribution_panel),
    "beeswarm": (("attribution",), beeswarm_panel),
    "randomisation": (("similarity", "similarity_moved", "stage_maps"), randomisation_panel),
    "retraining": (("accuracy", "accuracy_random", "removed_share"), retraining_panel),
    "curves": (("deletion_curve", "insertion_curve", "random_curves", "curve_share"), faithfulness_panel),
    "traversal": (("traversal", "sigmas", "eigenvalues"), traversal_panel),
    "attack-curves": (("budgets", "verdict_held", "clean_margins"), attack_curves_panel),
    "latent-attacks": (("latent_budgets", "latent_images"), latent_attack_panel),
    "attacked-maps": (("map_before", "map_after", "attacked"), attacked_maps_panel),
    "reconstructions": (("reconstruction", "pca_reconstruction", "reconstructed"), reconstruction_panel),
    "code-map": (("code_map", "code_share"), code_map_panel),
    "factor-matrix": (("factor_importance", "shuffled_importance"), factor_matrix_panel),
    "neighbours": (("neighbour_images", "features_distance"), neighbours_panel),
    "membership": (("roc_nearest", "nearest_distance"), membership_panel),
    "alignment": (("cka", "gradient_by_layer"), alignment_panel),
    "side-by-side": (("shown_image", "channels_g0"), side_by_side_panel),
    "unit-logits": (("units_logit_0",), unit_logits_panel),
    "attack-examples": (("adversarial", "shown_budget"), attack_examples_panel),
    "attributes": (("attribute_walks", "attribute_answers"), attributes_panel),
    "dissection": (("shown_concepts", "unit_images", "without"), dissection_panel),
    "concepts": (("iou", "units_by_layer"), concepts_panel),
    "layers": (("layer_plain", "layer_edited"), layer_panel),
    "layer-effects": (("layer_plain", "layer_edited"), effects_panel),
    "layer-shares": (("layer_shares", "coalition_values"), shares_panel),
    "mixing": (("mixing_matrix", "mixing_sources"), mixing_panel),
    "classes": (("class_images", "class_probability"), class_wall),
    "probe": (("probe_matrix",), probe_panel),
    "ways": (("way_images", "way_probability"), ways_panel),
    "feature-maps": (("map_images", "map_0"), maps_panel),
    "feature-maps-over-time": (("past_times", "past_0"), maps_over_time_panel),
    "feature-vis": (("vis_images", "vis_best"), vis_panel),
    "counterfactuals": (("path", "path_probability", "pixel_counterfactual"), counterfactual_panel),
}


def draw_panels(explanation: Explanation) -> dict[str, np.ndarray]:
    """Return every panel that fits the explanation's values, by name, uint8 RGB [H, W, 3], without the scores."""
    held = explanation.values.keys()
    asked = {name: draw(explanation) for name, (needed, draw) in PANELS.items() if held >= {*needed}}
    return {name: _trimmed(panel) for name, panel in asked.items() if panel is not None}


def _trimmed(panel: np.ndarray) -> np.ndarray:
    """Return a panel without the room at its foot that names of layers or classes did not need."""
    inked = np.flatnonzero((panel != 255).any(axis=(1, 2)))
    return panel[: inked[-1] + 1 + MARGIN * DENSITY] if len(inked) else panel


def with_scores(explanation: Explanation, panels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return ``panels`` with the table of scores below each; the table's own panel where there is none."""
    if not panels:
        return {"scores": score_panel(explanation)}
    wide = {name: max(panel.shape[1] // DENSITY, _LEAST_WIDTH) for name, panel in panels.items()}
    tables = {width: score_table(explanation, width) for width in {*wide.values()}}
    return {name: _above(panel, tables[wide[name]]) for name, panel in panels.items()}


def write_panels(
    explanation: Explanation, directory: str | Path, panels: Mapping[str, np.ndarray] | None = None
) -> list[Path]:
    """Save every panel with its scores as ``NAME.png`` in ``directory``, and what moves as ``NAME.gif``; the paths.

    ``panels`` are those of ``draw_panels`` where they were drawn already.
    """
    panels = draw_panels(explanation) if panels is None else panels
    written = []
    for name, whole in with_scores(explanation, panels).items():
        said, (height, width) = PngInfo(), panels[name].shape[:2] if name in panels else (0, 0)
        said.add_text(_SAID, " ".join([__version__, str(height), str(width), *panels]))
        written.append(Path(directory) / f"{name}.png")
        with written_aside(written[-1]) as aside:
            Image.fromarray(whole).save(aside, format="PNG", pnginfo=said)
    return [*written, *write_gifs(explanation, directory)]


def read_panels(explanation: Explanation, directory: str | Path) -> dict[str, np.ndarray]:
    """Return the panels that ``write_panels`` left in ``directory``, without the scores.

    All are drawn where it left none or one of them is missing, or another version did, or a file is damaged.
    """
    found, belong = {}, []
    for path in (Path(directory) / f"{name}.png" for name in PANELS):
        if path.is_file():
            try:
                with Image.open(path) as image:
                    version, height, width, *belong = image.info.get(_SAID, "- 0 0").split()
                    found[path.stem] = np.asarray(image)[: int(height), : int(width)]
            except DAMAGED:
                version = "-"
            if version != __version__:
                return draw_panels(explanation)
    return found if found and found.keys() == {*belong} else draw_panels(explanation)


def score_panel(explanation: Explanation) -> np.ndarray:
    """Draw the scores alone, for a method without a picture of its own; uint8 RGB [H, W, 3]."""
    lines, banner = [explanation.meta.get("summary", "")], explanation.not_better_than_random
    canvas = Canvas(_LEAST_WIDTH, heading_height(lines=1, banner=banner))
    heading(canvas, method_title(explanation.method), lines, banner=banner, of=explanation)
    return _above(canvas.array(), score_table(explanation, canvas.width))


def _above(panel: np.ndarray, table: np.ndarray) -> np.ndarray:
    page = np.full((panel.shape[0] + table.shape[0], table.shape[1], 3), 255, dtype=np.uint8)
    page[: panel.shape[0], : panel.shape[1]] = panel
    page[panel.shape[0] :] = table
    return page


def metric_panel(values: Mapping[str, Mapping[str, Any]], *, title: str) -> np.ndarray:
    """Draw a table of evaluated values, each with spread, real-against-real floor and direction; uint8 RGB [H, W, 3].

    ``values`` maps a metric's full name to ``{"value", "spread", "floor", "better", "stamp"}``.
    """
    columns = (("metric", 0), ("value", 330), ("spread", 440), ("floor (real v real)", 550), ("better", 700))
    row, top = 24, heading_height(lines=1, banner=False)
    canvas = Canvas(820, top + row * (len(values) + 1) + MARGIN + 8)
    y = heading(
        canvas,
        title,
        [f"A floor is what real images score against other real images{measured_on(values)}."],
        banner=False,
    )
    canvas.box(MARGIN, y, canvas.width - 2 * MARGIN, row * (len(values) + 1), fill=SURFACE.light, line=LINE.light)
    for name, x in columns:
        canvas.text(MARGIN + 10 + x, y + 7, name, size=11, bold=True, colour=MUTED.light)
    for place, (name, entry) in enumerate(values.items(), start=1):
        cells = (name, number(entry["value"]), number(entry["spread"]), number(entry["floor"]), entry["better"])
        for (_, x), cell in zip(columns, cells, strict=True):
            canvas.text(MARGIN + 10 + x, y + 6 + row * place, str(cell), size=12, colour=INK.light)
    return canvas.array()
