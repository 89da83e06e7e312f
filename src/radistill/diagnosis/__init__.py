"""Diagnosis: which attention layers a model can do without, and the plan that says so."""
