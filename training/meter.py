"""Progress of a run: a bar in a terminal, or a line a minute in a log."""

import logging
import math
import sys
import time

logger = logging.getLogger(__name__)

EVERY = 60.0  # seconds between two lines


class Meter:
    """steps: of the whole run; done: steps before this process began; shown: true in only one of the processes."""

    def __init__(self, steps: int, done: int, shown: bool):
        from tqdm import tqdm

        self.steps, self.begun_at, self.step = steps, done, done
        self.in_log = shown and not sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=done, disable=not shown or self.in_log, unit="step", mininterval=5)
        self.started = self.said = time.monotonic()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, loss: float, held_out: float = math.nan) -> None:
        """Count a step; loss: smoothed; held_out: the last loss on held-out pictures, if any was measured."""
        self.step += 1
        losses = f"loss {loss:.4f}" + ("" if math.isnan(held_out) else f", held out {held_out:.4f}")
        self.bar.set_postfix_str(losses, refresh=False)
        self.bar.update()
        now = time.monotonic()
        if self.in_log and (now - self.said >= EVERY or self.step == self.steps):
            self.said = now
            left = (self.steps - self.step) * (now - self.started) / (self.step - self.begun_at)
            minutes = "less than a minute" if left < 60 else f"{left / 60:.0f} min"
            logger.info("step %d of %d, %s, %s left", self.step, self.steps, losses, minutes)
