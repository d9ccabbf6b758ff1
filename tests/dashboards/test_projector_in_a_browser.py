"""TensorBoard as Chromium shows it: codes in the projector, drawn with their own pictures; panels among the images."""

from __future__ import annotations

import io
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, browser, find_browser
from dashboard_cases import red_codes
from PIL import Image

from ganscale.dashboards import TensorBoardSink, start_tensorboard

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium on PATH, nor in GANSCALE_BROWSER")
# Software rendering: a machine without a display or GPU draws points as well.
FLAGS = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
# All text of the page, through shadow roots and inner frames, where TensorBoard keeps it, and the widths of all images.
SEEN = """(() => {
  const found = {text: [], images: []};
  const walk = node => {
    if (node.nodeType === 3 && node.data.trim()) found.text.push(node.data.trim());
    if (node.tagName === 'IMG') found.images.push(node.naturalWidth);
    if (node.shadowRoot) walk(node.shadowRoot);
    if (node.tagName === 'IFRAME' && node.contentDocument) walk(node.contentDocument);
    if (!['STYLE', 'SCRIPT'].includes(node.tagName)) node.childNodes.forEach(walk);
  };
  walk(document);
  return {text: found.text.join(' '), images: found.images};
})()"""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a TensorBoard over a run with 60 codes."""
    folder = tmp_path_factory.mktemp("projector")
    with TensorBoardSink(folder / "run") as sink:
        sink.write_explanation(red_codes(60), 8000)
    with start_tensorboard(folder, 0, quiet=True) as server:
        server.prepared.join(60)
        yield server.url


@pytest.fixture(scope="module")
def window(board: str) -> Iterator[Browser]:
    """A browser with WebGL."""
    with browser(*FLAGS) as found:
        if not found.run("!!document.createElement('canvas').getContext('webgl2')"):
            pytest.skip("this Chromium has no WebGL, not even in software")
        yield found


def pixels(window: Browser, path: Path) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(window.picture(path).read_bytes())).convert("RGB"), dtype=int)


def test_the_projector_shows_every_code_with_its_own_picture(board, window, tmp_path):
    window.open(f"{board}#projector", width=1400, height=900)
    window.wait_for(lambda: "Points: 60" in window.run(SEEN)["text"])
    words = window.run(SEEN)["text"]
    assert "Dimension: 4" in words
    assert "autoencoder, codes at 8 kimg" in words

    def red() -> bool:
        red, green, blue = np.moveaxis(pixels(window, tmp_path / "seen.png")[120:880, 320:1090], -1, 0)
        return int(((red > 150) & (green < 90) & (blue < 90)).sum()) > 2000

    window.wait_for(red)  # nothing else on that page is red: the pictures are
    assert window.complaints == []
    assert [url for url in window.requests if not url.startswith((board, "data:", "blob:"))] == [], "works offline"


def test_the_images_page_shows_the_panels(board, window):
    def tags_of_run() -> set[str]:
        return set(json.load(urllib.request.urlopen(f"{board}data/plugin/images/tags", timeout=20)).get("run", ()))

    tags = window.wait_for(tags_of_run)
    assert tags == {"explanation/autoencoder/reconstructions", "explanation/autoencoder/code-map"}
    window.open(f"{board}#images", width=1400, height=900)
    window.wait_for(lambda: "explanation/autoencoder/code-map" in window.run(SEEN)["text"])
    window.wait_for(lambda: sum(width > 500 for width in window.run(SEEN)["images"]) == len(tags))
