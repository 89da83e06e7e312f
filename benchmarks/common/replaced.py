"""Which attentions of SmolLM2-135M the benchmarks of speed replace."""

ORDER = (3, 6, 7, 11, 14, 18, 22, 25, 28, 29, 1, 4, 9, 12, 16, 19, 21, 24, 26, 27)
"""In this order; how well the new blocks are fitted does not matter there."""
