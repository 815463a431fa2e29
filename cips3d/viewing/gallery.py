"""Browsers come and go; each has a page of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cips3d.viewing.orbit import Orbit, trained_limits
from cips3d.viewing.page import Exhibit, Page, show_problem
from cips3d.viewing.server import address_of
from cips3d.viewing.turns import Turns

if TYPE_CHECKING:
    import viser

CLOSING_SECONDS = 0.5


class Gallery:
    """A running viewer.

    Args:
        server: an empty page (`open_server`).
        exhibit: what it shows, or a sentence that says why there is nothing to show.
    """

    def __init__(self, server: viser.ViserServer, exhibit: Exhibit | str) -> None:
        self._server = server
        self._turns = Turns()
        self.pages: dict[int, Page] = {}
        """of the browsers that are there, by their numbers"""
        if isinstance(exhibit, Exhibit):
            _place_cameras(server, trained_limits(exhibit.loaded.poses).held(exhibit.first_shot.orbit))

            async def enter(client: viser.ClientHandle) -> None:
                self.pages[client.client_id] = Page(client, exhibit, self._turns)

            server.on_client_connect(enter)
            server.on_client_disconnect(self._leave)
        else:
            server.on_client_connect(lambda client: show_problem(client, exhibit))

    @property
    def address(self) -> str:
        """The page's address."""
        return address_of(self._server)

    def close(self) -> None:
        """Send everybody away."""
        for page in list(self.pages.values()):
            page.leave()
        self._turns.end()
        # The server waits for connections that browsers keep in reserve; they may as well end with the process.
        stopping = threading.Thread(target=self._server.stop, name="closing", daemon=True)
        stopping.start()
        stopping.join(CLOSING_SECONDS)

    async def _leave(self, client: viser.ClientHandle) -> None:
        page = self.pages.pop(client.client_id, None)
        if page is not None:
            page.leave()


def _place_cameras(server: viser.ViserServer, orbit: Orbit) -> None:
    """Browsers begin with this view."""
    server.initial_camera.up = (0.0, 1.0, 0.0)
    server.initial_camera.position = orbit.position
    server.initial_camera.look_at = (0.0, 0.0, 0.0)
