"""What would be launched and what the compiler makes of it; needs Triton, but no GPU."""
