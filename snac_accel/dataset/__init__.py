"""Sources → samples → batches, map-style and streaming, in an order that is a pure function of the seed.

`sources` and `folder` open data, `order` decides what comes when, `windows` cuts samples, `audio_dataset`
puts these together, `streaming` reads without an index, `hold_out` and `validation` keep clips apart,
`loader` feeds the trainer.
"""

from .audio_dataset import AudioDataset
from .hold_out import hold_out, is_held_out
from .loader import BatchLoader, make_loader
from .order import SampleKey, StepBatchSampler
from .samples import BadSamples, Batch, Failure, Sample, collate
from .validation import Clip, ValidationClips

__all__ = [
    "AudioDataset",
    "BadSamples",
    "Batch",
    "BatchLoader",
    "Clip",
    "Failure",
    "Sample",
    "SampleKey",
    "StepBatchSampler",
    "ValidationClips",
    "collate",
    "hold_out",
    "is_held_out",
    "make_loader",
]
