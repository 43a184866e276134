"""Requests on raw sockets, for what no HTTP client would send."""

import socket
import struct
from contextlib import suppress
from urllib.parse import urlsplit


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def head(method: str, target: str, *headers: str) -> bytes:
    """The head of a request: all of it, where it has no body."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: a", *headers, "", ""]).encode()


def read_all(client: socket.socket) -> bytes:
    """Until the server closes."""
    received = bytearray()
    with suppress(ConnectionResetError):
        while piece := client.recv(65_536):
            received += piece
    return bytes(received)


def reset(client: socket.socket) -> None:
    """Leave by RST, not by FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
