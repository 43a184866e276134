"""Other servers to compare with, on the same simulated device, in environments of their own without torch."""
