"""A run on disk: its recipe, the hybrids that it names, its files, and the record of what is done."""
