"""Spacings: at which noise times a sampler evaluates the network. Each gives n of them, from noise to clean."""

from collections.abc import Callable

import numpy as np

from models.schedule import NUM_TIMESTEPS, NoiseSchedule

LAST_U = 1 / NUM_TIMESTEPS  # the noise time of the last evaluation where a spacing does not end by itself
FIRST_FLOW_U = 1 - 1 / NUM_TIMESTEPS  # Karras and log-SNR spacing start here: flow has log-SNR -inf at u = 1
KARRAS_RHO = 7.0  # Karras et al. 2022, equation 5
SHIFT = 3.0  # Esser et al. 2024, section 5.3.2


def trailing(schedule: NoiseSchedule, n: int) -> np.ndarray:
    """1, 1 - 1/n, ..., 1/n (Lin et al. 2023, table 2): starts at pure noise, equal steps down to 0."""
    return 1 - np.arange(n) / n


def uniform(schedule: NoiseSchedule, n: int) -> np.ndarray:
    """n equal points from 1 to the last timestep (linspace)."""
    return np.linspace(1, LAST_U, n)


def karras(schedule: NoiseSchedule, n: int) -> np.ndarray:
    """Karras et al. 2022, equation 5, in sigma / alpha."""
    first, last = np.exp(-schedule.log_snr(np.array([_first_u(schedule), LAST_U])))
    ramp = np.linspace(first ** (1 / KARRAS_RHO), last ** (1 / KARRAS_RHO), n) ** KARRAS_RHO
    return schedule.inverse_log_snr(-np.log(ramp))


def log_snr(schedule: NoiseSchedule, n: int) -> np.ndarray:
    """Equal steps of log(alpha / sigma) (Lu et al. 2022)."""
    first, last = schedule.log_snr(np.array([_first_u(schedule), LAST_U]))
    return schedule.inverse_log_snr(np.linspace(first, last, n))


def _first_u(schedule: NoiseSchedule) -> float:
    return FIRST_FLOW_U if schedule.is_flow else 1.0


def shifted(schedule: NoiseSchedule, n: int) -> np.ndarray:
    """Trailing, moved towards noise: u becomes 3 u / (1 + 2 u) (Esser et al. 2024, equation 23)."""
    u = trailing(schedule, n)
    return SHIFT * u / (1 + (SHIFT - 1) * u)


SPACINGS: dict[str, Callable[[NoiseSchedule, int], np.ndarray]] = {
    "trailing": trailing,
    "uniform": uniform,
    "karras": karras,
    "log_snr": log_snr,
    "shifted": shifted,
}
