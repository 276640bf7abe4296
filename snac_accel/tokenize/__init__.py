"""`tokenize`: from any source to a dataset of codes, parquet shards that language models are trained on.

Two passes, with the machinery of `prepare`. `encoding` encodes the clips of a step at a time, in many processes, and leaves a
table of each; `sharding` joins the tables into shards, in the order of the sources. What is done stays done. `columns` says what
a row is, `reading` turns rows into codes again, and `card` tells people and the Hub about them.
"""

from .reading import is_tokenized, read_tokenized
from .running import tokenize
from .settings import TokenizeSettings

__all__ = ["TokenizeSettings", "is_tokenized", "read_tokenized", "tokenize"]
