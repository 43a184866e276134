"""What to run on a rented GPU: prepare.sh here, then first.sh and second.sh there. See docs/gpu.md."""
