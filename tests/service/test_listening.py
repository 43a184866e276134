"""Sockets: every address of a name, one port for all of them, and errors that name host and port."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from service import listening
from service.listening import bind, urls

LOCALHOST = [(socket.AF_INET6, ("::1", 0, 0, 0)), (socket.AF_INET, ("127.0.0.1", 0))]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs the address ::1")


@contextmanager
def bound(host: str, port: int = 0) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in bind(host, port)]
        yield listeners


def resolve_to(monkeypatch: pytest.MonkeyPatch, addresses: list[Any]) -> None:
    found = [(family, socket.SOCK_STREAM, 6, "", address) for family, address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@needs_ipv6
def test_every_address_of_a_name_is_served_on_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, [*LOCALHOST, *LOCALHOST])  # hosts files say things twice
    with bound("localhost") as listeners:
        (port,) = {listener.getsockname()[1] for listener in listeners}
        assert urls(listeners) == [f"http://[::1]:{port}", f"http://127.0.0.1:{port}"]
        monkeypatch.undo()
        for ip in ("::1", "127.0.0.1"):
            socket.create_connection((ip, port), timeout=10).close()


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_may_stand_in_brackets(host: str) -> None:
    with bound(host) as listeners:
        assert [listener.getsockname()[0] for listener in listeners] == ["::1"]


@needs_ipv6
def test_the_address_of_everything_takes_ipv4_too() -> None:
    with bound("::") as listeners:
        socket.create_connection(("127.0.0.1", listeners[0].getsockname()[1]), timeout=10).close()


def test_an_address_that_the_machine_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ::1, which a container's hosts file names though it has no IPv6."""
    resolve_to(monkeypatch, [(socket.AF_INET, ("192.0.2.1", 0)), LOCALHOST[1]])
    with bound("localhost") as listeners:
        assert [listener.getsockname()[0] for listener in listeners] == ["127.0.0.1"]
    resolve_to(monkeypatch, [(socket.AF_INET, ("192.0.2.1", 0))])
    with pytest.raises(OSError, match="cannot listen on stranger, port 8000: Cannot assign"):
        bind("stranger", 8000)


def test_a_free_port_that_is_taken_on_the_second_address_is_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Any] = []
    true_bind = listening._bind

    def once_taken(address: Any, port: int, alone: bool) -> socket.socket:
        tries.append(port)
        if len(tries) == 2:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return true_bind(address, port, alone)

    resolve_to(monkeypatch, [LOCALHOST[1], (socket.AF_INET, ("127.0.0.2", 0))])
    monkeypatch.setattr(listening, "_bind", once_taken)
    with bound("localhost") as listeners:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
    assert [port == 0 for port in tries] == [True, False, True, False]


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("no.such.name.invalid", "cannot listen on no.such.name.invalid, port 8000: the name does not resolve"),
        ("x" * 70, "the name does not resolve"),
        ("a..b", "the name does not resolve"),
        ("unix:/tmp/socket", "cannot listen on unix:/tmp/socket: Unix sockets are not supported"),
        ("./socket", "Unix sockets are not supported"),
    ],
)
def test_a_host_that_leads_nowhere_is_told_with_its_name(host: str, says: str) -> None:
    with pytest.raises(OSError, match=says):
        bind(host, 8000)


def test_a_port_that_is_taken_leaves_no_socket_open() -> None:
    with bound("127.0.0.1") as (listener,):
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1, port {port}: Address already in use"):
            bind("127.0.0.1", port)
