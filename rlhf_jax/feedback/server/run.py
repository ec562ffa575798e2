"""From an application to a port: the address is bound first, so that the link can be printed before anybody comes."""

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.server.guard import App


def bind(host: str = "127.0.0.1", port: int = 0, *, every_interface: bool = False) -> socket.socket:
    """A listening socket; port 0 takes a free one. `link` tells its address.

    Raises UserError for an address that stands for every interface (0.0.0.0, ::, an empty host) without
    `every_interface`, for a host or a port that cannot be bound.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port is {port}; it must be 0 (a free one) to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"host {host!r} is no address of this machine: {error}") from None
    if ipaddress.ip_address(str(address[0]).partition("%")[0]).is_unspecified and not every_interface:
        raise UserError(
            f"host {host!r} is every network this machine is on; name one address, or add the flag for all of them"
        )
    listening = socket.socket(family, kind, proto)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(256)
    except OSError as error:
        listening.close()
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from None
    return listening


def link(listening: socket.socket, token: str = "") -> str:
    """The address of a bound socket, with the token as its fragment, which browsers send to nobody."""
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"#{token}" if token else "")


def serve(app: App, listening: socket.socket) -> None:
    """Serve until interrupted (Ctrl-C, SIGTERM)."""
    _server(app).run(sockets=[listening])


@contextmanager
def serving(app: App, listening: socket.socket) -> Iterator[None]:
    """Serve from another thread while the block runs; answers under way are finished before it ends."""
    server = _server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        if not server.started:
            raise UserError("the page could not be served; see the message above")
        yield
    finally:
        server.should_exit = True
        thread.join()


def _server(app: App) -> uvicorn.Server:
    """Nothing is logged but warnings, and no request ever is."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            timeout_graceful_shutdown=5,
        )
    )
