"""The sockets that the service listens on, and what their addresses are called."""

import errno
import logging
import socket
from collections.abc import Iterable
from contextlib import ExitStack

logger = logging.getLogger(__name__)

PORT_TRIES = 10  # with port 0: the free port of the first address may be taken on the second
BACKLOG = 2048  # connections that wait to be accepted, as many as with uvicorn
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # such as ::1 in a container without IPv6

Address = tuple[socket.AddressFamily, tuple]


def bind(host: str, port: int) -> list[socket.socket]:
    """One socket for each address that the name resolves to, all with the same port; 0 chooses a free one.

    An address that this machine does not have is left out, as long as there is another. The sockets listen already,
    for with SO_REUSEADDR two may bind as long as neither does.

    Raises:
        OSError: the port is taken, or the name leads to no address. The message names host and port.
    """
    addresses = resolve(host, port)
    for attempt in range(PORT_TRIES):
        try:
            return _bind_all(addresses, port)
        except OSError as error:
            if port == 0 and error.errno == errno.EADDRINUSE and attempt < PORT_TRIES - 1:
                continue
            raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    raise AssertionError("the last attempt returns or raises")


def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a name, in the resolver's order and each once; IPv6 may stand in brackets.

    Raises:
        OSError: the name does not resolve, or is a path.
    """
    if host.startswith("unix:") or "/" in host:
        raise OSError(f"cannot listen on {host}: Unix sockets are not supported, give a host name or an IP address")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise OSError(f"cannot listen on {host}, port {port}: the name does not resolve ({error})") from error
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _bind_all(addresses: list[Address], port: int) -> list[socket.socket]:
    bound: list[socket.socket] = []
    with ExitStack() as undo:
        for address in addresses:
            try:
                bound.append(undo.enter_context(_bind(address, port, alone=len(addresses) == 1)))
            except OSError as error:
                if error.errno not in ABSENT or (address == addresses[-1] and not bound):
                    raise
                logger.info("not listening on %s: %s", address[1][0], error.strerror)
            else:
                port = bound[0].getsockname()[1]
        undo.pop_all()
    return bound


def _bind(address: Address, port: int, alone: bool) -> socket.socket:
    """alone: `::` may then take IPv4 connections, too; else the socket beside it does."""
    family, (ip, _, *scope) = address
    with ExitStack() as undo:
        # with its protocol named, or asyncio leaves Nagle's algorithm on, and every answer waits 40 ms for an ACK
        listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and not alone:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((ip, port, *scope))
        listener.listen(BACKLOG)
        undo.pop_all()
    return listener


def urls(listeners: Iterable[socket.socket]) -> list[str]:
    """Such as http://127.0.0.1:8000 and http://[::1]:8000."""
    return [_url(*listener.getsockname()[:2]) for listener in listeners]


def _url(ip: str, port: int) -> str:
    return f"http://[{ip}]:{port}" if ":" in ip else f"http://{ip}:{port}"
