"""The aviary: drawn birds, a benchmark that any machine can make, and the micro encoder for it.

Start with `species`, which decides what a bird looks like; `art` and `scene` draw it.
"""
