"""How far a reconstruction is from its original, and what the codec costs. The numbers are explained in docs/quality/metrics.md.

`family` says what a metric is, `distances` are plain spectra, `perceptual`, `dnsmos` and `pitch` use packages of the extra
`metrics`, `rates` counts tokens, bits and seconds, `registry` has all of them by name.
"""

from .distances import log_spectral_distance_db, mel_distance, mel_distance_two_scale, si_sdr_db, stft_distance
from .family import EXTRA, Metric, MetricSum, clip_metric, per_clip
from .rates import LevelRate, Rates, Speed, Timed, entropy_bits, measure_rates, time_codec
from .registry import METRICS, VALIDATION_METRICS, find_metric, usable_metrics

__all__ = [
    "EXTRA",
    "METRICS",
    "VALIDATION_METRICS",
    "LevelRate",
    "Metric",
    "MetricSum",
    "Rates",
    "Speed",
    "Timed",
    "clip_metric",
    "entropy_bits",
    "find_metric",
    "log_spectral_distance_db",
    "measure_rates",
    "mel_distance",
    "mel_distance_two_scale",
    "per_clip",
    "si_sdr_db",
    "stft_distance",
    "time_codec",
    "usable_metrics",
]
