"""`prepare`: from any source to shards of equal size that plain `datasets` reads, in a shuffled order.

Two passes. `collecting` reads every clip once, in the order of the source, and decodes it: bad ones are set aside, and
what has to be fetched, cut or encoded is laid down in the work folder. `sharding` then deals the good ones into shards.
Both go in steps that are whole or absent, so that a preparation that was stopped goes on where it was.

`sources` opens the data; `conversion` checks, cuts and encodes clips; `contents` holds their bytes; `shard_files` writes
a shard; `output` is the folder, `card` its README; `processes` are the workers.
"""

from .running import prepare
from .settings import PrepareSettings, Summary

__all__ = ["PrepareSettings", "Summary", "prepare"]
