"""Evaluation: how good a hybrid is, and what it saves."""
