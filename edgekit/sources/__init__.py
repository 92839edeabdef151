"""Loading a trained model: a bundle folder, ``zoo:NAME``, ``package.module:factory``, ``file.py:factory``, ``FILE.pt2``."""
