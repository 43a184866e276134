"""What crosses between the processes: plain data and its transport. Imports no torch."""
