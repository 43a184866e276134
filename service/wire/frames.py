"""Frames on a local socket: four bytes of length, then a MessagePack array of messages."""

import struct
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")
LENGTH = struct.Struct("<I")

_encoder = msgspec.msgpack.Encoder()


def frame(messages: Sequence[msgspec.Struct]) -> bytes:
    body = _encoder.encode(messages)
    return LENGTH.pack(len(body)) + body


class FrameReader(Generic[T]):
    """Cuts a stream of bytes into messages.

    Args:
        kind: union of the message types that may come.
    """

    def __init__(self, kind: type[T]):
        self._decoder = msgspec.msgpack.Decoder(list[kind])
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """The messages that are complete now.

        Raises:
            msgspec.DecodeError: the other side is of another version.
        """
        self._buffer += data
        messages: list[T] = []
        start, end = 0, len(self._buffer)
        while end - start >= LENGTH.size:
            stop = start + LENGTH.size + LENGTH.unpack_from(self._buffer, start)[0]
            if stop > end:
                break
            messages += self._decoder.decode(memoryview(self._buffer)[start + LENGTH.size : stop])
            start = stop
        del self._buffer[:start]
        return messages
