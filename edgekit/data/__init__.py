"""Data sets by reference, their splits, and the preprocessing that turns an image into an input."""
