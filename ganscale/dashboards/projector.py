"""Codes for TensorBoard's projector: points that can be turned round, each with its picture, class and factors.

Beside the events of a run the projector reads ``projector_config.pbtxt``, which names a table of points, a table of
their labels and a sheet with all their pictures (https://www.tensorflow.org/tensorboard/tensorboard_projector_plugin).

Legend: N codes, D numbers of a code, F factors, C channels, H height, W width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.metadata import PROJECTOR_FILENAME
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig

from ganscale.dashboards.layout import class_name
from ganscale.files import replace_text, written_aside
from ganscale.progress import checkpoint_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ganscale.explain.types import Explanation

FOLDER = "projector"
MOST_PIXELS = 8192  # of the sheet's side, which is what the projector takes


def write_codes(explanation: Explanation, log_dir: str | Path, step: int) -> Path | None:
    """Add an explanation's ``codes`` to what the projector shows of ``log_dir``; None where it has no codes.

    ``code_images`` (uint8 [N, C, H, W]), ``code_labels`` [N] and ``code_factors`` [N, F] are shown beside them where
    they are there. Codes of the same method at the same ``step`` (images seen) are replaced. Returns the file that
    names all points.
    """
    values = explanation.values
    if "codes" not in values:
        return None
    log_dir = Path(log_dir)
    name = f"{explanation.method}-{checkpoint_name(step)}"
    (log_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    entry = EmbeddingInfo(tensor_name=f"{explanation.method}, {_words(explanation)} at {step / 1000:g} kimg")
    entry.tensor_path, entry.metadata_path = f"{FOLDER}/{name}.tsv", f"{FOLDER}/{name}-labels.tsv"
    codes_ND = values["codes"].double().numpy()
    replace_text(log_dir / entry.tensor_path, _table(codes_ND.tolist()))
    replace_text(log_dir / entry.metadata_path, _labels(explanation, len(codes_ND)))
    if "code_images" in values and min(values["code_images"].shape[2:]) > 1:
        sheet, tile = _sheet(values["code_images"].numpy())
        entry.sprite.image_path = f"{FOLDER}/{name}.png"
        entry.sprite.single_image_dim.extend([tile.shape[1], tile.shape[0]])  # width, height
        with written_aside(log_dir / entry.sprite.image_path) as aside:  # a TensorBoard may be reading
            Image.fromarray(sheet).save(aside, format="PNG")
    own = log_dir / FOLDER / f"{name}.pbtxt"
    replace_text(own, text_format.MessageToString(entry))
    return _enter(log_dir, own)


def _enter(log_dir: Path, first: Path) -> Path:
    """Write the projector's table of contents from the entries there are, so that two writers lose none; the ``first``
    is what it opens with.
    """
    files = [first, *(path for path in sorted((log_dir / FOLDER).glob("*.pbtxt")) if path != first)]
    entries = [text_format.Parse(path.read_text(encoding="utf-8"), EmbeddingInfo()) for path in files]
    target = log_dir / PROJECTOR_FILENAME
    replace_text(target, text_format.MessageToString(ProjectorConfig(embeddings=entries)))
    return target


def _labels(explanation: Explanation, count: int) -> str:
    """Return the labels as the projector wants them: one column bare, more of them under a row of names."""
    values = explanation.values
    columns: dict[str, list[str]] = {}
    if "code_labels" in values and bool((values["code_labels"] >= 0).any()):
        labels = values["code_labels"].tolist()
        columns["class"] = [class_name(explanation, label) for label in labels]
    for factor, row in enumerate(values["code_factors"].T.tolist() if "code_factors" in values else []):
        columns[f"factor {factor + 1}"] = [f"{value:.4g}" for value in row]
    columns["image"] = [str(place + 1) for place in range(count)]
    if len(columns) == 1:
        return _table([[word] for word in columns["image"]])
    return _table([list(columns), *zip(*columns.values(), strict=True)])


def _words(explanation: Explanation) -> str:
    return "features" if explanation.method == "retrieval" else "codes"


def _table(rows: Sequence[Sequence[object]]) -> str:
    return "".join("\t".join(_word(cell) for cell in row) + "\n" for row in rows)


def _word(cell: object) -> str:
    return f"{cell:.6g}" if isinstance(cell, float) else " ".join(str(cell).split())


def _sheet(images_NCHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all pictures row by row on a square sheet, uint8 [H', W', 3], and the first of them."""
    across = math.ceil(math.sqrt(len(images_NCHW)))
    images = images_NCHW[:, :3] if images_NCHW.shape[1] >= 3 else images_NCHW[:, :1].repeat(3, axis=1)
    _, _, height, width = images.shape
    every = max(1, math.ceil(across * max(height, width) / MOST_PIXELS))
    images = images[:, :, ::every, ::every].transpose(0, 2, 3, 1)
    height, width = images.shape[1:3]
    sheet = np.full((across * height, across * width, 3), 255, dtype=np.uint8)
    for place, image in enumerate(images):
        row, column = divmod(place, across)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = image
    return sheet, images[0]
