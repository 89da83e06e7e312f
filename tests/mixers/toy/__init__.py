"""A mixer and a target that exist in the tests only: gated moving averages in a Llama."""
