"""Training, calibration and held-out data: sources, the teacher's responses, tokens."""
