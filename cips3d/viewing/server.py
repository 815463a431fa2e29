"""The server that browsers connect to: on this machine, and with no way out of it."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import os
import socket
import warnings
from typing import TYPE_CHECKING

from cips3d.errors import UserError
from cips3d.viewing.same_origin import answering_own_pages

if TYPE_CHECKING:
    import viser

HIGHEST_PORT = 65535


def check_installed() -> None:
    """Raise `UserError` where the library that shows pages is missing."""
    try:
        import viser  # noqa: F401
    except ImportError as error:
        raise UserError(f"the viewer needs {error.name or 'viser'}; pip install 'cips3d[viewer]'") from error


def open_server(host: str, port: int, title: str) -> viser.ViserServer:
    """Serve an empty page.

    Args:
        host: name or address of one of this machine's interfaces.
        port: the first to try; where it is taken, the next free one serves. 0: any free one.
        title: of the page's panel.

    Raises:
        UserError: no page can be served there.
    """
    check_installed()
    import viser

    class LocalServer(viser.ViserServer):
        """A page can ask for a tunnel through a machine elsewhere, which would show the models to anybody."""

        def request_share_url(self, verbose: bool = True) -> str | None:
            return None

    address, port = _free_place(host, port)
    # Browsers go while a picture is on its way to them; nothing is lost by that.
    warnings.filterwarnings("ignore", message="Queued a .* on a closed connection", category=UserWarning)
    # The library prints addresses of its own.
    with contextlib.redirect_stdout(io.StringIO()), answering_own_pages(is_loopback(address)):
        server = LocalServer(address, port, label=title, verbose=False)
    server.gui.configure_theme(
        dark_mode=True, show_logo=False, show_share_button=False, control_width="medium", brand_color=(70, 130, 220)
    )
    server.gui.main_panel.dock_right()
    server.scene.set_up_direction("+y")
    return server


def address_of(server: viser.ViserServer) -> str:
    """Where browsers on this machine find the page."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.get_host(), server.get_host())
    return f"http://{f'[{host}]' if ':' in host else host}:{server.get_port()}"


def is_loopback(host: str) -> bool:
    """True where only this machine reaches the host."""
    try:
        return ipaddress.ip_address(_resolved(host)).is_loopback
    except (OSError, ValueError):
        return False


def _resolved(host: str) -> str:
    """The address of a name or address, of the older kind (IPv4) where there are both."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])


def _free_place(host: str, port: int) -> tuple[str, int]:
    """The host's address, and the first port from this one on that nobody serves there.

    The address, since a page of this machine alone is refused by any name but localhost; the port, since the library
    waits for ever where none is free.

    Raises:
        UserError: the host is not this machine, or all ports are taken.
    """
    if not 0 <= port <= HIGHEST_PORT:
        raise UserError(f"--port {port} is out of range; give 0 to {HIGHEST_PORT}")
    try:
        address = _resolved(host)
        _bind(address, 0)
    except (OSError, UnicodeError) as error:  # the latter: no name can be like that
        raise UserError(
            f"--host {host} is not an address of this machine ({getattr(error, 'strerror', None) or error}); "
            "give 127.0.0.1, or 0.0.0.0 to be reached from other machines"
        ) from error
    for tried in range(port, HIGHEST_PORT + 1):
        with contextlib.suppress(OSError):
            _bind(address, tried)
            return address, tried
    raise UserError(f"--port {port} is taken, as are all after it; give a lower one")


def _bind(address: str, port: int) -> None:
    """Raise OSError where nothing can be served."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as trial:
        if os.name == "posix":  # a server that has just ended is not in the way, as it is not for the library
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind((address, port))
