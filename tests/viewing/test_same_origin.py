"""Who may talk to the viewer."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cips3d.viewing.same_origin import answering_own_pages, why_refused
from cips3d.viewing.server import address_of, open_server

HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "viser-v0",
}


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8080", None),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("localhost:8080", "http://LocalHost:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("127.0.0.1", "http://127.0.0.1"),
    ],
)
def test_own_pages(host: str, origin: str | None) -> None:
    assert why_refused(True, host, origin) is None
    assert why_refused(False, host, origin) is None


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://127.0.0.1:9999", "http://127.0.0.1:8080.evil.example", "https://localhost", "null"],
)
@pytest.mark.parametrize("local", [True, False])
def test_pages_of_others(local: bool, origin: str) -> None:
    assert "may not use the viewer" in str(why_refused(local, "127.0.0.1:8080", origin))


@pytest.mark.parametrize(
    "host", ["evil.example:8080", "127.0.0.1.evil.example:8080", "localhost.example", "10.0.0.1:80"]
)
def test_names_of_others(host: str) -> None:
    """A name may be resolved to this machine by whoever owns it, and its pages are then of one origin with it."""
    assert "open it by 127.0.0.1" in str(why_refused(True, host, f"http://{host}"))
    assert why_refused(False, host, f"http://{host}") is None


@pytest.mark.parametrize("malformed", ["[::1", "a]b", ""])
def test_what_is_no_address(malformed: str) -> None:
    assert why_refused(True, malformed, None) is not None
    for local in (True, False):
        assert why_refused(local, "127.0.0.1:8080", f"http://{malformed}") is not None
        assert why_refused(local, malformed, f"http://{malformed}") is not None


def test_no_host() -> None:
    assert why_refused(True, None, None) is not None


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    pytest.importorskip("viser", reason="no viser: pip install 'cips3d[viewer]'")
    server = open_server("127.0.0.1", 0, "title")
    yield int(address_of(server).rpartition(":")[2])
    server.stop()


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:{}", "http://127.0.0.1:{}", 101),
        ("localhost:{}", None, 101),
        ("127.0.0.1:{}", "http://evil.example", 403),
        ("evil.example:{}", "http://evil.example:{}", 403),
    ],
)
def test_web_sockets(port: int, host: str, origin: str | None, status: int) -> None:
    named = {} if origin is None else {"Origin": origin.format(port)}
    assert asked(port, HANDSHAKE | named | {"Host": host.format(port)}) == status


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1:{}", 200), ("evil.example:{}", 403)])
def test_pages(port: int, host: str, status: int) -> None:
    assert asked(port, {"Host": host.format(port)}) == status


@pytest.mark.parametrize("twice", ["Host", "Origin"])
def test_headers_that_come_twice(port: int, twice: str) -> None:
    place = f"127.0.0.1:{port}"
    again = {twice.lower(): place if twice == "Host" else f"http://{place}"}  # one name to the server, two to a dict
    assert asked(port, {"Host": place, "Origin": f"http://{place}"}) == 200
    assert asked(port, {"Host": place, "Origin": f"http://{place}"} | again) == 403


def asked(port: int, headers: dict[str, str]) -> int:
    """The status of the answer."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\n{lines}\r\n".encode())
        return int(connection.recv(64).split()[1])


def test_a_server_that_cannot_be_guarded() -> None:
    pytest.importorskip("websockets", reason="no viser: pip install 'cips3d[viewer]'")
    with pytest.raises(RuntimeError, match="was not started through"), answering_own_pages(True):
        pass
