"""Judges: who tells how far an answer shows a behaviour. Training pairs are filtered by one, answers in a sweep scored.

config    how a judge is named in a file
client    the judge that this describes: an endpoint that is asked, or a function of the user's
asking    several answers at once; what the judge gave before it failed is not lost
"""

from __future__ import annotations
