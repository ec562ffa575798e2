"""The HTTP interface, request by request: what it answers, and all that it refuses."""

import asyncio
import json
import logging
from urllib.parse import unquote

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.testclient import TestClient

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.server.app import app
from rlhf_jax.feedback.server.files import page_files
from rlhf_jax.feedback.server.settings import AXES, FLAGS, Settings
from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.add import NewItem, add_annotator, add_items
from rlhf_jax.feedback.store.assign import Rules
from rlhf_jax.feedback.store.read import judgements
from rlhf_jax.feedback.store.verdict import Axis
from tests.feedback.judging import PLAIN, pairs

ORIGIN = "http://127.0.0.1:8000"
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(1)</script>\u202e\x00&amp;</textarea>'


class Site:
    """A server over a store of its own, and what a page would send."""

    def __init__(self, folder, items, *, rules=PLAIN, report=None, report_page=None, **settings):
        self.db = folder / "judgements.sqlite"
        self.con = open_store(self.db)
        self.con.execute("PRAGMA synchronous = OFF")
        add_items(self.con, items)
        self.tokens = {n: add_annotator(self.con, n, admin=n == "root") for n in ("ann", "bob", "root")}
        self.app = app(Settings(self.db, rules=rules, **settings), report=report, report_page=report_page)
        self.client = TestClient(self.app, base_url=ORIGIN)

    def get(self, path="/api/task", who="ann", **headers):
        return self.client.get(path, headers={"Authorization": f"Bearer {self.tokens[who]}", **headers})

    def post(self, path, body, who="ann", **headers):
        return self.client.post(path, json=body, headers={"Authorization": f"Bearer {self.tokens[who]}", **headers})

    def say(self, verdict, who="ann", **more):
        task = self.get(who=who).json()["task"]
        body = {"assignment": task["assignment"], "verdict": verdict, "flags": [], "rationale": "", "ms": 7, **more}
        return self.post("/api/judgement", body, who=who)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, pairs(5, target_n=2))


class TestThePage:
    def test_every_file_is_served_as_it_lies_in_the_package(self, site):
        files = page_files()
        assert {"index.html", "app.js", "style.css", "icon.svg"} <= set(files)
        for name, content in files.items():
            reply = site.client.get(f"/{name}")
            assert reply.status_code == 200 and reply.content == content
        assert site.client.get("/").content == files["index.html"]
        types = {name: site.client.get(f"/{name}").headers["content-type"].partition(";")[0] for name in files}
        assert types["index.html"] == "text/html" and types["style.css"] == "text/css"
        assert types["app.js"] == "text/javascript" and types["icon.svg"] == "image/svg+xml"

    def test_asks_nobody_else_for_anything(self, site):
        """No address but the name of the SVG standard, which is never fetched."""
        for name in page_files():
            text = site.client.get(f"/{name}").text.replace("http://www.w3.org/2000/svg", "")
            for foreign in ("http://", "https://", "//cdn", "@import", "ws://"):
                assert foreign not in text, f"{name} names {foreign}"

    @pytest.mark.parametrize("path", ["/", "/api/task", "/nothing", "/api/judgement", "/app.js"])
    def test_every_answer_has_the_headers(self, site, path):
        for reply in (
            site.client.get(path),
            site.client.post(path),
            site.client.get(path, headers={"Host": "evil.test"}),
        ):
            headers = reply.headers
            assert "default-src 'self'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
            assert headers["x-frame-options"] == "DENY"
            assert "set-cookie" not in headers and "access-control-allow-origin" not in headers
            if path.startswith("/api"):
                assert headers["cache-control"] == "no-store"

    @pytest.mark.parametrize(
        "path",
        [
            "/../store.py",
            "/..%2fstore.py",
            "/%2e%2e/store.py",
            "/page/../../store.py",
            "//etc/passwd",
            "/judgements.sqlite",
            "/index.html/",
            "/index.html%00",
            "/app.js/../../../../etc/passwd",
            "/....//store.py",
        ],
    )
    def test_no_path_leads_out_of_it(self, site, path):
        """Written to the app as it comes from the wire: a client would tidy the path first."""
        sent = raw(site.app, "GET", unquote(path), [(b"host", b"127.0.0.1")])
        assert sent["status"] == 404, path
        assert json.loads(sent["body"]) == {"error": "Not Found"}


ROUTES = {
    "/": {"GET"},
    "/index.html": {"GET"},
    "/app.js": {"GET"},
    "/api/task": {"GET"},
    "/api/guidelines": {"GET"},
    "/api/report": {"GET"},
    "/api/report.html": {"GET"},
    "/api/judgement": {"POST"},
    "/api/draft": {"POST"},
    "/api/undo": {"POST"},
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "X"]
)
def test_every_method_of_every_route(site, path, method):
    """Without a token: the page is for anybody, the rest for nobody, and every other method is refused."""
    headers = [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")]
    sent = raw(site.app, method, path, headers, b"{}")
    allowed = ROUTES[path] | ({"HEAD"} if "GET" in ROUTES[path] else set())
    expected = 405 if method not in allowed else 401 if path.startswith("/api") else 200
    assert sent["status"] == expected
    assert judgements(site.con) == []


class TestTokens:
    @pytest.mark.parametrize("path", [path for path in ROUTES if path.startswith("/api")])
    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            "Bearer wrong.token",
            "Basic {}",
            "{}",
            "Bearer {}x",
            "Bearer x{}",
        ],
    )
    def test_none_or_a_wrong_one_is_refused(self, site, path, header):
        headers = {} if header is None else {"Authorization": header.format(site.tokens["ann"])}
        send = (
            site.client.get
            if ROUTES[path] == {"GET"}
            else lambda p, headers: site.client.post(p, json={}, headers=headers)
        )
        reply = send(path, headers=headers)
        assert reply.status_code == 401 and "error" in reply.json()
        assert reply.headers["www-authenticate"] == "Bearer"

    def test_in_the_address_does_not_count(self, site):
        assert site.client.get(f"/api/task?token={site.tokens['ann']}").status_code == 401

    def test_the_report_is_for_admins(self, tmp_path):
        site = Site(tmp_path, pairs(1), report=lambda con: {"n": len(judgements(con))}, report_page=lambda con: "<p>7")
        assert site.get("/api/report").status_code == 403 and site.get("/api/report.html").status_code == 403
        assert site.get("/api/report", "root").json() == {"n": 0}
        page = site.get("/api/report.html", "root")
        assert page.text == "<p>7" and page.headers["content-disposition"].startswith("attachment")

    def test_no_report_is_told(self, site):
        assert site.get("/api/report", "root").status_code == 404

    def test_one_person_reaches_nothing_of_anothers(self, site):
        task = site.get().json()["task"]
        site.post("/api/draft", {"assignment": task["assignment"], "draft": "secret thought"})
        for path, more in (("/api/judgement", {"verdict": {"strength": 1}}), ("/api/draft", {"draft": 1})):
            assert site.post(path, {"assignment": task["assignment"], **more}, who="bob").status_code == 409
        site.say({"strength": 2}, rationale="private reasons")
        assert site.post("/api/undo", {}, who="bob").status_code == 409
        for who in ("bob", "root"):
            for path in ("/api/task", "/api/guidelines", "/api/report"):
                assert "secret" not in site.get(path, who).text and "private" not in site.get(path, who).text
        assert len(judgements(site.con)) == 1

    def test_none_is_logged(self, tmp_path, caplog, capfd):
        def fails(con):
            raise RuntimeError("broken report")

        caplog.set_level(logging.DEBUG)
        site = Site(tmp_path, pairs(2), report=fails)
        site.client = TestClient(site.app, base_url=ORIGIN, raise_server_exceptions=False)
        site.say({"strength": 1})
        reply = site.get("/api/report", "root")
        assert reply.status_code == 500 and "broken" not in reply.text and "error" in reply.json()
        told = caplog.text + "".join(capfd.readouterr())
        for token in site.tokens.values():
            assert token not in told and token.partition(".")[2] not in told


class TestOtherSites:
    @pytest.mark.parametrize(
        ("host", "status"),
        [
            (["127.0.0.1:8000"], 200),
            (["localhost"], 200),
            (["LOCALHOST:1"], 200),
            (["[::1]:8000"], 200),
            (["evil.test"], 400),
            (["127.0.0.1.evil.test"], 400),
            (["localhost.evil.test:8000"], 400),
            (["evil.test:127.0.0.1"], 400),
            (["127.0.0.1@evil.test"], 400),
            (["[::1].evil.test"], 400),
            (["[::1"], 400),
            ([""], 400),
            ([], 400),
            (["127.0.0.1", "evil.test"], 400),
        ],
    )
    def test_only_known_hosts_are_answered(self, site, host, status):
        """A foreign name that is made to point here (DNS rebinding) reaches nothing."""
        headers = [(b"host", name.encode()) for name in host]
        assert raw(site.app, "GET", "/", headers)["status"] == status

    def test_more_hosts_can_be_allowed(self, tmp_path):
        site = Site(tmp_path, pairs(1), allowed_hosts=("label.example.org",))
        assert raw(site.app, "GET", "/", [(b"host", b"label.example.org:80")])["status"] == 200
        assert raw(site.app, "GET", "/", [(b"host", b"127.0.0.1")])["status"] == 400

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 200),
            ({"Origin": ORIGIN}, 200),
            ({"Origin": "https://127.0.0.1:8000"}, 200),  # behind a proxy that speaks TLS
            ({"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}, 200),
            ({"Origin": "http://evil.test"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://127.0.0.1:8001"}, 403),
            ({"Origin": "http://127.0.0.1:8000.evil.test"}, 403),
            ({"Origin": ""}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Origin": ORIGIN, "Sec-Fetch-Site": "same-site"}, 403),
        ],
    )
    def test_may_not_post(self, site, headers, status):
        task = site.get().json()["task"]
        body = {"assignment": task["assignment"], "verdict": {"strength": 1}}
        assert site.post("/api/judgement", body, **headers).status_code == status
        assert len(judgements(site.con)) == (status == 200)

    def test_a_form_may_not_post(self, site):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            headers = {"Authorization": f"Bearer {site.tokens['ann']}", "Content-Type": kind}
            assert site.client.post("/api/undo", content="{}", headers=headers).status_code == 415


class TestVerdicts:
    def test_five_ways_to_judge_a_pair_are_five_rows(self, site):
        for verdict in ({"strength": -3}, {"strength": 2}, {"strength": 0}, {"both_bad": True}, {"skip": True}):
            assert site.say(verdict).status_code == 200
        rows = judgements(site.con)
        assert [row["said"] for row in rows[:3]] == [{"strength": -3}, {"strength": 2}, {"strength": 0}]
        coded = {(r["strength"] and abs(r["strength"]), r["tie"], r["both_bad"], r["skipped"]) for r in rows}
        assert coded == {
            (3, False, False, False),
            (2, False, False, False),
            (0, True, False, False),
            (None, False, True, False),
            (None, False, False, True),
        }

    def test_all_that_was_sent_is_kept(self, site):
        reply = site.say(
            {"strength": -1}, flags=["broken", "unsafe", "broken"], rationale="because\u00e9 \U0001f642", ms=5312.4
        )
        assert reply.status_code == 200 and reply.json()["progress"]["done"] == 1
        (row,) = judgements(site.con)
        assert (row["flags"], row["rationale"], row["ms"]) == (["broken", "unsafe"], "because\u00e9 \U0001f642", 5312)
        assert row["guideline_version"] == reply.json()["guideline_version"] and len(row["ui_version"]) == 12
        assert row["source_kind"] == "human"

    @pytest.mark.parametrize("K", range(2, 10))
    def test_rankings_of_2_to_9(self, tmp_path, K):
        site = Site(tmp_path, [NewItem("p", [f"r{k}" for k in range(K)], kind="rank")])
        task = site.get().json()["task"]
        assert sorted(task["responses"]) == [f"r{k}" for k in range(K)]
        wanted = {f"r{k}": max(0, k - 1) for k in range(K)}  # r0 and r1 tied, then one by one
        assert site.say({"ranks": [wanted[text] for text in task["responses"]]}).status_code == 200
        assert judgements(site.con)[0]["verdict"] == {"ranks": [0, 0, *range(1, K - 1)]}

    def test_a_required_axis_that_is_missing_stores_nothing(self, tmp_path):
        axes = (Axis("helpful", "?"), Axis("style", "?", required=False, labels={"1": "clumsy"}))
        site = Site(tmp_path, [NewItem(f"p{i}", ["a"], kind="rate", axes=()) for i in range(2)], axes=axes)
        task = site.get().json()["task"]
        assert task["axes"][1] == {
            **dict(name="style", question="?", low=1, high=5, required=False, labels={"1": "clumsy"})
        }
        reply = site.say({"ratings": {"style": 3}})
        assert reply.status_code == 422 and reply.json() == {"error": "not answered: helpful"}
        assert judgements(site.con) == []
        assert site.say({"ratings": {"helpful": 3}}).status_code == 200
        assert judgements(site.con)[0]["verdict"]["ratings"] == {"helpful": 3}

    def test_the_default_axes_are_the_four(self, tmp_path):
        site = Site(tmp_path, [NewItem("p", ["a"], kind="rate", axes=())])
        task = site.get().json()["task"]
        assert [axis["name"] for axis in task["axes"]] == ["helpful", "honest", "harmless", "style"]
        assert task["flags"] == list(FLAGS) and len(task["responses"]) == 1
        assert site.say({"ratings": {axis.name: 5 for axis in AXES}}).status_code == 200

    def test_the_question_is_the_axis(self, tmp_path):
        items = [NewItem("p", ["a", "b"], axes=(axis,)) for axis in ("overall", "style")]
        site = Site(tmp_path, items, questions={"overall": "Which one?"})
        seen = {site.get(who=who).json()["task"]["question"] for who in ("ann", "bob")}
        assert seen == {"Which one?", "Which response is more style?"}

    def test_the_same_post_again_is_stored_once(self, site):
        task = site.get().json()["task"]
        body = {"assignment": task["assignment"], "verdict": {"strength": 1}, "flags": [], "rationale": "", "ms": 7}
        replies = [site.post("/api/judgement", body).json() for _ in range(3)]
        assert len(judgements(site.con)) == 1 and replies[0]["task"] == replies[2]["task"]
        other = site.post("/api/judgement", {**body, "verdict": {"strength": 2}})
        assert other.status_code == 409 and "undo" in other.json()["error"]

    def test_hostile_text_comes_back_as_the_same_text(self, tmp_path):
        messages = [{"role": "user", "content": HOSTILE}]
        site = Site(tmp_path, [NewItem(messages, [HOSTILE + "1", HOSTILE + "2"])])
        reply = site.get()
        assert reply.headers["content-type"] == "application/json"
        task = reply.json()["task"]
        assert task["messages"] == messages and {*task["responses"]} == {HOSTILE + "1", HOSTILE + "2"}
        site.say({"strength": 1}, rationale=HOSTILE)
        assert judgements(site.con)[0]["rationale"] == HOSTILE


class TestUndoAndDrafts:
    def test_a_draft_comes_back_after_a_reload_and_a_restart(self, site):
        task = site.get().json()["task"]
        draft = {"verdict": {"ratings": {"helpful": 3}}, "flags": ["unsafe"], "rationale": "bec", "ms": 12, "at": 1.5}
        assert site.post("/api/draft", {"assignment": task["assignment"], "draft": draft}).json() == {"ok": True}
        assert site.get().json()["task"]["draft"] == draft
        again = TestClient(app(Settings(site.db, rules=PLAIN)), base_url=ORIGIN)
        seen = again.get("/api/task", headers={"Authorization": f"Bearer {site.tokens['ann']}"}).json()["task"]
        assert (seen["draft"], seen["assignment"], seen["responses"]) == (draft, task["assignment"], task["responses"])

    def test_undo_gives_the_task_back_as_it_was_shown(self, site):
        task = site.get().json()["task"]
        assert site.get().json()["can_undo"] is False and task["can_undo"] is False
        site.say({"strength": -2}, flags=["unsafe"], rationale="hm", ms=99)
        reply = site.post("/api/undo", {}).json()
        assert reply["task"]["assignment"] == task["assignment"] and reply["task"]["responses"] == task["responses"]
        assert reply["task"]["draft"] == {"verdict": {"strength": -2}, "flags": ["unsafe"], "rationale": "hm", "ms": 99}
        assert reply["progress"]["done"] == 0 and reply["can_undo"] is False and reply["undone"] == task["assignment"]
        assert site.post("/api/undo", {}).status_code == 409
        site.say({"strength": 3})
        assert [row["said"] for row in judgements(site.con)] == [{"strength": 3}]
        assert judgements(site.con)[0]["supersedes"] == 2

    def test_an_undo_whose_answer_was_lost_takes_back_one_word_only(self, site):
        site.say({"strength": 1})
        body = site.say({"strength": -1}).json()
        first = site.post("/api/undo", {"judgement": body["undoes"]}).json()
        again = site.post("/api/undo", {"judgement": body["undoes"]}).json()
        assert again["task"] == first["task"] and again["progress"]["done"] == first["progress"]["done"] == 1
        assert [row["said"] for row in judgements(site.con)] == [{"strength": 1}]
        assert site.post("/api/undo", {"judgement": 99}).status_code == 409
        later = site.say({"strength": 2}).json()
        assert site.post("/api/undo", {"judgement": body["undoes"]}).status_code == 409, "said anew since"
        assert site.post("/api/undo", {"judgement": later["undoes"]}).status_code == 200
        assert site.post("/api/undo", {"judgement": "1"}).status_code == 422

    def test_a_late_draft_is_not_kept(self, site):
        task = site.get().json()["task"]
        site.say({"strength": 1})
        reply = site.post("/api/draft", {"assignment": task["assignment"], "draft": {}})
        assert reply.status_code == 409 and site.con.execute("SELECT count(*) FROM draft").fetchone()[0] == 0


class TestLimits:
    def send(self, site, path, content, **headers):
        headers = {"Authorization": f"Bearer {site.tokens['ann']}", "Content-Type": "application/json", **headers}
        return site.client.post(path, content=content, headers=headers)

    def test_a_large_body_is_refused_however_it_is_sent(self, site):
        assert self.send(site, "/api/judgement", b"x" * (64 * 1024 + 1)).status_code == 413
        chunks = self.send(site, "/api/judgement", (b"x" * 1000 for _ in range(66)))
        assert chunks.status_code == 413 and "bytes" in chunks.json()["error"]
        assert self.send(site, "/api/judgement", b"x" * (64 * 1024)).status_code == 422
        for length in (b"99999999", b"9" * 5000):
            told = [(b"host", b"127.0.0.1"), (b"content-length", length)]
            assert raw(site.app, "POST", "/api/judgement", told, b"{}")["status"] == 413  # before it has come

    def test_a_body_without_end_is_not_read_to_its_end(self, site):
        taken = []

        async def receive():
            taken.append(1)
            assert len(taken) < 100, "still reading"
            return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

        reply = raw(site.app, "POST", "/api/judgement", [(b"host", b"127.0.0.1")], receive=receive)
        assert reply["status"] == 413 and len(taken) == 66

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b'"text"',
            b"\xff\xfe",
            b'{"assignment": 1}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "admin": true}',
            b'{"assignment": true, "verdict": {"strength": 1}}',
            b'{"assignment": 1.0, "verdict": {"strength": 1}}',
            b'{"assignment": "1", "verdict": {"strength": 1}}',
            b'{"assignment": 0, "verdict": {"strength": 1}}',
            b'{"assignment": 99999999999999999999999, "verdict": {"strength": 1}}',
            b'{"assignment": 1, "verdict": {"strength": NaN}}',
            b'{"assignment": 1, "verdict": {"strength": Infinity}}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "ms": -1}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "ms": 1e99}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "ms": true}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "ms": "7"}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "flags": "unsafe"}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "flags": ["other"]}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "flags": [["unsafe"]]}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "rationale": 7}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "rationale": "\\ud800"}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "rationale": "' + b"x" * 4001 + b'"}',
            b'{"assignment": 1, "verdict": {"skip\\ud800": true}}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "\\ud800": 1}',
            b'{"assignment": 1, "verdict": {"strength": 1}, "two\\nlines": 1}',
            b'{"assignment": 1, "verdict": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
            b'{"assignment": ' + b"9" * 5000 + b', "verdict": {}}',
        ],
    )
    def test_what_is_malformed_is_told_in_one_line_and_not_stored(self, site, content):
        assert site.get().json()["task"]["assignment"] == 1
        reply = self.send(site, "/api/judgement", content)
        assert reply.status_code == 422, reply.text
        assert 0 < len(reply.json()["error"]) < 300 and "\n" not in reply.json()["error"]
        assert judgements(site.con) == []
        assert site.say({"strength": 1}).status_code == 200

    def test_a_draft_has_at_most_8_kib(self, site):
        number = site.get().json()["task"]["assignment"]
        for size, status in ((8 * 1024 - 2, 200), (8 * 1024 - 1, 422)):  # and two quotes
            assert site.post("/api/draft", {"assignment": number, "draft": "x" * size}).status_code == status
        deep = b'{"assignment": 1, "draft": ' + b"[" * 4000 + b"]" * 4000 + b"}"
        assert self.send(site, "/api/draft", deep).status_code in (200, 422)
        assert self.send(site, "/api/draft", b'{"assignment": 1, "draft": "\\udfff"}').status_code == 422

    def test_undo_takes_nothing(self, site):
        site.say({"strength": 1})
        assert site.post("/api/undo", {"assignment": 1}).status_code == 422 and len(judgements(site.con)) == 1


class TestGuidelines:
    def test_have_a_version_that_is_stored_with_every_judgement(self, tmp_path):
        versions = []
        for text in ("be fair", "be fair!"):
            (folder := tmp_path / text).mkdir()
            site = Site(folder, pairs(1), guidelines=text)
            assert site.get("/api/guidelines").json()["text"] == text
            site.say({"strength": 1})
            versions.append(site.get("/api/guidelines").json()["version"])
            assert (
                judgements(site.con)[0]["guideline_version"] == versions[-1] == site.get().json()["guideline_version"]
            )
        assert versions[0] != versions[1]

    def test_a_changed_file_is_a_new_version_in_the_same_store(self, tmp_path):
        site = Site(tmp_path, pairs(2), guidelines="old")
        site.say({"strength": 1})
        site.client = TestClient(app(Settings(site.db, rules=PLAIN, guidelines="new")), base_url=ORIGIN)
        site.say({"strength": 1})
        assert len({row["guideline_version"] for row in judgements(site.con)}) == 2


BODY = set("task progress guideline_version annotator source_kind paused notice can_undo undoes".split())
TASK = set("assignment kind messages responses axes question draft flags can_undo".split())
"""What the page is told of a task, and nothing besides: whatever comes in must be shown to be the same of hidden items."""


class TestHiddenItems:
    def test_look_like_any_other(self, tmp_path):
        gold = [NewItem(f"gold {i}", ["x", "y"], gold={"strength": -1}) for i in range(30)]
        site = Site(tmp_path, [*pairs(100), *gold], rules=Rules(gold_rate=0.3, repeat_rate=0.2, repeat_gap=2))
        shapes, looks = set(), set()
        for _ in range(40):
            body = site.get().json()
            shapes.add(
                (frozenset(body), frozenset(body["task"]), frozenset(body["progress"]), body["progress"]["total"])
            )
            assert "gold" not in json.dumps({k: v for k, v in body["task"].items() if k not in ("messages",)})
            assert set(body) == BODY and set(body["task"]) == TASK
            said = {name: body["task"][name] for name in ("kind", "axes", "question", "flags", "draft")}
            looks.add(json.dumps(said, sort_keys=True))
            best = next((k for k, text in enumerate(body["task"]["responses"]) if text == "x"), None)
            site.say({"strength": -1 if best == 0 else 1})
        assert len(shapes) == len(looks) == 1
        kinds = {(row["gold"] is not None, row["repeat_of"] is not None) for row in judgements(site.con)}
        assert kinds == {(False, False), (True, False), (False, True)}

    def test_who_fails_them_is_told_that_they_are_paused(self, tmp_path):
        gold = [NewItem(f"gold {i}", ["x", "y"], gold={"strength": -1}) for i in range(30)]
        site = Site(tmp_path, [*pairs(100), *gold], rules=Rules(gold_rate=0.8, repeat_rate=0))
        noticed = False
        while (body := site.get().json())["task"] is not None:
            site.say({"both_bad": True})
            noticed = noticed or body["notice"] is not None
        assert body["paused"] and body["can_undo"] is False and noticed
        assert len(judgements(site.con)) < 30
        assert site.post("/api/undo", {}).status_code == 409


def test_a_server_that_cannot_open_its_store_does_not_start(tmp_path):
    (tmp_path / "a.sqlite").write_text("no database, but quite a long text" * 50)
    with pytest.raises(UserError, match="not a database"):
        app(Settings(tmp_path / "a.sqlite"))
    with pytest.raises(UserError, match="different names"):
        Settings(tmp_path / "a.sqlite", axes=[AXES[0], AXES[0]])


def raw(
    application, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes = b"", receive=None
) -> dict:
    """One request given to the application just as it is: {"status", "headers", "body"}."""
    sent: list[dict] = []

    async def whole():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        **dict(type="http", asgi={"version": "3.0"}, http_version="1.1", method=method, scheme="http", root_path=""),
        **dict(path=path, raw_path=path.encode(), query_string=b"", headers=headers),
        **dict(client=("127.0.0.1", 1), server=("127.0.0.1", 8000)),
    }
    asyncio.run(application(scope, receive or whole, send))
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return {"status": sent[0]["status"], "headers": dict(sent[0]["headers"]), "body": content}
