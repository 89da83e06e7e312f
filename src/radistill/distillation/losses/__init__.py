"""Losses between a teacher and a student.

Those between distributions are in `distributions`, where a new one is one class, with cross-entropy to the data's own
tokens. The losses between hidden states, [tokens, hidden], are in `hidden`; what becomes of a loss where only a part of
the teacher's distribution is known, in `top_k`.
"""
