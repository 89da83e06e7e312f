"""Engines that serve a model: each loads it in its own way and writes text with it."""
