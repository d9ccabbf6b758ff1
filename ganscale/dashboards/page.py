"""HTML of the report: escaping, tables, pictures as data URIs, and the one style sheet for light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence, features

from ganscale.dashboards import palette

_LONGEST_WEBP = 16383  # pixels along an edge
# Nothing may be fetched and no script may run, whatever a run's names or messages contain.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body: str) -> str:
    """Return a whole page around ``body`` (HTML); ``title`` is escaped."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style()}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#main">Skip to the content</a>\n{body}\n</body>\n</html>\n'
    )


def section(key: str, title: str, *parts: str) -> str:
    """Return a section with a heading that the contents list can point at."""
    return (
        f'<section aria-labelledby="{key}">\n<h2 id="{key}">{escape(title)}</h2>\n' + "\n".join(parts) + "\n</section>"
    )


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str,
    numeric: Sequence[int] = (),
    kind: str = "",
) -> str:
    """Return a table; cells are escaped text unless they are ``Html``. Columns in ``numeric`` are right-aligned.

    It scrolls by itself where it is too wide for the page. ``kind`` is its class in the style sheet.
    """
    classes = ["num" if column in numeric else "" for column in range(len(head))]
    top = "".join(f'<th scope="col"{_class(c)}>{escape(name)}</th>' for name, c in zip(head, classes, strict=True))
    body = []
    for row in rows:
        first, *rest = row
        cells = f'<th scope="row"{_class(classes[0])}>{html(first)}</th>'
        cells += "".join(f"<td{_class(c)}>{html(cell)}</td>" for cell, c in zip(rest, classes[1:], strict=True))
        body.append(f"<tr>{cells}</tr>")
    words = escape(caption)
    return (  # the caption is heard with the table, and seen above the box that scrolls
        f'<p class="caption" aria-hidden="true">{words}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{words}">'
        f"<table{_class(kind)}><caption>{words}</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


class Html(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def html(value: object) -> str:
    """Return ``value`` as HTML: ``Html`` as it is, anything else escaped."""
    return value if isinstance(value, Html) else escape(str(value))


def code(text: object) -> Html:
    """Return a command or a name in monospace."""
    return Html(f"<code>{escape(str(text))}</code>")


def link(target: str, words: str) -> Html:
    """Return a link to a part of the page or a file beside it."""
    return Html(f'<a href="{escape(target)}">{html(words)}</a>')


def note(text: str, command: str | None = None) -> str:
    """Return a paragraph that says what is missing and the command that makes it."""
    how = f" Make it with <code>{escape(command)}</code>" if command else ""
    return f'<p class="missing">{escape(text)}{how}</p>'


def warning(text: str) -> str:
    """Return a paragraph that must not be overlooked."""
    return f'<p class="warning" role="note"><span aria-hidden="true">⚠ </span>{escape(text)}</p>'


def details(summary: str, body: str) -> str:
    """Return a part that opens on demand."""
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>"


def figure(picture: str, caption: str, *, kind: str = "") -> str:
    """Return a figure around an ``<img>`` or ``<svg>`` with an escaped caption."""
    return f"<figure{_class(kind)}>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def picture_file(path: Path, alt: str, *, pixelated: bool = False, density: int = 1) -> str:
    """Return an ``<img>`` that shows a PNG or GIF, its pixels unchanged and packed smaller where that can be."""
    with Image.open(path) as image:
        size, kind = (image.width // density, image.height // density), str(image.format).lower()
        data = _webp(image)
    if data is None or len(data) >= path.stat().st_size:
        return _img(path.read_bytes(), alt, size, pixelated=pixelated, kind=kind)
    return _img(data, alt, size, pixelated=pixelated, kind="webp")


def picture_array(pixels: np.ndarray, alt: str, *, density: int = 1) -> str:
    """Return an ``<img>`` of uint8 [H, W, 3] drawn with ``density`` device pixels for each CSS pixel."""
    image, size = Image.fromarray(pixels), (pixels.shape[1] // density, pixels.shape[0] // density)
    data = _webp(image)
    if data is not None:
        return _img(data, alt, size, kind="webp")
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return _img(stream.getvalue(), alt, size, kind="png")


def _webp(image: Image.Image) -> bytes | None:
    """Return an image, all its frames where it moves, as WebP without any loss: a third of what PNG and GIF take.

    None where Pillow was built without it, or it cannot hold the picture: an edge is too long, a number has 16 bits.
    """
    plain = image.mode in ("L", "P", "RGB") and "transparency" not in image.info
    if not features.check("webp") or max(image.size) > _LONGEST_WEBP or not plain:
        return None
    stream, still = io.BytesIO(), {"format": "WEBP", "lossless": True, "method": 4}
    first, *others = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
    moving = {"save_all": True, "append_images": others, "duration": image.info.get("duration", 0), "loop": 0}
    first.save(stream, **still, **(moving if others else {}))
    return stream.getvalue()


def _img(data: bytes, alt: str, size: tuple[int, int], *, kind: str, pixelated: bool = False) -> str:
    inside = base64.b64encode(data).decode("ascii")
    return (
        f'<img{_class("pixels" if pixelated else "")} width="{size[0]}" height="{size[1]}" alt="{escape(alt)}" '
        f'src="data:image/{kind};base64,{inside}">'
    )


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def style() -> str:
    """Return the style sheet; the dark half only swaps the palette's variables."""
    named = {
        "ink": palette.INK,
        "muted": palette.MUTED,
        "ground": palette.GROUND,
        "surface": palette.SURFACE,
        "rule": palette.LINE,
        "link": palette.LINK,
        "warn-ink": palette.WARNING_INK,
        "warn-ground": palette.WARNING_GROUND,
        **palette.SERIES,
    }
    light = "".join(f"--{name}:{shade.light};" for name, shade in named.items())
    dark = "".join(f"--{name}:{shade.dark};" for name, shade in named.items())
    colours = "".join(
        f".line.{name}{{stroke:var(--{name})}}.dot.{name}{{fill:var(--{name})}}\n" for name in palette.SERIES
    )
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{_RULES}{colours}"


_RULES = """
*{box-sizing:border-box}
html{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;scroll-behavior:smooth}
@media (prefers-reduced-motion: reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--ground);color:var(--ink)}
header,main,footer{max-width:1200px;margin:0 auto;padding:0 24px}
header{padding-top:32px}
h1{font-size:2rem;line-height:1.2;margin:0 0 4px}
h2{font-size:1.4rem;margin:48px 0 12px;padding-top:16px;border-top:1px solid var(--rule)}
h3{font-size:1.1rem;margin:28px 0 8px}
p{margin:8px 0;max-width:78ch}
a{color:var(--link)}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{
  outline:3px solid var(--link);outline-offset:2px;border-radius:3px}
.skip{position:absolute;left:-9999px}.skip:focus{left:16px;top:8px;background:var(--ground);padding:6px 10px}
.lead{color:var(--muted);margin:0 0 12px}
nav{margin:12px 0 4px}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;margin:0;padding:0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;margin:20px 0}
.card{background:var(--surface);border:1px solid var(--rule);border-radius:8px;padding:12px 16px}
.card dt{color:var(--muted);font-size:.85rem}
.card dd{margin:2px 0 0;font-size:1.35rem;font-weight:600;font-variant-numeric:tabular-nums}
.card dd small{display:block;font-size:.82rem;font-weight:400;color:var(--muted);line-height:1.4;margin-top:2px}
figure{margin:12px 0}
figcaption{color:var(--muted);font-size:.9rem;margin-top:6px;max-width:78ch}
img{max-width:100%;height:auto;display:block}
.pixels{image-rendering:pixelated;border:1px solid var(--rule);border-radius:4px}
.panel{width:fit-content;max-width:100%;background:var(--surface);border:1px solid var(--rule);border-radius:12px;
  padding:12px}
.panel img{background:#fff;border-radius:6px}
@media (prefers-color-scheme: dark){.panel img,.wide img{filter:brightness(.88)}}
@media (max-width: 720px){.panel{overflow-x:auto}.panel img{max-width:none;width:720px}
  .panel figcaption,.panel::before{position:sticky;left:0;max-width:calc(100vw - 74px)}
  .panel::before{content:"scrolls sideways ↔" / "";display:block;width:fit-content;color:var(--muted);font-size:.82rem;
    margin-bottom:6px}}
.final .pixels{width:min(560px,100%)}
.strip{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px}
.strip figure{margin:0}.strip .pixels{width:100%}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:8px 32px}
.chart{width:100%;max-width:640px;height:auto;display:block}
.busy{fill:var(--blue)}
.chart text{font-size:11px;fill:var(--muted)}
.rule{stroke:var(--rule);stroke-width:1}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.dot{stroke:none;fill-opacity:0}.dot:hover,.lone .dot{fill-opacity:1}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 18px;margin:0 0 4px;padding:0;font-size:.88rem}
.legend li{display:flex;align-items:center;gap:6px}
.legend b{font-weight:600;font-variant-numeric:tabular-nums}
.swatch{width:28px;height:10px}
.caption{margin:12px 0 6px;color:var(--muted);font-size:.9rem}
.scroll{position:relative;overflow-x:auto;margin:0 0 12px;background:
  linear-gradient(to right,var(--ground) 40%,transparent) 0 0/36px 100% no-repeat local,
  linear-gradient(to left,var(--ground) 40%,transparent) 100% 0/36px 100% no-repeat local,
  linear-gradient(to right,color-mix(in srgb,var(--ink) 24%,transparent),transparent) 0 0/16px 100% no-repeat scroll,
  linear-gradient(to left,color-mix(in srgb,var(--ink) 24%,transparent),transparent) 100% 0/16px 100% no-repeat scroll}
table{border-collapse:collapse;font-size:.92rem;min-width:min(560px,100%)}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
th,td{text-align:left;padding:5px 18px 5px 0;border-bottom:1px solid var(--rule);vertical-align:top}
thead th{color:var(--muted);font-weight:600;font-size:.85rem}
tbody th{font-weight:500}
th small,td small{display:block;color:var(--muted);font-weight:400;line-height:1.4}
.wide td,.wide th{vertical-align:middle}.wide img{max-width:none;border:1px solid var(--rule);border-radius:6px}
@media (max-width: 720px){.wide img{width:72px}.wide th,.wide td{padding-right:10px}
  .wide .good,.wide .bad{white-space:normal}}
.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{font:.88em/1.5 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;overflow-wrap:anywhere;
  background:var(--surface);border-radius:4px;padding:1px 5px}
pre{background:var(--surface);border:1px solid var(--rule);border-radius:8px;padding:12px 16px;overflow-x:auto}
pre code{padding:0;background:none}
details{margin:12px 0}summary{cursor:pointer;color:var(--link);padding:2px 0}
.methods{list-style:none;display:grid;grid-template-columns:repeat(auto-fill,minmax(min(270px,100%),1fr));gap:10px 24px;
  margin:12px 0 24px;padding:0;font-size:.92rem}
.methods small{display:block;color:var(--muted)}@media (max-width: 720px){.methods small{display:none}}
.explanation{margin:0;border-top:1px solid var(--rule)}.explanation>summary{padding:10px 0;color:var(--muted)}
.explanation>summary h3{display:inline;margin:0 6px 0 0;color:var(--link)}.explanation>summary small{margin-right:6px}
.explanation>article{padding-bottom:24px;scroll-margin-top:72px}
.warning{background:var(--warn-ground);color:var(--warn-ink);border-left:4px solid var(--vermilion);padding:10px 14px;
  border-radius:0 6px 6px 0;font-weight:600;max-width:none}
.missing{background:var(--surface);border-left:4px solid var(--rule);padding:10px 14px;max-width:none}
.good{color:var(--blue);white-space:nowrap}.bad{color:var(--vermilion);font-weight:600;white-space:nowrap}
footer{color:var(--muted);font-size:.88rem;padding-top:32px;padding-bottom:40px}
@media print{.skip,nav,details:not([open]):not(.explanation){display:none}
  .explanation::details-content{content-visibility:visible;height:auto}.scroll,.panel{overflow:visible}
  .scroll{background:none}.panel::before{display:none}
  section{break-inside:auto}figure,table{break-inside:avoid}}
"""
