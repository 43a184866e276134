"""The engine's end of its sockets: one for each HTTP worker, and one for whoever started the engine."""

import logging
import selectors
import socket
import time
from collections import deque

import msgspec

from service.errors import ServiceError, Unavailable
from service.wire.control import ATTACH, CONTROL
from service.wire.frames import FrameReader, frame
from service.wire.messages import Cards, FromEngine, FromWorker, Generate, Preview, Refusal, Reply, Swap

logger = logging.getLogger(__name__)

READ_BYTES = 256 * 1024  # of a worker's socket in one read; the rest waits behind the other workers
MAX_UNSENT = 8 * 1024 * 1024  # bytes that wait for a worker; beyond it previews are dropped, answers never
STUCK_SECONDS = 5.0  # without taking a byte, after which a worker is given up
FEW_FILES = 512  # open at the start: a larger number leaves too few descriptors for select()
CLOSE_SECONDS = 1.0  # for the last answers to leave


class Client:
    """An HTTP worker, as the engine sees it."""

    def __init__(self, name: int, sock: socket.socket, entry: int):
        sock.setblocking(False)
        self.name, self.sock = name, sock
        self.entry = entry  # of the scoreboard: the worker's number, which its successor has, too
        self.open: dict[int, str] = {}  # its requests: its number and the engine's name
        self._reader = FrameReader[FromWorker](FromWorker)  # pyright: ignore[reportArgumentType]
        self._messages: list[FromEngine] = []  # of the next frame
        self._previews: dict[tuple[int, int], Reply] = {}  # that wait for room: the newest of each image
        self._unsent = bytearray()
        self._stuck_since: float | None = None

    def send(self, message: FromEngine) -> None:
        self._messages.append(message)

    def refuse(self, number: int, error: ServiceError) -> None:
        self.send(Reply(number, Refusal.of(error)))

    def show(self, number: int, preview: Preview) -> None:
        self._previews[number, preview.index] = Reply(number, preview)

    def read(self) -> list[FromWorker] | None:
        """What has come; None when the other end is closed."""
        try:
            data = self.sock.recv(READ_BYTES)
            return self._reader.feed(data) if data else None
        except BlockingIOError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            logger.error("worker %d is cut off: %s", self.entry, error)
            return None

    def flush(self) -> bool:
        """Send what fits; False once the worker has taken nothing for STUCK_SECONDS."""
        if self._previews and len(self._unsent) <= MAX_UNSENT:
            self._messages = [*self._previews.values(), *self._messages]  # a preview never follows its answer
            self._previews.clear()
        if self._messages:
            ended = {message.number for message in self._messages if isinstance(message, Reply)}
            self._previews = {key: shown for key, shown in self._previews.items() if key[0] not in ended}
            self._unsent += frame(self._messages)
            self._messages = []
        return not self._unsent or self._push()

    def _push(self) -> bool:
        now = time.monotonic()
        try:
            sent = self.sock.send(self._unsent)
        except BlockingIOError:
            self._stuck_since = self._stuck_since or now
            return now - self._stuck_since < STUCK_SECONDS
        except OSError:
            return True  # it has gone: the next read says so
        self._stuck_since = None
        del self._unsent[:sent]
        return True

    @property
    def awaits(self) -> int:
        """The events of its socket to wait for."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)

    def finish(self, seconds: float) -> None:
        """Send all that is left, for at most so long, and close."""
        self.flush()
        try:
            self.sock.settimeout(seconds)
            self.sock.sendall(self._unsent)
        except OSError:
            pass  # it has gone, or does not read
        self.sock.close()


class Clients:
    """All workers of an engine.

    Args:
        control: the other end sends Stop, and new workers' sockets; it belongs to whoever started the engine.
    """

    def __init__(self, control: socket.socket):
        control.setblocking(False)
        self._control, self._names = control, 0
        self._all: list[Client] = []
        self._cards: Cards | None = None
        # Only select() can wait for less than a millisecond, but it takes only descriptors below 1024.
        few_files = control.fileno() < FEW_FILES
        self._selector = selectors.SelectSelector() if few_files else selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self.received: deque[tuple[Client, FromWorker | None]] = deque()  # None: that worker has gone
        self.stops: deque[float] = deque()  # seconds that accepted work may take

    @property
    def all(self) -> list[Client]:
        """Those that are attached now."""
        return list(self._all)

    def attach(self, sock: socket.socket, entry: int) -> None:
        """Serve a new worker; it hears of the models at once."""
        client = Client(self._names, sock, entry)
        self._names += 1
        self._all.append(client)
        self._selector.register(sock, selectors.EVENT_READ, client)
        if self._cards is not None:
            client.send(self._cards)
            client.flush()

    def receive(self, seconds: float) -> None:
        """Append what has come to `received`; wait for something, or for room to send, but no longer than that."""
        for key, events in self._selector.select(seconds):
            client = key.data
            if not events & selectors.EVENT_READ:
                continue  # flush sends what waits
            if client is None:
                self._read_control()
            elif (messages := client.read()) is None:
                self._drop(client)
            else:
                self.received.extend((client, message) for message in messages)

    def _read_control(self) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._control, CONTROL.size, 1)
            except BlockingIOError:
                return
            if len(data) < CONTROL.size:  # closed: whoever started this engine has gone
                self._selector.unregister(self._control)
                self.stops.append(0.0)
                return
            code, number = CONTROL.unpack(data)
            if code == ATTACH:
                self.attach(socket.socket(fileno=descriptors[0]), int(number))
            else:
                self.stops.append(number)

    def _drop(self, client: Client) -> None:
        self._selector.unregister(client.sock)
        self._all.remove(client)
        client.sock.close()
        self.received.append((client, None))

    def tell(self, cards: Cards) -> None:
        self._cards = cards
        for client in self._all:
            client.send(cards)
        self.flush()

    def flush(self) -> None:
        for client in list(self._all):
            if not client.flush():
                logger.error("worker %d has taken nothing for %g s: it is given up", client.entry, STUCK_SECONDS)
                self._drop(client)
            elif self._selector.get_key(client.sock).events != client.awaits:
                self._selector.modify(client.sock, client.awaits, client)

    def close(self, reason: str) -> None:
        """Refuse requests that were not handled, send all answers, and close every socket."""
        while self.received:
            client, message = self.received.popleft()
            if isinstance(message, Generate | Swap):
                client.refuse(message.number, Unavailable.because(reason))
        for client in self._all:
            client.finish(CLOSE_SECONDS)
        self._selector.close()
        self._control.close()
