"""Merge methods: what becomes of the tensors that several models hold under one name."""
