"""Where the server listens, what it prints, and what it does not."""

import http.client
import json
import socket
import subprocess

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.server.app import app
from rlhf_jax.feedback.server.run import bind, link, serving
from rlhf_jax.feedback.server.settings import Settings
from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.add import add_annotator, add_items
from tests.feedback.judging import pairs
from tests.feedback.serving import port_of, start, stop


def test_it_listens_on_this_machine_only_unless_told():
    with bind() as listening:
        host, port = listening.getsockname()
        assert host == "127.0.0.1" and port > 0
        assert link(listening, "a.token") == f"http://127.0.0.1:{port}/#a.token"


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "00.0.0.0", "0x0", "::", "0:0:0:0:0:0:0:0", ""])
def test_every_interface_needs_the_flag(host):
    with pytest.raises(UserError, match="every network|no address"):
        bind(host).close()


def test_every_interface_with_the_flag():
    with bind("0.0.0.0", every_interface=True) as listening:
        assert listening.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "port", "told"),
    [
        ("127.0.0.1", 65536, "0 .a free one. to 65535"),
        ("127.0.0.1", -1, "port is -1"),
        ("192.0.2.1", 0, "cannot listen"),
        ("no such host", 0, "no address"),
        ("x" * 300, 0, "no address"),
    ],
)
def test_what_cannot_be_bound_is_told(host, port, told):
    with pytest.raises(UserError, match=told) as error:
        bind(host, port)
    assert "\n" not in str(error.value)


def test_a_port_in_use_is_told():
    with bind() as listening, pytest.raises(UserError, match="in use; choose another port"):
        bind("127.0.0.1", listening.getsockname()[1])


def test_ipv6_links_have_brackets():
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        listening = bind("::1")
    except UserError:
        pytest.skip("no IPv6 loopback")
    with listening:
        assert link(listening).startswith("http://[::1]:")


def test_a_real_server_says_nothing_of_its_visitors_and_ends_on_a_signal(tmp_path):
    con = open_store(tmp_path / "judgements.sqlite")
    add_items(con, pairs(2))
    token = add_annotator(con, "ann")
    process, url = start(tmp_path / "judgements.sqlite")
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        page = http.client.HTTPConnection("127.0.0.1", port_of(url), timeout=10)
        for method, path, body in (
            ("GET", "/api/task", None),
            ("POST", "/api/judgement", "{"),
            ("GET", f"/{token}", None),
        ):
            page.request(method, path, body, headers)
            reply = page.getresponse()
            reply.read()
            assert reply.getheader("server") is None and "default-src 'self'" in reply.getheader(
                "content-security-policy"
            )
        big = http.client.HTTPConnection("127.0.0.1", port_of(url), timeout=10)
        big.request("POST", "/api/judgement", b"x" * 70_000, headers)
        assert big.getresponse().status == 413
        page.request("GET", "/api/task", None, {**headers, "Host": "evil.test"})
        assert page.getresponse().status == 400
        process.terminate()
        out, err = process.communicate(timeout=30)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    assert process.returncode in (0, -subprocess.signal.SIGTERM)
    assert token not in out + err and token.partition(".")[2] not in out + err
    assert "GET" not in out + err and "Traceback" not in err


def test_in_a_thread_it_serves_while_the_block_runs(tmp_path):
    listening = bind()
    port = listening.getsockname()[1]
    with serving(app(Settings(tmp_path / "judgements.sqlite")), listening):
        page = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        page.request("GET", "/")
        assert page.getresponse().status == 200
        page.close()
    with pytest.raises(OSError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=1).request("GET", "/")


def test_a_kill_in_the_middle_of_a_task_loses_neither_draft_nor_order(tmp_path):
    """Kill, start again, and the same task stands there with what was half said; undo after another kill too."""
    con = open_store(tmp_path / "judgements.sqlite")
    add_items(con, pairs(20))
    token = add_annotator(con, "ann")
    port = 0

    def ask(method, path, body=None):
        page = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        page.request(method, path, None if body is None else json.dumps(body), headers)
        return json.loads(page.getresponse().read())

    seen = []
    for step in range(3):
        process, url = start(tmp_path / "judgements.sqlite")
        port = port_of(url)
        try:
            task = ask("GET", "/api/task")["task"]
            seen.append((task["assignment"], task["responses"], task["draft"]))
            if step == 0:
                ask("POST", "/api/draft", {"assignment": task["assignment"], "draft": {"rationale": "half a thou"}})
            if step == 1:
                sent = {"assignment": task["assignment"], "verdict": {"strength": 2}, "rationale": "whole"}
                assert ask("POST", "/api/judgement", sent)["progress"]["done"] == 1
                assert ask("POST", "/api/undo", {})["progress"]["done"] == 0
        finally:
            stop(process)
    assert [one[:2] for one in seen] == [seen[0][:2]] * 3
    drafts = [one[2] for one in seen]
    assert drafts[:2] == [None, {"rationale": "half a thou"}]
    assert drafts[2] == {"verdict": {"strength": 2}, "flags": [], "rationale": "whole", "ms": 0}
