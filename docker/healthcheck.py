"""Ends with 0 if the service in this container says that it lives, else with 1 and the reason.

http.client and not urllib, which would send the question to a proxy that the environment names.
"""

import sys
from http.client import HTTPConnection, HTTPException

PORT = 8000  # of CMD in the Dockerfile
SECONDS = 4  # below the health check's own limit, so that the reason is told


def check() -> str:
    """The reason why it is not well, or nothing."""
    connection = HTTPConnection("127.0.0.1", PORT, timeout=SECONDS)
    try:
        connection.request("GET", "/livez")
        answer = connection.getresponse()
        return "" if answer.status == 200 else f"{answer.status}: {answer.read(500).decode()}"
    except (OSError, HTTPException) as error:
        return f"no answer: {error}"
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(check() or 0)
