"""Pages of explanations as Chromium shows them: light and dark, on a desk and on a phone, by keyboard and offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser, find_browser
from dashboard_cases import make_whole

from ganscale.dashboards import write_explanation_page, write_panels, write_report
from ganscale.explain import Explanation

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium on PATH, nor in GANSCALE_BROWSER")
PAGES = ("kernel-shap-001/explanation", "kernel-shap-002/explanation", "directions-001/explanation", "index")
PHONE, DESK = 360, 1280
TAB = 9
# The contrast of WCAG 2.2 (relative luminance in sRGB) of each element that holds text, on the ground behind it.
CONTRAST = """(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => rgb(text).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if ((rgb(colour)[3] ?? 1) > 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const worst = {};
  const names = 'h1,h2,p,a,th,td,figcaption,summary,dt,dd,small,code,span,footer';
  for (const node of document.querySelectorAll(names)) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())) continue;
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
    const name = node.tagName.toLowerCase() + (node.className ? '.' + node.className : '');
    worst[name] = Math.min(worst[name] ?? 99, (a + 0.05) / (b + 0.05));
  }
  return worst;
})()"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, explanations: dict[str, Explanation]) -> Path:
    """A run with pages, index and report."""
    made = make_whole(tmp_path_factory.mktemp("browser"), explanations)
    for name, explanation in explanations.items():
        write_panels(explanation, made / "explanations" / name)
        write_explanation_page(explanation, made / "explanations" / name)
    write_report(made)
    return made


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    """One browser for all tests."""
    with browser() as found:
        yield found


def address(run: Path, page: str) -> str:
    return (run / "explanations" / f"{page}.html").resolve().as_uri()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", [*PAGES, "../report"])
def test_a_page_opens_offline_without_a_complaint_and_with_all_its_pictures(run, window, page, theme):
    window.open(address(run, page), width=DESK, theme=theme)
    assert window.complaints == []
    outside = [url for url in window.requests if not url.startswith(("file:", "data:"))]
    assert outside == []
    assert [url for url in window.requests if url.startswith("file:")] == [address(run, page)], "itself alone"
    window.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    widths = window.run("Promise.all([...document.images].map(async i => (await i.decode(), i.naturalWidth)))")
    assert widths
    assert min(widths) > 0


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_every_text_stands_out_from_its_ground(run, window, page, theme):
    window.open(address(run, page), width=DESK, theme=theme)
    contrast = window.run(CONTRAST)
    assert {"h1", "td", "p.caption"} <= contrast.keys()
    assert {name: value for name, value in contrast.items() if value < 4.5} == {}, "WCAG AA"


def test_light_is_light_and_dark_is_dark(run, window):
    grounds = {}
    for theme in ("light", "dark"):
        window.open(address(run, "index"), theme=theme)
        grounds[theme] = window.run("getComputedStyle(document.body).backgroundColor")
    assert grounds == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}


def test_a_panel_lies_on_a_mount_of_the_theme_and_does_not_glare_in_the_dark(run, window):
    looks = {}
    for theme in ("light", "dark"):
        window.open(address(run, PAGES[0]), theme=theme)
        mount = window.run("getComputedStyle(document.querySelector('.panel')).backgroundColor")
        looks[theme] = mount, window.run("getComputedStyle(document.querySelector('.panel img')).filter")
    assert looks == {"light": ("rgb(245, 246, 248)", "none"), "dark": ("rgb(30, 34, 39)", "brightness(0.88)")}


@pytest.mark.parametrize("page", [*PAGES, "../report"])
def test_a_phone_scrolls_tables_and_panels_but_never_the_page(run, window, page):
    window.open(address(run, page), width=PHONE, height=740)
    window.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert window.run("document.documentElement.scrollWidth") <= PHONE


@pytest.mark.parametrize("page", [*PAGES, "../report"])
def test_on_a_phone_a_caption_is_whole_and_what_scrolls_sideways_looks_like_it(run, window, page):
    window.open(address(run, page), width=PHONE, height=740)
    window.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    ends = window.run("[...document.querySelectorAll('p.caption')].map(p => p.getBoundingClientRect().right)")
    assert ends
    assert max(ends) <= PHONE
    assert window.run("[...document.querySelectorAll('p.caption')].filter(p => p.closest('.scroll')).length") == 0
    boxes = "[...document.querySelectorAll('.scroll, .panel')].filter(box => box.scrollWidth > box.clientWidth)"
    hints = (
        "(getComputedStyle(box).backgroundAttachment.includes('local') || "
        "getComputedStyle(box, '::before').content.includes('sideways'))"
    )
    assert window.run(f"{boxes}.length") > 0
    assert window.run(f"{boxes}.filter(box => !{hints}).length") == 0


def test_the_keyboard_reaches_every_link_and_part_with_a_visible_mark(run, window):
    for page in PAGES:
        window.open(address(run, page), width=DESK)
        wanted = set(window.run("[...document.querySelectorAll('a,summary')].map(node => node.textContent)"))
        reached, marks = [], []
        while len(reached) < 40 and not wanted <= set(reached):
            window.press("Tab", TAB)
            reached.append(window.run("document.activeElement.textContent"))
            marks.append(window.run("getComputedStyle(document.activeElement).outlineStyle"))
        assert wanted <= set(reached)
        assert reached[0] == "Skip to the content"
        assert set(marks) == {"solid"}


def test_the_index_leads_to_a_page_by_keyboard_alone(run, window):
    window.open(address(run, "index"))
    name = "Latent directions"
    for _ in range(20):
        window.press("Tab", TAB)
        if window.run("document.activeElement.textContent").startswith(name):
            break
    window.events.clear()
    window.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r", windowsVirtualKeyCode=13)
    window.wait_for(lambda: any(event.get("method") == "Page.loadEventFired" for event in window.events))
    assert window.run("document.querySelector('h1').textContent") == name


def test_who_cannot_see_hears_of_every_picture_and_table(run, window):
    window.open(address(run, "kernel-shap-001/explanation"))
    nodes = window.call("Accessibility.getFullAXTree")["nodes"]
    heard = [
        (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
    ]
    assert sum(role == "heading" for role, _ in heard) == 6
    pictures = [name for role, name in heard if role == "image"]
    assert len(pictures) == 2
    assert all("control" in name for name in pictures)
    assert ("table", "Scores beside controls measured in the same call") in heard
    assert any(role == "columnheader" and name == "control" for role, name in heard)
    assert any(role == "rowheader" and "deletion AUC" in name for role, name in heard)
