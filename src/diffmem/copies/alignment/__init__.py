"""Laying a picture over training pictures: which part of which is in it, how placed, and how much that proves.

Three steps, each for all candidates of one picture at once: `placing` looks for blocks of the picture in each candidate
(mirrored, turned, at several sizes), `fitting` moves the best places to sub-pixel accuracy, `evidence` says, pixel by
pixel, how much more alike the two are than unrelated pictures would be. Pure NumPy and torch, on the CPU, no weights.
"""

from diffmem.copies.alignment.align import Aligner, Alignment

__all__ = ["Aligner", "Alignment"]
