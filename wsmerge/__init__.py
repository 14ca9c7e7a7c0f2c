"""Behaviour directions in weight space: versioned artifacts, and a merge engine that composes them."""
