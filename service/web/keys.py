"""API keys: who may ask, how often, and how much at once. Keys are secrets; their names go to logs and metrics."""

import hmac
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256

from service.api_keys import ApiKey
from service.web.errors import QuotaExceeded, Unauthorized

logger = logging.getLogger(__name__)

NEWEST = 0.2  # share of the newest request in the mean duration


@dataclass
class Account:
    """What one key has used up. Times are in seconds, on the clock of its ring."""

    name: str
    quota: ApiKey
    tokens: float
    filled: float  # when tokens was true
    in_flight: int = 0
    mean_seconds: float = 0.0  # of a request, as far as known

    def wait_for_token(self, now: float) -> float:
        """Seconds until the rate allows a request; 0 is now."""
        rate = self.quota.requests_per_second
        if rate is None:
            return 0.0
        self.tokens = min(burst(self.quota), self.tokens + rate * (now - self.filled))
        self.filled = now
        return 0.0 if self.tokens >= 1 else (1 - self.tokens) / rate

    def wait_for_slot(self) -> float:
        """Seconds until one of the open requests has probably ended; 0 is now."""
        limit = self.quota.concurrency
        if limit is None or self.in_flight < limit:
            return 0.0
        return max(1.0, self.mean_seconds / limit)


def burst(quota: ApiKey) -> int:
    return quota.burst or max(1, math.ceil(quota.requests_per_second or 1))


class KeyRing:
    """All keys, as SHA-256 digests to compare with, and their accounts.

    Args:
        count: is told the name of a key and the outcome of a request: accepted, rate or concurrency, and
            unauthorized with no name.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        keys: dict[str, ApiKey],
        count: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock, self._count = clock, count
        self._accounts = [
            (_digest(key.key.get_secret_value().encode()), Account(name, key, burst(key), clock()))
            for name, key in keys.items()
        ]

    def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> "Visit":
        """Let a request in; it holds its place until its visit ends.

        Raises:
            Unauthorized: no key, or one that is not ours.
            QuotaExceeded: the key's rate or concurrency is used up.
        """
        account = self._find(headers)
        if account is None:
            self._count("", "unauthorized")
            raise Unauthorized("send a valid key as Authorization: Bearer KEY or X-API-Key: KEY")
        now = self._clock()
        if wait := account.wait_for_slot():
            self._refuse(account, "concurrency", f"{account.quota.concurrency} requests at once", wait)
        if wait := account.wait_for_token(now):
            self._refuse(account, "rate", f"{account.quota.requests_per_second:g} requests a second", wait)
        account.tokens -= 1
        account.in_flight += 1
        self._count(account.name, "accepted")
        return Visit(account, now, self._clock)

    def _find(self, headers: Iterable[tuple[bytes, bytes]]) -> Account | None:
        """Every key is compared, whatever the ones before it were, so that time tells nothing."""
        found = None
        for given in presented(headers):
            digest = _digest(given)
            for known, account in self._accounts:
                if hmac.compare_digest(known, digest):
                    found = account
        return found

    def _refuse(self, account: Account, outcome: str, limit: str, wait: float) -> None:
        self._count(account.name, outcome)
        logger.info("key %s: refused, beyond its %s", account.name, limit)
        raise QuotaExceeded(f"this key may send {limit}: try again later", retry_after=wait)


class Visit:
    """One admitted request."""

    def __init__(self, account: Account, since: float, clock: Callable[[], float]):
        self.name = account.name
        self._account, self._since, self._clock = account, since, clock

    def end(self) -> None:
        account, seconds = self._account, self._clock() - self._since
        account.in_flight -= 1
        account.mean_seconds += (seconds - account.mean_seconds) * (NEWEST if account.mean_seconds else 1)


def presented(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The keys that a request carries: none, one, or two where both headers are used."""
    given = dict(headers)
    scheme, _, token = given.get(b"authorization", b"").partition(b" ")
    keys = [token.strip()] if scheme.lower() == b"bearer" else []
    return keys + ([given[b"x-api-key"]] if b"x-api-key" in given else [])


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()
