"""Plan, micro-batches, rows: the work of a run."""
