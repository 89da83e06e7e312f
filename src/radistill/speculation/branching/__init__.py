"""Drafting several branches while the target verifies (SpecBranch, arXiv 2506.01979), exact at every temperature."""
