"""Texts and people that mean harm, and people who work at the same time."""

import re
import urllib.request

import pytest
from selenium.webdriver.common.keys import Keys

from rlhf_jax.feedback.server.files import page_files
from rlhf_jax.feedback.store.add import NewItem
from tests.browser.driving import until

pytestmark = pytest.mark.browser

EVIL = [
    "<img src=x onerror=\"window.hacked = 'img'\">",
    "<script>window.hacked = 'script'</script>",
    "</div></article><iframe srcdoc=\"<script>parent.hacked = 'frame'</script>\"></iframe>",
    "<svg onload=\"window.hacked = 'svg'\"><style>* { display: none }</style>",
    "javascript:alert(1) [link](javascript:alert(1)) ${window.hacked = 1} {{constructor.constructor('hacked=1')()}}",
    "\u202e desrever \u2066 isolated \u2069 \u0000 \ufeff Z\u0351\u036b\u0343\u036a\u0302\u036b" + "\u0336" * 40,
    "<b>bold</b> &amp; &#60;i&#62; `code` **stars**\r\n\ttab\n\n\n   spaces   ",
    "x" * 3000,
]


def test_hostile_texts_are_shown_as_text(site, browser):
    """As prompt, as earlier turn, as response of each kind, as guidelines, as name and as question: the very characters."""
    talk = [
        {"role": "system", "content": EVIL[0]},
        {"role": "user", "content": EVIL[2]},
        {"role": "assistant", "content": EVIL[3]},
        {"role": "user", "content": EVIL[1]},
    ]
    items = [
        *(NewItem(talk, [EVIL[i], EVIL[i + 1]]) for i in range(0, len(EVIL), 2)),
        NewItem(talk, EVIL, kind="rank"),
        *(NewItem(talk, [text], kind="rate", axes=()) for text in EVIL),
    ]
    name = '<img src=x onerror="hacked=1">'
    shop = site(items, names=(name,), guidelines="\n".join(EVIL[:3]), questions={"overall": EVIL[1]})
    browser.open(shop.link(name))
    seen = []
    for _ in range(len(items)):
        assert browser.texts(".prompt .text") == [message["content"] for message in talk]
        seen += browser.responses()
        assert browser.js("[...document.querySelectorAll('.text, #ask')].every((node) => node.childElementCount === 0)")
        assert (
            browser.js("document.querySelectorAll('main img, script:not([src]), iframe, main svg, style').length") == 0
        )
        assert browser.js("document.documentElement.scrollWidth <= innerWidth"), "no text is wider than the page"
        browser.press("h", "?", "?")
        browser.mark()
        browser.press("s")
        browser.next()
    assert sorted(seen) == sorted(EVIL * 3)
    assert browser.js("window.hacked ?? null") is None
    assert browser.complaints() == [], "and the content policy had nothing to stop"


def test_the_policy_stops_a_script_that_got_in(site, browser):
    """A second fence: inline scripts and other hosts are refused by the page's own policy."""
    shop = site([NewItem("Question", ["a", "b"])])
    browser.open(shop.link())
    browser.js(
        "(() => { const script = document.createElement('script'); script.textContent = 'window.hacked = 1'; "
        "document.body.append(script); const image = new Image(); image.src = 'http://127.0.0.2:9/x.png'; "
        "document.body.append(image); })()"
    )
    assert browser.js("window.hacked ?? null") is None
    until(lambda: sum("Content Security Policy" in line for line in browser.complaints()) >= 1, "the policy's word")


def test_no_request_leaves_for_another_host(site, browser):
    """All addresses that a whole session asks for, and all addresses in the bytes served."""
    items = [
        NewItem("Q", ["a", "b"]),
        NewItem("Q", ["a", "b", "c"], kind="rank"),
        NewItem("Q", ["a"], kind="rate", axes=()),
    ]
    shop = site(items)
    browser.open(shop.link())
    for _ in items:
        browser.press("?", "?", "f", "1", Keys.ESCAPE, "r", "x", Keys.ESCAPE)
        browser.mark()
        browser.press("s")
        browser.next()
    asked = browser.requests()
    assert any(url.endswith("/api/judgement") for url in asked)
    strangers = [url for url in asked if not url.startswith((f"{shop.origin}/", "about:", "data:"))]
    assert strangers == []
    for name in ("", *page_files()):
        with urllib.request.urlopen(f"{shop.origin}/{name}") as reply:
            content, headers = reply.read().decode(), reply.headers
        assert re.findall(r"""(?i)https?:|['"(\s]//[a-z0-9]""", re.sub(r"(?m)^\s*//.*$|\s// .*$", "", content)) == [], (
            name
        )
        assert "default-src 'self'" in headers["content-security-policy"]
        parsers = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
        assert re.findall(parsers, content) == [], name


def test_the_token_stays_out_of_every_address(site, browser):
    shop = site([NewItem("Question", ["a", "b"])])
    browser.open(shop.link())
    browser.press("4")
    browser.submit()
    secret = shop.tokens["ann"]
    sent = [url.split("#")[0] for url in browser.requests()]
    assert not any(secret in url for url in sent)
    assert browser.js("location.href") == f"{shop.origin}/"
    assert secret not in browser.js("document.documentElement.outerHTML")


@pytest.mark.parametrize("overlap", [1, 2])
def test_two_people_at_once(site, browser, other_browser, overlap):
    """Turn by turn: with overlap 2 both judge all items, with 1 they share them; neither sees what the other says."""
    shop = site(
        [NewItem(f"Q{i}", [f"{i} first", f"{i} second"], target_n=overlap) for i in range(6)], names=("ann", "bob")
    )
    people = {"ann": (browser, "1"), "bob": (other_browser, "7")}
    for name, (window, _) in people.items():
        window.open(shop.link(name))
    working = dict(people)
    while working:
        for name, (window, key) in list(working.items()):
            assert window.text("#who") == name
            if window.js("Boolean(document.querySelector('.plain'))"):
                del working[name]
                continue
            assert window.js("document.querySelectorAll('input:checked').length") == 1, "only the keys' own switch"
            window.press(key)
            window.submit()
    rows = shop.judged()
    assert len(rows) == 6 * overlap
    said = {
        row["annotator"]: {tuple(r["said"].items()) for r in rows if r["annotator"] == row["annotator"]} for row in rows
    }
    assert sorted(map(sorted, said.values())) == [[(("strength", -3),)], [(("strength", 3),)]]
    assert len({(row["annotator"], row["item"]) for row in rows}) == 6 * overlap
