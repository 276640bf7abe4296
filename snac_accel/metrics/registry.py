"""All metrics by name, which of them are usable here, and those of others by their place: `module:name` or an entry point.

Code of others is only loaded for a name that the person who runs the program has given, never for one that comes with data.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points

from ..errors import ConfigError
from .distances import log_spectral_distance_db, mel_distance, mel_distance_two_scale, si_sdr_db, stft_distance
from .dnsmos import dnsmos, dnsmos_p808
from .family import Metric, clip_metric
from .perceptual import PESQ_LOWEST, estoi, pesq_wideband, stoi, visqol, visqol_speech
from .pitch import f0_error_cents, voicing_f1

ENTRY_POINTS = "snac_accel.metrics"


def find_metric(name: str) -> Metric:
    """The metric of that name: one of METRICS, an entry point of `snac_accel.metrics`, or the Metric at `module:name`.

    Raises ConfigError, which names what is near, for any other.
    """
    if name in METRICS:
        return METRICS[name]
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return _checked(name, point.load())
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        near = get_close_matches(name, METRICS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown metric {name!r}: {hint}known are {', '.join(METRICS)}, and yours as module:name")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # code of others: whatever it raises, the name does not work
        problem = f"{type(error).__name__}: {error}"
        raise ConfigError(f"metric {name!r} cannot be loaded: {problem}; is its folder in PYTHONPATH?") from error
    return _checked(name, found)


def _checked(name: str, found: object) -> Metric:
    if isinstance(found, Metric):
        return found
    raise ConfigError(
        f"metric {name!r} is a {type(found).__name__}, should be a snac_accel.metrics.Metric: clip_metric makes one of a function"
    )


def usable_metrics(names: Iterable[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """Of `names` (default: all of METRICS) those that can be computed here, and for the others what to install."""
    chosen = list(METRICS if names is None else names)
    missing = {name: text for name in chosen if (text := find_metric(name).missing())}
    return [name for name in chosen if name not in missing], missing


METRICS: dict[str, Metric] = {
    "mel_distance": Metric(mel_distance, "log-mel distance (7 scales)", "", "lower", 0.0),
    "mel_distance_two_scale": Metric(mel_distance_two_scale, "mel distance (2 scales)", "", "lower", 0.0),
    "stft_distance": Metric(stft_distance, "STFT distance", "", "lower", 0.0),
    "log_spectral_distance_db": Metric(log_spectral_distance_db, "log-spectral distance", "dB", "lower", 0.0),
    "si_sdr_db": Metric(si_sdr_db, "SI-SDR", "dB", "higher", None),
    "pesq": clip_metric(
        pesq_wideband, label="PESQ (wide band)", unit="MOS", better="higher", ideal=4.64, sampling_rate=16000,
        lowest=PESQ_LOWEST, package="pesq", modules=("pesq",),
    ),
    "stoi": clip_metric(
        stoi, label="STOI", better="higher", ideal=1.0, lowest=0.0, package="pystoi", modules=("pystoi",),
    ),
    "estoi": clip_metric(
        estoi, label="ESTOI", better="higher", ideal=1.0, lowest=0.0, package="pystoi", modules=("pystoi",),
    ),
    "visqol": clip_metric(
        visqol, label="ViSQOL (audio)", unit="MOS", better="higher", ideal=4.73, sampling_rate=48000, lowest=1.0,
        package="visqol-python", modules=("visqol",),
    ),
    "visqol_speech": clip_metric(
        visqol_speech, label="ViSQOL (speech)", unit="MOS", better="higher", ideal=None, sampling_rate=16000, lowest=1.0,
        package="visqol-python[lattice]", modules=("visqol", "ai_edge_litert"),
    ),
    "dnsmos": clip_metric(
        dnsmos, label="DNSMOS (P.835, overall)", unit="MOS", better="higher", sampling_rate=16000, lowest=1.0,
        needs_reference=False, package="speechmos and onnxruntime", modules=("speechmos", "onnxruntime"),
    ),
    "dnsmos_p808": clip_metric(
        dnsmos_p808, label="DNSMOS (P.808)", unit="MOS", better="higher", sampling_rate=16000, lowest=1.0,
        needs_reference=False, package="speechmos and onnxruntime", modules=("speechmos", "onnxruntime"),
    ),
    "f0_error_cents": clip_metric(
        f0_error_cents, label="pitch error", unit="cents", better="lower", ideal=0.0, sampling_rate=16000,
        package="swift-f0", modules=("swift_f0",),
    ),
    "voicing_f1": clip_metric(
        voicing_f1, label="voicing F1", better="higher", ideal=1.0, sampling_rate=16000,
        package="swift-f0", modules=("swift_f0",),
    ),
}  # fmt: skip
VALIDATION_METRICS = (  # cheap, and there without an extra: measured in every validation
    "mel_distance", "mel_distance_two_scale", "stft_distance", "log_spectral_distance_db", "si_sdr_db",
)  # fmt: skip
