"""HTTP: routes, limits, keys, encoding, the page."""
