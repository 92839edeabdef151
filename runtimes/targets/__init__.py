"""Where files are executed: one target per file; :mod:`edgekit.runtimes.targets.target` says what a target is."""
