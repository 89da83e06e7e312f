"""Gated DeltaNet's rule on a CPU: delta rule in chunks and gated norm, forward and backward."""
