"""The page on every screen: nothing is cut off, everything can be read, reached and named."""

import pytest
from selenium.webdriver.common.keys import Keys

from rlhf_jax.feedback.store.add import NewItem

pytestmark = pytest.mark.browser

LONG = " ".join(["A sentence of some length that has to be read."] * 60)
ITEMS = {
    "pair": NewItem([{"role": "user", "content": "Hi"}, {"role": "user", "content": "Question"}], [LONG, "Short."]),
    "rank": NewItem("Question", [f"{i} {LONG[: 200 * i]}" for i in range(9)], kind="rank"),
    "rate": NewItem("Question", [LONG], kind="rate", axes=()),
}

CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
                           return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const part = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const ground = (node) => { for (; node; node = node.parentElement) {
    const color = rgb(getComputedStyle(node).backgroundColor); if (color[3] > 250) return color; } return [255, 255, 255]; };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !node.checkVisibility() || node.closest("[aria-disabled=true], .unseen"))
      continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([ratio, node.tagName, node.className, walk.currentNode.textContent.slice(0, 30)]);
  }
  return found;
})()"""


@pytest.fixture(params=list(ITEMS))
def opened(request, site, browser):
    shop = site([ITEMS[request.param]])
    browser.open(shop.link())
    return browser, request.param


@pytest.mark.parametrize("width", [320, 390, 768, 899, 900, 1280, 2200])
def test_no_screen_cuts_anything_off(opened, width):
    browser, kind = opened
    browser.look(width=width, height=800)
    assert browser.js("document.documentElement.scrollWidth <= innerWidth"), "nothing is scrolled sideways"
    outside = """[...document.querySelectorAll("button, .step, .point, .card, h2, textarea, summary")].filter((node) => {
      const box = node.getBoundingClientRect();
      return node.checkVisibility() && (box.left < -1 || box.right > innerWidth + 1); }).map((node) => node.textContent)"""
    assert browser.js(outside) == []
    columns = browser.js(
        "new Set([...document.querySelectorAll('.card')].map((card) => card.getBoundingClientRect().left)).size"
    )
    if width < 700 or kind == "rate":
        assert columns == 1
    if kind == "pair":
        assert columns == (2 if width >= 900 else 1), "two responses stand side by side from 900 px on"
    measure = browser.js("Math.max(...[...document.querySelectorAll('.text')].map((text) => text.clientWidth))")
    assert measure <= 70 * 12, "lines of about 70 letters"


def test_fingers_hit_what_they_aim_at(opened):
    browser, _ = opened
    browser.look(width=390, height=844)
    small = """[...document.querySelectorAll("main button, #dock button, .step, .point, .top button")]
      .filter((node) => node.checkVisibility()).map((node) => node.getBoundingClientRect())
      .filter((box) => box.height < 36 || box.width < 36).length"""
    assert browser.js(small) == 0
    assert browser.js("document.querySelector('#dock').getBoundingClientRect().height < innerHeight / 2"), (
        "room to read"
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_stands_out(opened, dark):
    """WCAG 2.2, success criterion 1.4.3: a contrast of 4.5 at least."""
    browser, _ = opened
    browser.look(dark=dark, still=True)
    browser.press("f", "1", Keys.ESCAPE, "r", "x", Keys.ESCAPE, "2")
    assert browser.js(CONTRAST) == []
    ground = browser.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in ground[4:-1].split(",")) < 384) == dark, (
        "the page is as bright as it was asked to be"
    )


def test_tab_reaches_everything_and_the_focus_is_seen(opened):
    browser, kind = opened
    browser.press("f", Keys.ESCAPE)
    reached: list[str] = []
    for _ in range(40):
        browser.press(Keys.TAB)
        name, ring = browser.js(
            "(() => { const node = document.activeElement; const frames = [node, node.closest('label')].filter(Boolean); "
            "return [node.getAttribute('aria-label') || node.labels?.[0]?.textContent || node.textContent || node.id, "
            "frames.some((frame) => parseFloat(getComputedStyle(frame).outlineWidth) >= 2 && "
            "getComputedStyle(frame).outlineStyle !== 'none')]; })()"
        )
        if browser.js("document.activeElement === document.body"):  # past the last one: the window's own controls
            continue
        assert ring, f"no ring around {name!r}"
        reached.append(name.strip())
    for wanted in ("Guidelines", "Undo", "Skip", "Flag", "Reason", "Submit"):
        assert any(name.startswith(wanted) for name in reached), f"{wanted} is not reached: {reached}"
    more = {"pair": "Both bad", "rank": "Response 9", "rate": "1"}[kind]
    assert any(name.startswith(more) for name in reached)


def test_everything_has_a_name_and_a_role(opened):
    """What a screen reader says: the browser's own accessibility tree."""
    browser, _ = opened
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    told = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n.get("ignored")]
    controls = [
        name for role, name in told if role in ("button", "radio", "checkbox", "textbox", "radiogroup", "group")
    ]
    assert all(name.strip() for name in controls), told
    roles = {role for role, _ in told}
    assert {"main", "banner", "contentinfo", "button", "article", "progressbar", "status"} <= roles


def test_who_wants_no_motion_gets_none(opened):
    browser, _ = opened
    moving = """[...document.querySelectorAll('*')].some((node) =>
      ["transitionDuration", "animationDuration"].some((name) => parseFloat(getComputedStyle(node)[name]) > 0))"""
    assert browser.js(moving)
    browser.look(still=True)
    assert not browser.js(moving)


def test_progress_is_told(site, browser):
    shop = site([NewItem(f"Question {i}", ["a", "b"]) for i in range(6)])
    browser.open(shop.link())
    assert browser.text("#count") == "0 of 6"
    assert "skipped nothing" in browser.js("document.querySelector('#count').title"), "what the 6 are"
    for _ in range(4):
        browser.press("4")
        browser.submit()
    assert browser.text("#count") == "4 of 6about 1 min left"
    assert browser.js("document.querySelector('#bar').value / document.querySelector('#bar').max") == pytest.approx(
        4 / 6
    )


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_scale_has_words_before_anything_is_chosen(site, browser, width):
    shop = site([ITEMS["pair"]])
    browser.look(width=width, height=800)
    browser.open(shop.link())
    shown = """[...document.querySelectorAll(".word")].filter((node) => node.checkVisibility()).map((node) =>
      node.textContent).join() + getComputedStyle(document.querySelector(".said"), "::before").content"""
    for words in ("A much better", "ie", "B much better"):
        assert words in browser.js(shown)
    browser.press("6")
    assert browser.text(".said") == "B is better than A"
    assert "much" not in browser.js("getComputedStyle(document.querySelector('.said'), '::before').content")


def test_a_response_without_a_letter_is_marked(site, browser):
    shop = site([NewItem("Question", ["\n", " \u200b\u00a0"], kind="rank"), NewItem("Question", ["", "a"])])
    browser.open(shop.link())
    for _ in range(2):
        marks = browser.texts(".card .empty")
        kind = browser.js("document.querySelector('#work').className")
        assert marks == (["(nothing but spaces or line breaks)"] * 2 if kind == "rank" else ["(an empty response)"])
        browser.mark()
        browser.press("s")
        browser.next()
