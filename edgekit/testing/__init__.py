"""Fakes, small networks, and the conformance suites that every step, exporter and runtime must pass."""
