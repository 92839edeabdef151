"""Weights as codes into a small table of values: k-means weight sharing, powers of two."""
