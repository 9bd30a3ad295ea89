"""Special token ids of the grid.

Audio rows hold codes `0 .. card-1` and text rows pieces `0 .. text_card-1`; the id one past the end (`card`,
`text_card`) is the initial token of the row, which is only ever an input.
"""

from __future__ import annotations

#: Text: end of padding, the next position starts a word (also the id of unknown pieces).
EPAD = 0
#: Text: beginning and end of a sequence.
BOS = 1
EOS = 2
#: Text: padding between words.
PAD = 3
#: Any row: contributes nothing as an input and is not scored.
ZERO = -1
#: Generation only: not there yet, or free to be sampled. Never an input of an embedding.
UNGENERATED = -2
