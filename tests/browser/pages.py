"""A listening page for the browser: real speech, versions of it that differ, names as a stranger might choose them."""

from __future__ import annotations

from pathlib import Path

import soundfile
import torch
from torch import Tensor

from snac_accel.listening import Curves, Page, PageClip, PageModel, Sound, Table, write_page
from snac_accel.listening.writing import encode_flac

HOSTILE = "<img src=x onerror=\"window.hacked=1\"></script><script>window.hacked=1</script>.wav"
TONE = "=tone.wav"
MODELS = ("good codec", "bad <b>codec</b>")
METRICS = [
    {"name": "mel_distance", "label": "log-mel distance (7 scales)", "unit": "", "better": "lower"},
    {"name": "si_sdr_db", "label": "SI-SDR", "unit": "dB", "better": "higher"},
]
RATES = (12.5, 25.0)


def make_page(folder: Path, demo_folder: Path) -> None:
    """Write it."""
    sources = sorted((demo_folder / "validation").glob("*.flac"))[:2]
    speech = [torch.from_numpy(soundfile.read(source, dtype="float32")[0][:40000]) for source in sources]
    tone = 0.5 * torch.sin(torch.arange(64000) * 2 * torch.pi * 440 / 16000)
    names = ["speech/first.flac", HOSTILE, TONE]
    clips = [_clip(name, audio, number) for number, (name, audio) in enumerate(zip(names, [*speech, tone], strict=True))]
    steps = range(0, 1001, 50)
    curves = [
        Curves("Held-out distances", "distance", {"mel_distance": [(step, 10.0 / (1 + step / 200)) for step in steps]}, True),
        Curves("Held-out perplexity", "codes", {f"level_{n}": [(step, 40.0 * n + step / 10) for step in steps] for n in (1, 2)}),
    ]
    rows = [[(model, None), (f"{value:.2f} [1, 2]", value)] for model, value in zip(MODELS, (1.25, 3.5), strict=True)]
    tables = [Table("All clips", "Mean over clips.", ["model", "log-mel distance ↓"], rows)]
    models = [PageModel(label, RATES, 4096) for label in MODELS]
    facts = [("data", "demo (validation)"), (MODELS[1], "run, step 400")]
    notes = [f"1 clip is left out: {HOSTILE}"]
    write_page(folder, Page("Evaluation: two codecs", "3 clips", facts, METRICS, models, tables, clips, curves, notes))


def _clip(name: str, audio: Tensor, number: int) -> PageClip:
    versions = [("original", "original", None, None, True, audio)]
    for model, label in enumerate(MODELS):
        for levels in (2, 1):
            words = label if levels == 2 else f"{label}, level 0 only"
            made = _worse(audio, 1 + 2 * model + (2 - levels))
            versions.append((f"{model}/{levels}", words, model, levels, levels == 2, made))
    sounds = [Sound(*facts, encode_flac(sound, 16000), 16000) for *facts, sound in versions]
    measured: dict[str, float | None] = {"mel_distance": 1.0 + 0.1 * number, "si_sdr_db": None if number == 1 else 10.0 - number}
    values = {sound.key: measured for sound in sounds[1:]}
    seconds = len(audio) / 16000
    codes = {model: _codes(seconds, number + model) for model in range(len(MODELS))}
    return PageClip(name, "demo", f"speaker {number}", seconds, sounds, codes, values, "among the worst" if number == 1 else "")


def _worse(audio: Tensor, how_much: int) -> Tensor:
    """Quieter and duller, and still in time: every version can be told from the others."""
    kernel = torch.ones(1, 1, 2 * how_much + 1) / (2 * how_much + 1)
    dull = torch.nn.functional.conv1d(audio[None, None], kernel, padding=how_much)[0, 0]
    return dull * 0.9**how_much


def _codes(seconds: float, seed: int) -> list[list[int]]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randint(4096, (int(seconds * rate),), generator=draws).tolist() for rate in RATES]
