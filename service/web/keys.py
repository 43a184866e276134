"""API keys: who may ask, how often, and how much at once. Keys are secrets; their names go to logs and metrics."""

import hmac
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any

from prometheus_client import CollectorRegistry, Counter
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from service.web.errors import QuotaExceeded, Unauthorized

logger = logging.getLogger(__name__)

MIN_LENGTH, MAX_LENGTH = 16, 512  # characters of a key; a header of a request holds it
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
SOLE_NAME = "default"  # of a key that was given without one
OUTCOMES = ("accepted", "rate", "concurrency")
NEWEST = 0.2  # share of the newest request in the mean duration


class ApiKey(BaseModel):
    """One key and its quota; None is without limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    key: SecretStr = Field(min_length=MIN_LENGTH, max_length=MAX_LENGTH)
    requests_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    burst: int | None = Field(default=None, ge=1)  # requests at once; default: those of one second
    concurrency: int | None = Field(default=None, ge=1)  # open requests, streams included

    @model_validator(mode="after")
    def _can_be_sent(self) -> "ApiKey":
        if not re.fullmatch(r"[!-~]+", self.key.get_secret_value()):
            raise ValueError("a key is made of visible ASCII characters")
        if self.burst and not self.requests_per_second:
            raise ValueError("burst needs requests_per_second")
        return self


def _read(given: Any) -> Any:
    """A JSON object, or else one key without a name. What is wrong never repeats what was given."""
    if not isinstance(given, str):
        return given
    if not given.lstrip().startswith("{"):
        return {SOLE_NAME: {"key": given}}
    try:
        keys = json.loads(given)
    except ValueError as error:
        raise ValueError("not a JSON object") from error
    if not keys:
        raise ValueError("names no key: unset it for a service without keys")
    return {name: {"key": key} if isinstance(key, str) else key for name, key in keys.items()}


def _check(keys: dict[str, ApiKey]) -> dict[str, ApiKey]:
    if not all(NAME.fullmatch(name) for name in keys):
        raise ValueError("a name is made of 1 to 64 letters, digits, dots, dashes and underscores")
    if len({key.key.get_secret_value() for key in keys.values()}) < len(keys):
        raise ValueError("two names have the same key")
    return keys


ApiKeys = Annotated[dict[str, ApiKey], NoDecode, BeforeValidator(_read), AfterValidator(_check)]
# Scheme, host and port, as browsers send them; * is everybody.
Origins = list[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]]


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
        registry: gets the counter of requests by key and outcome.
        clock: seconds that never go back.
    """

    def __init__(
        self, keys: dict[str, ApiKey], registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic
    ):
        self._clock = clock
        self._accounts = [
            (_digest(key.key.get_secret_value().encode()), Account(name, key, burst(key), clock()))
            for name, key in keys.items()
        ]
        text = "Requests by API key; refused ones by reason"
        self._requests = Counter("diffusion_key_requests", text, ["key", "outcome"], registry=registry)
        self._requests.labels("", "unauthorized")
        for name in keys:
            for outcome in OUTCOMES:
                self._requests.labels(name, outcome)

    def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> "Visit":
        """Let a request in; it holds its place until its visit ends.

        Raises:
            Unauthorized: no key, or one that is not ours.
            QuotaExceeded: the key's rate or concurrency is used up.
        """
        account = self._find(headers)
        if account is None:
            self._requests.labels("", "unauthorized").inc()
            raise Unauthorized("send a valid key as Authorization: Bearer KEY or X-API-Key: KEY")
        now = self._clock()
        if wait := account.wait_for_slot():
            self._refuse(account, "concurrency", f"{account.quota.concurrency} requests at once", wait)
        if wait := account.wait_for_token(now):
            self._refuse(account, "rate", f"{account.quota.requests_per_second:g} requests a second", wait)
        account.tokens -= 1
        account.in_flight += 1
        self._requests.labels(account.name, "accepted").inc()
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
        self._requests.labels(account.name, outcome).inc()
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
