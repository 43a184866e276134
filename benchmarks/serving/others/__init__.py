"""Other servers on the same simulated device. They run in environments of their own, without torch."""
