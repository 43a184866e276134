"""LitServe with its dynamic batching: a batch is what arrives within 5 ms, at most one request for each row.

Requests of one batch may differ, so predict runs them in groups of equal settings.
"""

import argparse
from typing import Any

import litserve  # pyright: ignore[reportMissingImports]
from fastapi import Response

from benchmarks.serving.others.device import Pipelines, Settings, groups

BATCH_SECONDS = 0.005


class Api(litserve.LitAPI):
    """Both models in one worker, because they share the device."""

    def __init__(self, costs: str, rows: int):
        super().__init__(max_batch_size=rows, batch_timeout=BATCH_SECONDS, api_path="/generate")
        self._costs, self._rows = costs, rows

    def setup(self, device: str) -> None:
        self._pipelines = Pipelines(self._costs, self._rows)

    def decode_request(self, request: dict[str, Any]) -> Settings:
        return Settings(request["model"], request["steps"], request["guidance"])

    def batch(self, inputs: list[Settings]) -> list[Settings]:
        return inputs

    def predict(self, x: list[Settings]) -> list[bytes]:
        pictures = [b""] * len(x)
        for settings, places in groups(x).items():
            for place, picture in zip(places, self._pipelines.run(settings, len(places)), strict=True):
                pictures[place] = picture
        return pictures

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--costs", required=True)
    parser.add_argument("--rows", type=int, required=True)
    given = parser.parse_args()
    server = litserve.LitServer(Api(given.costs, given.rows), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=given.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
