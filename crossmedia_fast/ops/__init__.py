"""The fused operations: one folder an op, the same file names in each."""
