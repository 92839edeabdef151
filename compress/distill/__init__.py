"""Distillation: a network learns from another one, by what that gives out or by what it holds inside.

One method per file; :mod:`edgekit.compress.distill.loss` makes the loss of any step that trains out of one of them, a
teacher and the places where both networks are looked into.
"""
