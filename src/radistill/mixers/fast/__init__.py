"""What the fast paths of several mixers on a CPU share: the swap of functions, the convolution, decays in chunks."""
