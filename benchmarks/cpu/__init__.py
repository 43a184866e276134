"""Every way to run the networks on a CPU, side by side."""
