"""Calibration: from real images to the range of every activation, in bounded memory.

One method per file, each an :class:`~edgekit.compress.quantize.calibration.observer.Observer`; ``observer.py`` lists them.
"""
