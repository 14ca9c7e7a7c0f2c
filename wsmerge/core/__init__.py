"""What every room speaks: digests, dtypes, tensor specs, layer indices and deltas. Imports nothing of wsmerge but errors."""
