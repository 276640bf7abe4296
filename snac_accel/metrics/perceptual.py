"""What listeners would say, by published models of hearing: PESQ, STOI and ESTOI, ViSQOL. Packages of others compute them.

Each gets one clip as two float32 arrays (T,), real first, at the rate that it is defined for. T samples.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np

from .family import Samples

# The C code of P.862 holds 50 utterances and writes past its arrays at the 51st, which ends the process. An utterance and its
# pause take at least 0.4 s, so 15 s cannot hold as many.
PESQ_SECONDS = 15
PESQ_LOWEST = 1.0  # where the scale of P.862.2 ends; what can be heard at all gets 1.01 and more


def pesq_wideband(real: Samples, fake: Samples, sampling_rate: int) -> float | None:
    """Perceptual evaluation of speech quality, wide band, as MOS-LQO: 1 to 4.64, higher is better.

    For speech at 16 kHz: nothing above 8 kHz is heard. Levels are aligned inside. Clips over 15 s are measured in equal pieces
    and averaged (the standard asks for 8 to 12 s); under 0.25 s, or without an utterance, it is not defined. Sources: ITU-T
    P.862 (2001) and P.862.2 (2007), package `pesq`, without Corrigendum 2 (2018), as the literature has it.
    """
    from pesq import NoUtterancesError, pesq

    number = -(-len(real) // (PESQ_SECONDS * sampling_rate))
    marks = []
    for r, f in zip(np.array_split(real, number), np.array_split(fake, number), strict=True):
        if len(r) < sampling_rate // 4:
            continue
        try:
            marks.append(float(pesq(sampling_rate, r, f, "wb")))
        except NoUtterancesError:
            continue
    return float(np.mean(marks)) if marks else None


def stoi(real: Samples, fake: Samples, sampling_rate: int) -> float | None:
    """Short-time objective intelligibility: 0 to 1, higher is better (it may fall slightly below 0).

    Correlation of the envelopes of 15 third octaves from 150 Hz to 4.3 kHz in windows of 384 ms; frames 40 dB under the loudest
    are left out. Not defined with less than 384 ms of sound. Source: Taal et al. 2011, package `pystoi`.
    """
    return _stoi(real, fake, sampling_rate, extended=False)


def estoi(real: Samples, fake: Samples, sampling_rate: int) -> float | None:
    """Extended STOI: 0 to 1, higher is better. Bands are normalised together, so that modulated noise is heard as well.

    Source: Jensen & Taal 2016, package `pystoi`.
    """
    return _stoi(real, fake, sampling_rate, extended=True)


def _stoi(real: Samples, fake: Samples, sampling_rate: int, *, extended: bool) -> float | None:
    from pystoi import stoi as published

    if len(real) < sampling_rate * 0.4:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        value = float(published(real, fake, sampling_rate, extended=extended))
    return None if value == 1e-5 else value  # what it returns, with that warning, when too little is left


def visqol(real: Samples, fake: Samples, sampling_rate: int) -> float | None:
    """ViSQOL in its audio mode, as MOS-LQO: 1 to 4.73, higher is better. For any sound, at 48 kHz.

    Similarity of gammatone spectrograms in patches of 0.6 s, mapped to a MOS by a support vector machine trained on music.
    Source: Chinen et al. 2020, package `visqol-python`.
    """
    return _visqol("audio", real, fake, sampling_rate)


def visqol_speech(real: Samples, fake: Samples, sampling_rate: int) -> float | None:
    """ViSQOL in its speech mode, as MOS-LQO: 1 to about 4.7, higher is better. For speech, at 16 kHz.

    As `visqol`, with patches that contain a voice, and the lattice network that the C++ program uses by default. It is stern
    with noise. Source: Chinen et al. 2020, package `visqol-python[lattice]`.
    """
    return _visqol("speech", real, fake, sampling_rate)


def _visqol(mode: str, real: Samples, fake: Samples, sampling_rate: int) -> float | None:
    if len(real) < sampling_rate:  # under a second it finds too few patches, or none
        return None
    result = _visqol_model(mode).measure_from_arrays(real.astype(np.float64), fake.astype(np.float64), sampling_rate)
    return float(result.moslqo)


@lru_cache(maxsize=2)
def _visqol_model(mode: str) -> Any:
    from visqol import VisqolApi

    model = VisqolApi()
    model.create(mode=mode, use_lattice_model=mode == "speech")
    return model
