"""Quantization: ranges are found once, belong to the bundle, and every format takes its scales from there."""
