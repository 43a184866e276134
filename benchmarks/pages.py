"""Writes tables into documents, between comments that mark their places."""

import re
from collections.abc import Mapping


def fill(page: str, subject: str, blocks: Mapping[str, str]) -> str:
    """The page with every block between <!-- subject: name --> and <!-- end --> written anew."""

    def anew(match: re.Match[str]) -> str:
        return f"{match[1]}\n{blocks[match[2]]}\n{match[3]}"

    return re.sub(rf"(<!-- {subject}: (\w+) -->)\n.*?(<!-- end -->)", anew, page, flags=re.DOTALL)
