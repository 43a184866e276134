"""Paths that are not treated like all others: probes, what needs no key, and what only operators may use."""

READINESS = {"/readyz", "/v2/health/ready"}  # 503 while models warm up is as usual as 200 after that
HEALTH = READINESS | {"/livez", "/v2/health/live"}  # answered beyond the limit on connections, too
PROBES = HEALTH | {"/metrics"}  # asked for every few seconds, so they are not traced, and logged as debug
ADMIN_FOLDER = "/admin/"


def needs_no_key(path: str) -> bool:
    """The page and the health paths do not. All others do, also routes that are added later."""
    return path in HEALTH or path in ("/", "/favicon.ico", "/openapi.json") or path.startswith("/static/")
