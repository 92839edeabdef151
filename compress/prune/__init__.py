"""Pruning: channels are followed through the graph by one rule per operator, ranked in coupled groups, and cut out."""
