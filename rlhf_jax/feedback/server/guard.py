"""What stands before every request: the Host allow-list, the same-origin rule, the size limit, and the headers.

Plain ASGI (asgi.readthedocs.io/en/latest/specs/www.html): each guard takes an app and gives an app. The tokens are
sent in a header that only the page's own script can set, so a foreign page could not act for anybody even without the
origin rule; it is there as a second fence (owasp.org, Cross-Site Request Forgery Prevention Cheat Sheet). The
allow-list stops DNS rebinding, where a foreign name is made to point to 127.0.0.1.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY = 64 * 1024
SAFE = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def guarded(app: App, *, hosts: Sequence[str], max_body: int = MAX_BODY) -> App:
    """The app behind all guards. `hosts` are host names without a port; IPv6 addresses in brackets."""
    return with_headers(only_hosts(same_origin(limited(app, max_body=max_body)), hosts=hosts))


def with_headers(app: App) -> App:
    """Adds `HEADERS`, and `cache-control: no-store` where the app says nothing else, to every answer."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                extra = {**HEADERS, "cache-control": "no-store"}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in extra.items() if k.encode() not in there),
                ]
            await send(message)

        await app(scope, receive, send_more if scope["type"] == "http" else send)

    return answer


def only_hosts(app: App, *, hosts: Sequence[str]) -> App:
    """400 unless there is exactly one Host header, and it names one of the hosts, with any port."""
    allowed = {host.lower() for host in hosts}

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = header(scope, b"host")
            if len(given) != 1 or host_name(given[0]) not in allowed:
                await refuse(send, 400, "this Host is not served here; use the link that was printed")
                return
        await app(scope, receive, send)

    return answer


def same_origin(app: App) -> App:
    """403 for a request that may change something and that a page of another origin sent."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE:
            host = "".join(header(scope, b"host")).lower()
            origins, sites = header(scope, b"origin"), header(scope, b"sec-fetch-site")
            foreign = any(origin.lower() not in (f"http://{host}", f"https://{host}") for origin in origins)
            if foreign or any(site.lower() not in ("same-origin", "none") for site in sites):
                await refuse(send, 403, "this request came from another site; open the link that was printed")
                return
        await app(scope, receive, send)

    return answer


def limited(app: App, *, max_body: int) -> App:
    """413 for a body above `max_body` bytes, whatever its Content-Length says; it is read before the app runs."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in SAFE:
            await app(scope, receive, send)
            return
        body, more = b"", True
        told = [
            int(length[:18]) for length in header(scope, b"content-length") if length.isascii() and length.isdigit()
        ]
        while more and len(body) <= max_body and max(told, default=0) <= max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if more or len(body) > max_body:
            await refuse(send, 413, f"a request has at most {max_body} bytes")
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def whole() -> MutableMapping[str, Any]:
            return waiting.pop() if waiting else await receive()

        await app(scope, whole, send)

    return answer


async def refuse(send: Send, status: int, error: str) -> None:
    """The whole answer: {"error": error}, and the connection is closed, since the body may not have been read."""
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def header(scope: Scope, name: bytes) -> list[str]:
    """Every value that the request gives for a header, as text."""
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == name]


def host_name(host: str) -> str:
    """A Host header without its port: "localhost:8000" -> "localhost", "[::1]:8000" -> "[::1]"; "" where it is none."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:[0-9]{1,5})?", host.lower())
    return found[1] if found else ""
