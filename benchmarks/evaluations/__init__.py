"""Quality of every way to sample a checkpoint against its cost."""
