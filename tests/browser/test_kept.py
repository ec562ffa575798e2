"""Nothing that a person said is lost: not by a reload, not by a server that goes away, not by a second thought."""

import time
from contextlib import closing
from dataclasses import replace

import pytest
from selenium.webdriver.common.keys import Keys

from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.add import NewItem
from rlhf_jax.feedback.store.gold import pause, resume
from tests.browser.driving import Site, until

pytestmark = pytest.mark.browser

PAIRS = [NewItem(f"Question {i}", [f"{i} first", f"{i} second"]) for i in range(4)]
RANK = NewItem("Question", ["a", "b", "c"], kind="rank")
RATE = NewItem("Question", ["a"], kind="rate", axes=())
EMPTY_TAB = "sessionStorage.removeItem('label.draft')"


def state(browser):
    """All that can be set on the page."""
    return browser.js(
        "[[...document.querySelectorAll('input[type=radio]:checked, #flags input:checked')].map((box) => box.value), "
        "[...document.querySelectorAll('.order li')].map((chip) => chip.textContent), "
        "document.querySelector('#rationale').value, document.querySelector('#notice').hidden]"
    )


@pytest.mark.parametrize(
    ("item", "keys"), [(PAIRS[0], "6"), (RANK, "2t1"), (RATE, "45")], ids=["pair", "rank, begun", "rate, begun"]
)
@pytest.mark.parametrize("where", ["at the server", "in the tab"])
def test_a_reload_in_the_middle_restores_the_draft(site, browser, item, keys, where):
    shop = site([item])
    browser.open(shop.link())
    empty = state(browser)
    browser.press(*keys, "f", "3", Keys.ESCAPE, "r", *"because", Keys.ESCAPE)
    before = state(browser)
    assert before != empty
    if where == "at the server":
        until(lambda: shop.drafts() and shop.drafts()[0]["rationale"] == "because", "the draft")
        browser.js(EMPTY_TAB)
    browser.driver.refresh()
    browser.ready()
    assert state(browser) == before
    assert shop.judged() == [], "a draft is no judgement"


def test_another_window_has_the_draft_too(site, browser, other_browser):
    shop = site([RANK])
    browser.open(shop.link())
    browser.press("3", "1")
    until(lambda: shop.drafts() and shop.drafts()[0]["verdict"] == {"ranks": [1, None, 0]}, "the draft")
    other_browser.open(shop.link())
    assert other_browser.texts(".order li") == ["3", "1"]


def test_time_goes_on_after_a_reload(site, browser):
    shop = site([PAIRS[0]])
    browser.open(shop.link())
    time.sleep(1)
    browser.press("2")
    browser.driver.refresh()
    browser.ready()
    browser.submit()
    assert 1000 <= shop.judged()[0]["ms"] < 20000


@pytest.mark.parametrize("left", [1, 0], ids=["something left to judge", "nothing left to judge"])
def test_nothing_of_one_person_is_on_the_page_of_the_next(site, browser, left):
    """Two links opened in one tab, one after the other."""
    shop = site([replace(RANK, target_n=1 + left)], names=("ann", "bob"))
    browser.open(shop.link("ann"))
    browser.press("3", "1", "f", "1", Keys.ESCAPE, "r", *"mine", Keys.ESCAPE)
    browser.driver.get(shop.link("bob"))  # only the part after the # differs: no load
    shown = "Boolean(document.querySelector('.cards, .plain'))"
    until(lambda: browser.text("#who") == "bob" and browser.js(shown), "bob's page")
    assert browser.texts("#flags input:checked") == []
    assert browser.texts(".order li") == ["none picked yet"] * left
    assert browser.js("document.querySelector('#rationale').value") == ""
    assert browser.js("!location.hash"), "no token stays in the address bar"


def test_a_draft_is_of_one_file_only(site, browser, tmp_path):
    """Another store, served later at the same address, numbers its tasks alike."""
    old = site([RANK])
    browser.open(old.link())
    browser.press("3", "1")
    old.stop()
    (tmp_path / "other").mkdir()
    new = Site(tmp_path / "other", [RANK], port=old.port)
    try:
        browser.open(new.link())
        assert browser.texts(".order li") == ["none picked yet"]
    finally:
        new.stop()


def test_undo_and_say_something_else(site, browser):
    """By letter, by Ctrl-Z, several steps back; every word stays in the file, the last one counts."""
    shop = site(PAIRS)
    browser.open(shop.link())
    for key in ("1", "2", "3", "s"):
        browser.mark()
        browser.press(key, *([] if key == "s" else [Keys.ENTER]))
        browser.next()
    assert browser.text("h1") == "All done, thank you"
    for keys in ("u", "ctrl+z", "u"):
        browser.mark()
        browser.press(keys)
        browser.next()
    assert browser.js("document.querySelector('#question input:checked').value") == "-2", "what was said is there"
    assert browser.text("#notice").startswith("Your last answer is here again")
    for key in ("7", "6", "5"):
        browser.press(key)
        browser.submit()
    assert [row["said"] for row in shop.judged()] == [{"strength": s} for s in (-3, 3, 2, 1)]
    kinds = [row["kind"] for row in shop.query("SELECT kind FROM judgement ORDER BY id")]
    assert kinds == ["verdict"] * 3 + ["skip"] + ["undo"] * 3 + ["verdict"] * 3


def test_undo_keeps_what_was_begun(site, browser):
    shop = site(PAIRS[:2])
    browser.open(shop.link())
    browser.press("4")
    browser.submit()
    begun = browser.responses()
    browser.press("7")
    browser.mark()
    browser.press("u")
    browser.next()
    browser.submit()
    assert browser.responses() == begun
    assert browser.js("document.querySelector('#question input:checked').value") == "3"


def test_the_server_goes_away_and_comes_back(site, browser):
    """Submitted while there is no server: told at once, kept, sent when it is back, and stored once."""
    shop = site(PAIRS[:2])
    browser.open(shop.link())
    shop.stop()
    browser.press("5", "r", *"no server", Keys.ESCAPE, Keys.ENTER)
    until(lambda: browser.js("document.querySelector('#notice').className") == "lost", "word of the lost connection")
    assert "kept" in browser.text("#notice")
    browser.press("1")  # while it is being sent, nothing else can be said
    assert browser.js("document.querySelector('#question input:checked').value") == "1"
    browser.mark()
    shop.start()
    browser.js("[...document.querySelectorAll('#notice button')].at(-1).click()")
    browser.next()
    (row,) = shop.judged()
    assert (row["said"], row["rationale"]) == ({"strength": 1}, "no server")
    assert browser.js("document.querySelector('#notice').hidden")


def test_an_answer_that_is_lost_on_the_way_is_stored_once(site, browser):
    """The judgement arrives, the reply does not: the page sends the same again."""
    shop = site(PAIRS[:2])
    browser.open(shop.link())
    browser.press("2")
    browser.js(
        "window.real = window.fetch, window.fetch = async (path, options) => { const reply = await real(path, options); "
        "if (String(path).endsWith('judgement') && !window.once) { window.once = true; throw new TypeError('cut off'); } "
        "return reply; }"
    )
    browser.submit()
    assert [row["said"] for row in shop.judged()] == [{"strength": -2}]
    assert len(shop.query("SELECT id FROM judgement")) == 1


def test_a_draft_that_did_not_reach_the_server_is_there_after_a_reload(site, browser):
    shop = site([RANK])
    browser.open(shop.link())
    browser.press("1")
    until(lambda: shop.drafts(), "the first draft")
    browser.js(
        "window.real = window.fetch, window.fetch = (path, options) => String(path).endsWith('draft') ? "
        "Promise.reject(new TypeError('cut off')) : real(path, options)"
    )
    browser.press("3", "2")
    until(lambda: browser.js("document.querySelector('#notice').className") == "lost", "word of the lost connection")
    browser.driver.refresh()
    browser.ready()
    assert shop.drafts()[0]["verdict"] == {"ranks": [0, None, None]}
    assert browser.texts(".order li") == ["1", "3", "2"]


TAKE = """const [token, done] = arguments, headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
fetch("api/task", { headers }).then((reply) => reply.json()).then(({ task }) => {
  const body = JSON.stringify({ assignment: task.assignment, verdict: { strength: 0 } });
  return fetch("api/judgement", { method: "POST", headers, body });
}).then((reply) => done(reply.status));"""


def test_a_place_that_was_given_to_somebody_else(site, browser):
    """The lease ended and another person judged the item: said calmly, and the work goes on with the next."""
    shop = site(PAIRS[:3], names=("ann", "bob"))
    browser.open(shop.link())
    browser.press("2")
    mine = browser.responses()
    with closing(open_store(shop.db)) as con:
        con.execute("UPDATE assignment SET leased_until = 0")
    while not any(row["responses"][0] in mine for row in shop.judged()):
        assert browser.driver.execute_async_script(TAKE, shop.tokens["bob"]) == 200
    count = len(shop.judged())
    browser.submit()
    assert len(shop.judged()) == count, "nothing of ann's is stored"
    if browser.text("h1") == "All done, thank you":
        assert "could not be saved" in browser.text("#work")
    else:
        assert "could not be saved" in browser.text("#notice")
        assert browser.responses() != mine


def test_the_last_item_that_was_given_to_somebody_else(site, browser):
    """Nothing is left to judge: the person is told so beside that, and what they wrote is kept as a draft."""
    shop = site(PAIRS[:1], names=("ann", "bob"))
    browser.open(shop.link())
    browser.press("2", "r", *"because", Keys.ESCAPE)
    until(lambda: shop.drafts() and shop.drafts()[0]["rationale"] == "because", "the draft")
    with closing(open_store(shop.db)) as con:
        con.execute("UPDATE assignment SET leased_until = 0")
        con.execute("DELETE FROM draft")  # it has not arrived
    assert browser.driver.execute_async_script(TAKE, shop.tokens["bob"]) == 200
    browser.submit()
    assert browser.text("h1") == "All done, thank you"
    assert "could not be saved" in browser.text("#work") and "kept as a draft" in browser.text("#work")
    assert [row["annotator"] for row in shop.judged()] == [shop.tokens["bob"].partition(".")[0]]
    (draft,) = shop.drafts()
    assert (draft["verdict"], draft["rationale"]) == ({"strength": -2}, "because")


def test_what_cannot_be_kept_is_shown_once_more(site, browser):
    """Judged in another window of the same person: no draft is taken any more."""
    shop = site(PAIRS[:2])
    browser.open(shop.link())
    browser.press("2", "r", *"because", Keys.ESCAPE)
    assert browser.driver.execute_async_script(TAKE, shop.tokens["ann"]) == 200
    browser.submit()
    assert "could not be saved" in browser.text("#notice") and "You wrote: “because”" in browser.text("#notice")


def test_an_undone_skip_that_somebody_else_has_now(site, browser, other_browser):
    """The skip stands, and that is said; the next undo takes back the answer before it."""
    shop = site(PAIRS[:2], names=("ann", "bob"))
    browser.open(shop.link())
    browser.press("6")
    browser.submit()
    judged = shop.judged()[0]["responses"]
    browser.mark()
    browser.press("s")
    browser.next()
    assert browser.text("h1") == "All done, thank you"
    other_browser.open(shop.link("bob"))
    mine = other_browser.responses()
    browser.mark()
    browser.press("u")
    browser.next()
    assert "somebody else has this item now; your skip stands" in browser.text("#work")
    assert "here again" not in browser.text("body")
    other_browser.press("1")
    other_browser.submit()
    assert sorted(shop.judged()[-1]["responses"]) == sorted(mine), "bob's work is stored"
    browser.mark()
    browser.press("u")
    browser.next()
    assert sorted(browser.responses()) == sorted(judged)
    assert browser.text("#notice").startswith("Your last answer is here again")


def test_an_undo_whose_item_went_to_somebody_else(site, browser):
    """The answer to the undo comes late, and the place is gone by then: nobody is told that the item is here again."""
    shop = site(PAIRS[:2], names=("ann", "bob"))
    browser.open(shop.link())
    browser.press("6")
    browser.submit()
    browser.js(
        "window.real = window.fetch, window.fetch = async (path, options) => { const reply = await real(path, options); "
        "if (String(path).endsWith('undo') && !window.once) { window.once = true; throw new TypeError('cut off'); } "
        "return reply; }"
    )
    mine = browser.responses()
    browser.press("u")
    until(lambda: browser.js("Boolean(window.once)"), "the undo")
    with closing(open_store(shop.db)) as con:
        con.execute("UPDATE assignment SET leased_until = 0 WHERE id = 1")
    assert browser.driver.execute_async_script(TAKE, shop.tokens["bob"]) == 200
    until(lambda: "taken back" in browser.text("body"), "the word about it")
    assert "somebody else has its item now; this is another one" in browser.text("#notice")
    assert sorted(browser.responses()) == sorted(mine)


def test_a_pause_is_told_and_ends_by_itself(site, browser):
    shop = site(PAIRS)
    browser.open(shop.link())
    browser.press("4")
    with closing(open_store(shop.db)) as con:
        pause(con, "ann", "Please speak with Ada.")
    browser.submit()
    assert browser.text("h1") == "Paused"
    assert "Please speak with Ada." in browser.text("#work")
    with closing(open_store(shop.db)) as con:
        resume(con, "ann")
    browser.mark()
    browser.js("[...document.querySelectorAll('.plain button')].at(-1).click()")
    browser.next()
    assert browser.js("Boolean(document.querySelector('.card'))")


def test_a_wrong_link(site, browser):
    shop = site(PAIRS)
    for link in (shop.origin, f"{shop.origin}/#wrong", shop.link()[:-1]):
        browser.driver.get("about:blank")
        browser.js("0")
        browser.driver.get(link)
        browser.js("sessionStorage.clear()")
        browser.driver.get("about:blank")
        browser.driver.get(link)
        browser.ready()
        assert browser.text("h1") == "This link does not open the page"
    browser.driver.get(shop.link())
    until(lambda: browser.js("Boolean(document.querySelector('.card'))"), "the right link to work in the same tab")
