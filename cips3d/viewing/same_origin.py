"""Who may talk to the viewer: the pages that it serves itself.

A page of any other site that is open in the same browser can connect to servers on this machine, since web sockets know
no same-origin policy, and by a name that it lets resolve to 127.0.0.1 (DNS rebinding) it can even read them. Browsers
tell where a page is from (`Origin`) and by which name it calls the server (`Host`); both are looked at here.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

_serving = threading.Lock()  # one server starts at a time


def why_refused(local: bool, host: str | None, origin: str | None) -> str | None:
    """Why a request is not answered, in a sentence; None if it is.

    Args:
        local: only this machine is served, and so only names that always mean it are right.
        host: the request's header, a name or address and a port.
        origin: the request's header, scheme, name and port of the page that sent it; None: no page did.
    """
    if not host:
        return "the request does not say which host it is for"
    if local and not _is_this_machine(host):
        return f"the viewer is not served as {host}; open it by 127.0.0.1, or serve it with --host 0.0.0.0"
    if origin is not None and _place_of(origin) != host.lower():
        return f"pages of {origin} may not use the viewer, which is {host}"
    return None


@contextmanager
def answering_own_pages(local: bool) -> Iterator[None]:
    """Inside, web socket servers that are started answer only the requests that `why_refused` lets pass.

    Args:
        local: see `why_refused`.

    Raises:
        RuntimeError: no server was started within, or not in the way that is known here.
    """
    from websockets.asyncio import server as websockets_server

    original, guarded = websockets_server.serve, threading.Event()

    def serve(*arguments: Any, process_request: Callable[..., Response | None], **options: Any) -> Any:
        def process(connection: ServerConnection, request: Request) -> Response | None:
            # A header that comes twice means nothing: it is taken for one that is missing, or of no page.
            hosts, origins = (request.headers.get_all(name) for name in ("Host", "Origin"))
            host = hosts[0] if len(hosts) == 1 else None
            refused = why_refused(local, host, " ".join(origins) if origins else None)
            if refused is not None:
                return connection.respond(HTTPStatus.FORBIDDEN, f"{refused}\n")
            return process_request(connection, request)

        guarded.set()
        return original(*arguments, process_request=process, **options)

    with _serving:
        websockets_server.serve = serve  # type: ignore[assignment,misc]  # a function in the place of a class
        try:
            yield
        finally:
            websockets_server.serve = original  # type: ignore[misc]
    if not guarded.is_set():
        raise RuntimeError("the page's server was not started through websockets.asyncio.server.serve")


def _place_of(origin: str) -> str | None:
    """Name and port of an origin in small letters; None of what is no URL."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _is_this_machine(host: str) -> bool:
    """True where a name and port mean the machine that the browser runs on, whatever name servers say."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:  # no host at all, or a name
        return False
