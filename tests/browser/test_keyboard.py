"""A person labels twenty items of each kind without touching the mouse, and the file holds what they meant."""

import itertools

import pytest
from selenium.webdriver.common.keys import Keys

from rlhf_jax.feedback.server.app import Settings
from rlhf_jax.feedback.store.add import NewItem
from rlhf_jax.feedback.store.verdict import Axis

pytestmark = pytest.mark.browser

LETTERS = "abcdefghi"
AXES = (
    Axis("helpful", "Does it help?", labels={"1": "no", "5": "yes"}),
    Axis("honest", "Is it true?"),
    Axis("harmless", "Does it do no harm?"),
    Axis("style", "Is it well written?", low=0, high=3, required=False),
)


def by_text(site):
    """{text of an item's first response: its judgement}."""
    return {row["responses"][0]: row for row in site.judged()}


def test_twenty_pairs(site, browser):
    """Every key of the page means what is shown, in whatever order the two responses stand."""
    meant = [-3, -2, -1, 0, 1, 2, 3, "tie", "both bad", "skip"] * 2
    shop = site([NewItem(f"Question {i}", [f"{i} first", f"{i} second"]) for i in range(20)])
    browser.open(shop.link())
    orders = set()
    for _ in range(20):
        shown = browser.responses()
        number = int(shown[0].split()[0])
        wanted, swapped = meant[number], shown[0].endswith("second")
        orders.add(swapped)
        if wanted == "skip":
            browser.mark()
            browser.press("s")
            browser.next()
            continue
        strength = {"tie": "t", "both bad": "b"}.get(wanted) or str(4 + (-wanted if swapped else wanted))
        browser.press(strength)
        browser.submit()
    assert orders == {True, False}, "both orders are met"
    assert browser.text("h1") == "All done, thank you"
    found = by_text(shop)
    for i, wanted in enumerate(meant):
        row = found[f"{i} first"]
        assert row["skipped"] == (wanted == "skip")
        expected = {"tie": {"strength": 0}, "both bad": {"both_bad": True}, "skip": {"skip": True}}
        assert row["verdict"] == expected.get(wanted, {"strength": wanted})
        assert row["ms"] > 0 or row["skipped"]
    assert browser.complaints() == []


def test_twenty_rankings(site, browser):
    """K = 2 to 9, with ties, with a response taken out again, with the last one taken back."""
    items, meant = [], []
    for i in range(20):
        count = 2 + i % 8
        ranks = [(3 * k + i) % count // (1 + i % 2) for k in range(count)]
        levels = sorted(set(ranks))
        meant.append([levels.index(rank) for rank in ranks])
        items.append(NewItem(f"Question {i}", [f"{i} {LETTERS[k]}" for k in range(count)], kind="rank"))
    assert any(len(set(ranks)) < len(ranks) for ranks in meant) and any(len(set(r)) == len(r) > 2 for r in meant)
    shop = site(items)
    browser.open(shop.link())
    for done in range(20):
        shown = browser.responses()
        number = int(shown[0].split()[0])
        place = {text.split()[1]: str(at + 1) for at, text in enumerate(shown)}
        groups = [
            sorted(place[LETTERS[k]] for k, rank in enumerate(meant[number]) if rank == level)
            for level in range(max(meant[number]) + 1)
        ]
        if done % 3 == 1:  # a wrong start, mended
            browser.press(groups[-1][0], groups[-1][0])
        if done % 3 == 2:
            browser.press(groups[-1][0], Keys.BACKSPACE)
        for group in groups:
            browser.press(group[0], *itertools.chain.from_iterable(("t", other) for other in group[1:]))
        assert browser.texts("#question .order li") == [" = ".join(group) for group in groups]
        browser.submit()
    found = by_text(shop)
    assert [found[f"{i} a"]["verdict"]["ranks"] for i in range(20)] == meant


def test_twenty_ratings(site, browser):
    """Digits, arrows and Tab give the same answers; an optional question may stay open, a required one may not."""
    shop = site([NewItem("Question", [f"{i} text"], kind="rate", axes=()) for i in range(20)], axes=AXES)
    browser.open(shop.link())
    meant = [
        {"helpful": 1 + i % 5, "honest": 1 + (i + 2) % 5, "harmless": 5 - i % 5, **({"style": i % 4} if i % 3 else {})}
        for i in range(20)
    ]
    for done in range(20):
        wanted = meant[int(browser.responses()[0].split()[0])]
        if done % 4 == 0:
            browser.press(*(str(value) for value in wanted.values()))
        elif done % 4 == 1:  # from the last question up
            browser.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
            if "style" in wanted:
                browser.press(str(wanted["style"]))
            for name in ("harmless", "honest", "helpful"):
                browser.press(Keys.ARROW_UP, str(wanted[name]))
                browser.press(*([Keys.ARROW_UP] if name != "helpful" else []))  # an answer moves the mark on
        elif done % 4 == 2:  # one more, one less
            for name, value in wanted.items():
                start = 0 if name == "style" else 1
                browser.press(*[Keys.ARROW_RIGHT] * (value - start + 1), Keys.ARROW_DOWN)
        else:  # the browser's own keys for radio buttons
            browser.js("document.querySelector('.axis input').focus()")
            for value in wanted.values():
                browser.press(str(value))
        if done == 0:
            browser.press(Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_UP, Keys.BACKSPACE, Keys.ENTER)
            assert "helpful" in browser.text("#notice"), "what is missing is said"
            assert shop.judged() == []
            browser.press(str(wanted["helpful"]))
        browser.submit()
    found = by_text(shop)
    assert [found[f"{i} text"]["verdict"]["ratings"] for i in range(20)] == meant


def test_nothing_is_sent_before_there_is_an_answer(site, browser):
    shop = site([NewItem("Question", ["a", "b", "c"], kind="rank"), NewItem("Question", ["a", "b"])])
    browser.open(shop.link())
    for _ in range(2):
        browser.press(Keys.ENTER)
        assert browser.js("!document.querySelector('#notice').hidden")
        assert browser.js("document.querySelector('#submit').getAttribute('aria-disabled')") == "true"
        browser.mark()
        browser.press("s")
        browser.next()
    assert all(row["skipped"] for row in shop.judged())


def test_flags_and_a_reason(site, browser):
    """Keys that choose flags choose no strength; keys in the reason are text, until Escape."""
    shop = site([NewItem("Question", ["a", "b"]), NewItem("Other question", ["a", "b"])])
    browser.open(shop.link())
    browser.press("f", "1", "4", "4", "2", Keys.ESCAPE, "r", *"bus 7?", Keys.ENTER, *"s", Keys.ESCAPE, "4")
    browser.submit()
    (row,) = shop.judged()
    names = Settings("").flags
    assert row["flags"] == [names[0], names[1]]
    assert row["rationale"] == "bus 7?\ns"
    assert row["verdict"] == {"strength": 0}
    assert browser.js("document.querySelector('#rationale').value") == "", "the next item begins anew"
    assert browser.texts("#flags input:checked") == []


def test_the_reason_is_submitted_with_control_and_enter(site, browser):
    shop = site([NewItem("Question", ["a", "b"])])
    browser.open(shop.link())
    browser.mark()
    browser.press("t", "r", *"why", "ctrl+" + Keys.ENTER)
    browser.next()
    assert [row["rationale"] for row in shop.judged()] == ["why"]


def test_a_key_held_down_submits_once(site, browser):
    shop = site([NewItem(f"Question {i}", ["a", "b"]) for i in range(4)])
    browser.open(shop.link())
    browser.press("4")
    browser.mark()
    held = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "type": "keyDown"}
    browser.driver.execute_cdp_cmd("Input.dispatchKeyEvent", held)
    for _ in range(5):
        browser.driver.execute_cdp_cmd("Input.dispatchKeyEvent", held | {"autoRepeat": True})
    browser.driver.execute_cdp_cmd("Input.dispatchKeyEvent", held | {"type": "keyUp"})
    browser.next()
    browser.press("4")
    browser.submit()
    assert len(shop.judged()) == 2


def test_guidelines_open_and_close_by_key(site, browser):
    shop = site([NewItem("Question", ["a", "b"])], guidelines="Be fair.\nBe <b>brief</b>.")
    browser.open(shop.link())
    assert browser.js("!document.querySelector('#news').hidden"), "not read yet"
    browser.press("?")
    until_open = "document.querySelector('#guidelines').open"
    assert browser.js(until_open)
    browser.driver.execute_async_script("setTimeout(arguments[0], 300)")
    assert browser.text("#guidelines-text") == "Be fair.\nBe <b>brief</b>."
    assert browser.js("document.querySelector('#guidelines-text').innerText") == "Be fair.\nBe <b>brief</b>.", (
        "two lines"
    )
    browser.press("3")
    assert browser.js("document.querySelectorAll('#question input:checked').length") == 0, "keys stay in the panel"
    browser.press(Keys.ESCAPE)
    assert not browser.js(until_open)
    assert browser.js("document.querySelector('#news').hidden")
    browser.press("?", "?")
    assert not browser.js(until_open)


def test_single_keys_can_be_switched_off(site, browser):
    """Speech input would press them by accident; Tab, arrows and Enter still do everything."""
    shop = site([NewItem("Question", ["a", "b"])])
    browser.open(shop.link())
    browser.js("document.querySelector('#shortcuts').click()")
    try:
        browser.press("1", "s", "b")
        assert browser.js("document.querySelectorAll('#question input:checked').length") == 0
        assert shop.judged() == []
        browser.js("document.querySelector('#question input').focus()")
        browser.press(Keys.SPACE, Keys.ARROW_RIGHT)
        browser.submit()
        assert [row["said"] for row in shop.judged()] == [{"strength": -2}]
    finally:
        browser.js("localStorage.clear()")
