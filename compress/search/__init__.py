"""Searching over steps: which of them reach a goal on a network, and what they cost there."""
