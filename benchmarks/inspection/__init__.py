"""Records the kernel launches of the service, compiles them and checks limits. Needs Triton, but no GPU."""
