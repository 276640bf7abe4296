"""Pure signal functions: `reading` decodes windows of clips, `spectra` transforms batches of audio."""

from .reading import AudioError, AudioInfo, AudioReader, apply_gain, probe
from .spectra import as_batch, mel_filter_bank, mel_spectrogram, stft, stft_magnitude

__all__ = [
    "AudioError",
    "AudioInfo",
    "AudioReader",
    "apply_gain",
    "as_batch",
    "mel_filter_bank",
    "mel_spectrogram",
    "probe",
    "stft",
    "stft_magnitude",
]
