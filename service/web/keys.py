"""API keys with a rate and a concurrency limit. Keys are secrets; their names go to logs and metrics."""

import hmac
import logging
import math
import time
from collections.abc import Callable, Iterable
from hashlib import sha256

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api_keys import ApiKey
from service.errors import QuotaExceeded, Unauthorized
from service.observe.scoreboard import Entry, Scoreboard
from service.paths import ADMIN_FOLDER, needs_no_key

logger = logging.getLogger(__name__)

ADMIN_NAME = "admin"  # of its key in the log
NEWEST = 0.2  # weight of the newest request in the moving average of durations


class Account:
    """Usage of one key, summed over all processes. Times are in seconds, on the KeyRing's clock."""

    def __init__(self, name: str, quota: ApiKey, board: Scoreboard, entry: Entry):
        self.name, self.quota, self._board, self._entry = name, quota, board, entry
        places = board.layout.places
        self._tokens, self._in_flight = places["tokens", name], places["in_flight", name]
        self.mean_seconds = 0.0  # moving average duration of a request in this process; 0 before the first

    def enter(self, now: float) -> tuple[str, float]:
        """Admit a request if the limits allow it.

        Returns "accepted" and 0, or the limit that is exceeded ("concurrency", "rate") and the seconds to wait.
        """
        with self._board.locked(self._tokens) as shared:
            if wait := self._wait_for_slot():
                return "concurrency", wait
            if wait := self._take_token(shared, now):
                return "rate", wait
            self._entry.hold(self.name, 1)
        return "accepted", 0.0

    def leave(self, seconds: float) -> None:
        """Free the slot of a request that took `seconds`."""
        self._entry.hold(self.name, -1)
        self.mean_seconds += (seconds - self.mean_seconds) * (NEWEST if self.mean_seconds else 1)

    def _take_token(self, shared: "memoryview[float]", now: float) -> float:
        """Take a token and return 0, or return the seconds until the bucket has one."""
        rate = self.quota.requests_per_second
        if rate is None:
            return 0.0
        tokens, filled = shared[self._tokens], shared[self._tokens + 1]
        tokens = min(burst(self.quota), tokens + rate * (now - filled)) if filled else burst(self.quota)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / rate
        shared[self._tokens], shared[self._tokens + 1] = tokens if wait else tokens - 1, now
        return wait

    def _wait_for_slot(self) -> float:
        """Expected seconds until one of the open requests ends; 0 if a slot is free now."""
        limit = self.quota.concurrency
        if limit is None or self._board.total(self._in_flight) < limit:
            return 0.0
        return max(1.0, self.mean_seconds / limit)

    def limit(self, outcome: str) -> str:
        """The exceeded limit in words; outcome: "rate" or "concurrency"."""
        if outcome == "rate":
            return f"{self.quota.requests_per_second:g} requests a second"
        return f"{self.quota.concurrency} requests at once"


def burst(quota: ApiKey) -> int:
    return quota.burst or max(1, math.ceil(quota.requests_per_second or 1))


class KeyRing:
    """All keys, as SHA-256 digests to compare with, and their accounts.

    Args:
        board, entry: shared counters of all processes, and this process's entry.
        clock: monotonic seconds, the same in all processes.
    """

    def __init__(
        self, keys: dict[str, ApiKey], board: Scoreboard, entry: int, clock: Callable[[], float] = time.monotonic
    ):
        self._clock, self._entry = clock, board.entry(entry)
        self._accounts = [
            (sha256(key.key.get_secret_value().encode()).digest(), Account(name, key, board, self._entry))
            for name, key in keys.items()
        ]

    def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> "Visit":
        """Admit a request; it holds its slot until end() of the Visit is called.

        Raises:
            Unauthorized: no key, or one that is not ours.
            QuotaExceeded: the key's rate or concurrency is used up.
        """
        account = self._find(headers)
        if account is None:
            self._entry.add("key_requests", "", "unauthorized")
            raise Unauthorized("send a valid key as Authorization: Bearer KEY or X-API-Key: KEY")
        now = self._clock()
        outcome, wait = account.enter(now)
        self._entry.add("key_requests", account.name, outcome)
        if wait:
            limit = account.limit(outcome)
            logger.info("key %s: refused, beyond its %s", account.name, limit)
            raise QuotaExceeded(f"this key may send {limit}: try again later", retry_after=wait)
        return Visit(account, now, self._clock)

    def _find(self, headers: Iterable[tuple[bytes, bytes]]) -> Account | None:
        """Compare with every key, also after a match, so that the duration leaks nothing."""
        found = None
        for given in presented(headers):
            digest = sha256(given).digest()
            for known, account in self._accounts:
                if hmac.compare_digest(known, digest):
                    found = account
        return found


class Visit:
    """One admitted request."""

    def __init__(self, account: Account, since: float, clock: Callable[[], float]):
        self.name = account.name
        self._account, self._since, self._clock = account, since, clock

    def end(self) -> None:
        self._account.leave(self._clock() - self._since)


class KeyMiddleware:
    """401 without a valid key, 429 beyond its quota. A request counts until the last byte of its answer is sent.

    Args:
        ring: None asks for no key outside of ADMIN_FOLDER.
        admin_key: the only key that is valid under ADMIN_FOLDER; it is valid nowhere else.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing | None, admin_key: SecretStr | None = None):
        self.app, self._ring = app, ring
        self._admin = None if admin_key is None else sha256(admin_key.get_secret_value().encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = None
        if self._admin is not None and scope["path"].startswith(ADMIN_FOLDER):
            given = [sha256(key).digest() for key in presented(scope["headers"])]
            if not any(hmac.compare_digest(self._admin, digest) for digest in given):
                raise Unauthorized("send the admin's key as Authorization: Bearer KEY or X-API-Key: KEY")
            scope["key_name"] = ADMIN_NAME
        elif self._ring is not None and not needs_no_key(scope["path"]):
            visit = self._ring.admit(scope["headers"])
            scope["key_name"] = visit.name
        try:
            await self.app(scope, receive, send)
        finally:
            if visit is not None:
                visit.end()


def presented(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The keys in a request's headers: none, one, or two if both headers are used."""
    given = dict(headers)
    scheme, _, token = given.get(b"authorization", b"").partition(b" ")
    keys = [token.strip()] if scheme.lower() == b"bearer" else []
    return keys + ([given[b"x-api-key"]] if b"x-api-key" in given else [])
