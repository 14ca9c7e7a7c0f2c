"""Directions on the Hugging Face Hub: pushed, pulled in part or whole, found, and collected by base.

A repository holds one direction; a version is one commit and the tag `v1.2.0` on it. The modules of this package are
imported one by one, where they are needed.
"""
