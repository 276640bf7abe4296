"""Sources → samples → batches, map-style and streaming, in an order that is a pure function of the seed.

`sources` opens data as clips by number (`clips`, `tables`, `parquet`, `tars`) or, without an index, as `streams`;
`order` decides what comes when, `windows` cuts samples, `audio_dataset` puts these together, `mixture` joins several,
`hold_out` and `validation` keep clips apart, `loader` feeds the trainer.
"""

from .audio_dataset import AudioDataset
from .hold_out import hold_out, is_held_out
from .loader import BatchLoader, make_loader
from .mixture import Mixture
from .order import ClipOrder, SampleKey, micro_batch_starts
from .samples import BadSamples, Batch, Failure, Sample, collate
from .validation import Clip, ValidationClips

__all__ = [
    "AudioDataset",
    "BadSamples",
    "Batch",
    "BatchLoader",
    "Clip",
    "ClipOrder",
    "Failure",
    "Mixture",
    "Sample",
    "SampleKey",
    "ValidationClips",
    "collate",
    "hold_out",
    "is_held_out",
    "make_loader",
    "micro_batch_starts",
]
