"""API keys as the operator configures them. Keys are secrets; their names go to logs and metrics."""

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

MIN_LENGTH, MAX_LENGTH = 16, 512  # characters of a key; a header of a request holds it
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
SOLE_NAME = "default"  # of a key that was given without one


class ApiKey(BaseModel):
    """One key and its quota; None is without limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    key: SecretStr = Field(min_length=MIN_LENGTH, max_length=MAX_LENGTH)
    requests_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    burst: int | None = Field(default=None, ge=1)  # requests at once; default: those of one second
    concurrency: int | None = Field(default=None, ge=1)  # open requests, streams included

    @model_validator(mode="after")
    def _can_be_sent(self) -> "ApiKey":
        _check_characters(self.key)
        if self.burst and not self.requests_per_second:
            raise ValueError("burst needs requests_per_second")
        return self


def _check_characters(key: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise ValueError("a key is made of visible ASCII characters")
    return key


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
AdminKey = Annotated[
    SecretStr, Field(min_length=MIN_LENGTH, max_length=MAX_LENGTH), AfterValidator(_check_characters)
]
