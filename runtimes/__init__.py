"""Running and timing files: a runtime knows how to run a file, a target knows where.

``worker.py``, ``runtime.py`` and one file per runtime need only Python, NumPy and that runtime's library: they are what
runs on the target, so nothing in them imports the rest of edgekit.
"""
