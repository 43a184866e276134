"""Names of classes and models: checked where they are accepted, so that every class and model can be asked for."""

import unicodedata
from collections.abc import Sequence


def class_key(name: str) -> str:
    """What two spellings of a class name have in common; two names with one key are the same class.

    Case and blanks around the name do not count. Nor does the form of its accents: macOS spells an accented
    letter as two characters, most clients as one.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())


def check_class_names(names: Sequence[str]) -> None:
    """Raises ValueError with a sentence for names that a request could not tell apart, or could not send."""
    seen: dict[str, str] = {}
    for name in names:
        key = class_key(name)
        if not key:
            raise ValueError(f"class name {name!r} is empty: give every class a name")
        if not _can_be_sent(name):
            raise ValueError(f"class name {name!r} holds a control character: rename the class")
        if key in seen:
            raise ValueError(
                f"class names {seen[key]!r} and {name!r} are the same but for case, blanks or Unicode form: "
                "rename one"
            )
        seen[key] = name


def check_model_name(name: str) -> None:
    """Raises ValueError with a sentence for a name that cannot stand between two slashes of a URL's path."""
    if not name or name != name.strip():
        raise ValueError(f"model name {name!r}: it must not be empty or have blanks around it")
    if "/" in name or name in (".", "..") or not _can_be_sent(name):
        raise ValueError(f"model name {name!r}: it must be one segment of a URL's path, so without a slash")


def _can_be_sent(name: str) -> bool:
    """Whether it is without control characters and lone surrogates, which UTF-8 cannot encode."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
