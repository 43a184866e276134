"""The comparison of networks: its list of runs, what each run measures, and the report on all of them."""
