"""Load in closed loop: so many people who wait for each answer, with statistics by model.

    locust -f docker/load/locustfile.py --host http://127.0.0.1:8000 Mixed          # with a page at :8089
    locust --config docker/load/ci.conf --host http://127.0.0.1:8000 Mixed          # without one, for ten seconds

Mixed         people who look at each picture for a while; every sampler, 5 to 50 steps, guided or not
Saturation    people who never look: the next request follows at once. What is refused is counted apart, in all
              scenarios, and tried again after the time that the service asks for
Soak          mixed, but one in twenty hangs up on the way and one in twenty reads an event stream

A slow service slows these people down, and so its own measurement: for latencies at a rate of arrival use
`make load`. An API key is read from STEPWISE_KEY.
"""

import os
import random
import time
from typing import Any, cast

from locust import HttpUser, between, constant, events, task
from locust.env import Environment

STEPS = (5, 10, 20, 30, 50)
KEY = os.environ.get("STEPWISE_KEY")
HANG_UP_SECONDS = 0.02


class Client(HttpUser):
    """Knows the models of the service and how to ask for a picture."""

    abstract = True
    connection_timeout, network_timeout = 10.0, 60.0

    def on_start(self) -> None:
        if KEY:
            self.client.headers["Authorization"] = f"Bearer {KEY}"
        self.models = self.client.get("/models").json()["models"]

    def fields(self) -> dict[str, Any]:
        """Of a request that agrees with few others in anything."""
        model = random.choice(self.models)
        return {
            "model": model["name"],
            "class": random.choice(model["class_names"]),
            "steps": random.choice(STEPS),
            "sampler": random.choice(model["samplers"]),
            "guidance": random.choice((1, 1.5, 3)),
        }

    def generate(self) -> None:
        fields = self.fields()
        name = f"/generate {fields['model']}"
        with self.client.post("/generate", params=fields, name=name, catch_response=True) as answer:
            if answer.status_code == 503 and "Retry-After" in answer.headers:
                cast(dict[str, Any], answer.request_meta)["name"] = f"{name}, refused"
                answer.success()
                time.sleep(int(answer.headers["Retry-After"]) * random.uniform(0.5, 1.5))  # not all at once
            elif answer.status_code != 200 or not answer.content.startswith(b"\x89PNG"):
                answer.failure(f"status {answer.status_code}: {answer.text[:200]}")


class Mixed(Client):
    wait_time = between(0.5, 2)

    @task
    def look_at_a_picture(self) -> None:
        self.generate()


class Saturation(Client):
    wait_time = constant(0)

    @task
    def ask_again(self) -> None:
        self.generate()


class Soak(Client):
    wait_time = between(0, 0.2)

    @task(18)
    def look_at_a_picture(self) -> None:
        self.generate()

    @task(1)
    def hang_up(self) -> None:
        """Counted apart: that the client left is no answer whose time would mean something."""
        fields = self.fields() | {"steps": 50}
        with self.client.post(
            "/generate", params=fields, timeout=HANG_UP_SECONDS, name="/generate, hung up", catch_response=True
        ) as answer:
            answer.success()

    @task(1)
    def watch(self) -> None:
        fields = self.fields()
        headers, name = {"Accept": "text/event-stream"}, f"/generate {fields['model']}, stream"
        with self.client.post(
            "/generate", params=fields, headers=headers, name=name, catch_response=True
        ) as answer:
            if answer.status_code != 503 and "event: image_generation.completed" not in answer.text:
                answer.failure(f"status {answer.status_code}: the stream ended without a picture")
            elif answer.status_code == 503:
                answer.success()


@events.quitting.add_listener
def tell_by_exit_code(environment: Environment, **_: Any) -> None:
    """1 when a request failed, or when none was made."""
    total = environment.stats.total
    environment.process_exit_code = 1 if total.num_failures or not total.num_requests else 0
