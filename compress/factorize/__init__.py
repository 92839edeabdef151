"""Low rank: a layer becomes a chain of smaller ones whose product is close to its weight."""
