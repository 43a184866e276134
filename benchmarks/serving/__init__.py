"""Measures this service and other servers on a simulated accelerator, and compares them with an ideal server."""
