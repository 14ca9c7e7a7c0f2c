"""Similarity of directions and updates in weight space: inner products, cosines, null bands, monitoring of training."""
