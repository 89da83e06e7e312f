"""Mamba-2's state-space duality (SSD) on a CPU: convolution, scan and gated norm, forward and backward."""
