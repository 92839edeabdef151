"""A smaller network out of a trained one, by edits of its graph.

Each file is one way to make a network smaller (:mod:`~edgekit.compress.compact.blocks` takes blocks out,
:mod:`~edgekit.compress.compact.separable`, :mod:`~edgekit.compress.compact.two_small` and
:mod:`~edgekit.compress.compact.spatial` write a convolution as cheaper ones), :mod:`~edgekit.compress.compact.assemble`
mixes them down to a goal, and :mod:`~edgekit.compress.compact.student` chooses among the mixes and distils.
"""
