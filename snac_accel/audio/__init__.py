"""Pure signal functions: windows of clips, their level and phase, spectra of batches.

`handles` opens files, `decoding` decodes ranges of them, `reading` cuts and resamples windows, `augmentation`
changes these, `spectra` transforms batches of audio.
"""

from .augmentation import Change, apply_gain, augment, loudness, rotate_phase
from .decoding import AudioInfo, probe
from .handles import AudioError
from .reading import AudioReader, resample
from .spectra import as_batch, hann_window, mel_filter_bank, mel_spectrogram, stft, stft_magnitude

__all__ = [
    "AudioError",
    "AudioInfo",
    "AudioReader",
    "Change",
    "apply_gain",
    "as_batch",
    "augment",
    "hann_window",
    "loudness",
    "mel_filter_bank",
    "mel_spectrogram",
    "probe",
    "resample",
    "rotate_phase",
    "stft",
    "stft_magnitude",
]
