"""Records the kernel launches of a service, compiles them and holds them to limits. Needs Triton, but no GPU."""
