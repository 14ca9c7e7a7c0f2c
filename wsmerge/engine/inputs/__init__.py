"""Tensors that a merge reads: stored ones, and those that are made of stored ones while they are read."""
