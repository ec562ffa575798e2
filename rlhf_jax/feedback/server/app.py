"""The labelling server: a Starlette application over one store. `server.run` serves it.

Every annotator has a token, sent as `Authorization: Bearer TOKEN`; whoever holds it is that annotator, and sees only
the tasks that are theirs. Handlers run in threads, each with its own connection to the store.
"""

import sqlite3
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.server.body import draft_of, fields, number_of, words_of
from rlhf_jax.feedback.server.files import TYPES, page_files, ui_version
from rlhf_jax.feedback.server.guard import App, guarded
from rlhf_jax.feedback.server.settings import Settings
from rlhf_jax.feedback.server.task import body
from rlhf_jax.feedback.store import assign, open_store
from rlhf_jax.feedback.store import judge as store_judge
from rlhf_jax.feedback.store.add import add_guideline, annotator_of
from rlhf_jax.feedback.store.judge import Asked, Conflict

Report = Callable[[sqlite3.Connection], dict[str, Any]]
ReportPage = Callable[[sqlite3.Connection], str]
Handler = Callable[[Request], Awaitable[Response]]


def app(settings: Settings, *, report: Report | None = None, report_page: ReportPage | None = None) -> App:
    """The ASGI application. `report` and `report_page` make the admins' report from a connection.

    Raises UserError where the store cannot be opened.
    """
    connections = threading.local()
    open_store(settings.db).close()  # made and migrated once, before the threads come

    def connected() -> sqlite3.Connection:
        if not hasattr(connections, "con"):
            connections.con = open_store(settings.db)
        return connections.con

    asked = [[asdict(axis) for axis in settings.axes], dict(settings.questions)]
    version = add_guideline(connected(), settings.guidelines, asked)
    page = page_files()
    rules, asking = settings.rules, Asked(version, ui_version(page), tuple(settings.axes))

    def task_of(con: sqlite3.Connection, who: sqlite3.Row) -> Response:
        row = assign.next_task(con, who["id"], rules)
        return JSONResponse(body(con, who["id"], row, settings, version))

    def get_task(con: sqlite3.Connection, who: sqlite3.Row, sent: bytes) -> Response:
        return task_of(con, who)

    def post_judgement(con: sqlite3.Connection, who: sqlite3.Row, sent: bytes) -> Response:
        given = fields(sent, ("assignment", "verdict"), ("flags", "rationale", "ms"))
        words = words_of(given, settings.flags)
        store_judge.submit(con, who["id"], number_of(given, "assignment"), words, asking, rules)
        return task_of(con, who)

    def post_draft(con: sqlite3.Connection, who: sqlite3.Row, sent: bytes) -> Response:
        given = fields(sent, ("assignment", "draft"))
        store_judge.save_draft(con, who["id"], number_of(given, "assignment"), draft_of(given))
        return JSONResponse({"ok": True})

    def post_undo(con: sqlite3.Connection, who: sqlite3.Row, sent: bytes) -> Response:
        given = fields(sent, (), ("judgement",))
        which = number_of(given, "judgement") if "judgement" in given else None
        task = store_judge.undo(con, who["id"], version, rules, judgement=which)
        row = assign.next_task(con, who["id"], rules)
        return JSONResponse({**body(con, who["id"], row, settings, version), "undone": task["id"]})

    def get_guidelines(con: sqlite3.Connection, who: sqlite3.Row, sent: bytes) -> Response:
        return JSONResponse({"text": settings.guidelines, "version": version})

    def get_report(con: sqlite3.Connection, who: sqlite3.Row, sent: bytes) -> Response:
        _admin(who)
        if report is None:
            raise HTTPException(404, "this server was started without a report")
        return JSONResponse(report(con))

    def get_report_page(con: sqlite3.Connection, who: sqlite3.Row, sent: bytes) -> Response:
        _admin(who)
        if report_page is None:
            raise HTTPException(404, "this server was started without a report")
        headers = {"content-disposition": 'attachment; filename="report.html"'}
        return Response(report_page(con), media_type="text/html", headers=headers)

    def handler(work: Callable[[sqlite3.Connection, sqlite3.Row, bytes], Response], *, post: bool = False) -> Handler:
        def run(token: str, sent: bytes) -> Response:
            con = connected()
            who = annotator_of(con, token)
            if who is None:
                raise HTTPException(401, "no such token; open the link you were given", {"www-authenticate": "Bearer"})
            try:
                return work(con, who, sent)
            except Conflict as error:
                return _error(409, str(error))
            except UserError as error:
                return _error(422, str(error))

        async def handle(request: Request) -> Response:
            sent = await request.body() if post else b""
            if post and request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                raise HTTPException(415, "the body must be application/json")
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            return await run_in_threadpool(run, token.strip() if scheme.lower() == "bearer" else "", sent)

        return handle

    routes = [
        *(Route(path, _static(name, page[name]), methods=["GET"]) for path, name in _paths(page)),
        Route("/api/task", handler(get_task), methods=["GET"]),
        Route("/api/judgement", handler(post_judgement, post=True), methods=["POST"]),
        Route("/api/draft", handler(post_draft, post=True), methods=["POST"]),
        Route("/api/undo", handler(post_undo, post=True), methods=["POST"]),
        Route("/api/guidelines", handler(get_guidelines), methods=["GET"]),
        Route("/api/report", handler(get_report), methods=["GET"]),
        Route("/api/report.html", handler(get_report_page), methods=["GET"]),
    ]
    handlers = {HTTPException: _http_error, Exception: _server_error}
    bare = Starlette(routes=routes, exception_handlers=handlers)
    bare.router.redirect_slashes = False  # an address is right or it is not
    return guarded(bare, hosts=settings.allowed_hosts)


def _paths(page: Mapping[str, bytes]) -> list[tuple[str, str]]:
    return [("/", "index.html"), *((f"/{name}", name) for name in sorted(page))]


def _static(name: str, content: bytes) -> Handler:
    async def handle(request: Request) -> Response:
        headers = {"cache-control": "no-cache"}
        return Response(content, media_type=TYPES[Path(name).suffix], headers=headers)

    return handle


def _admin(who: sqlite3.Row) -> None:
    if not who["admin"]:
        raise HTTPException(403, "only an admin may see the report")


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    # What was sent may stand in it, with line ends and halves of surrogate pairs.
    line = " ".join(text.encode(errors="replace").decode().split())
    return JSONResponse({"error": line}, status, headers=None if headers is None else dict(headers))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, error.headers)


async def _server_error(request: Request, error: Exception) -> Response:
    return _error(500, "something went wrong on the server; what you said before is safe")
