"""The command line: one file per command, which parses, builds settings, calls the library and renders.

Nothing heavy is imported at the top of these modules: ``edgekit --help`` must answer at once.
"""
