"""Named starting points: the published SNAC models, the data sets people train on, and the demo.

Everything here is a plain value: a model preset holds the arguments of `snac.SNAC`, a data preset is a
complete run. A variant starts from one of them and changes two lines. Standard library only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ModelConfig = dict[str, Any]

# hubertsiuzdak/snac_24khz, speech: 19,842,914 parameters.
_SNAC_24KHZ: ModelConfig = {
    "sampling_rate": 24000,
    "encoder_dim": 48,
    "encoder_rates": [2, 4, 8, 8],
    "latent_dim": None,
    "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}

# hubertsiuzdak/snac_32khz, music and sound effects: 54,546,338 parameters.
_SNAC_32KHZ: ModelConfig = {
    "sampling_rate": 32000,
    "encoder_dim": 64,
    "encoder_rates": [2, 3, 8, 8],
    "latent_dim": None,
    "decoder_dim": 1536,
    "decoder_rates": [8, 8, 3, 2],
    "attn_window_size": 32,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [8, 4, 2, 1],
    "noise": True,
    "depthwise": True,
}

# hubertsiuzdak/snac_44khz, music and sound effects: the 32 kHz network at another rate.
_SNAC_44KHZ: ModelConfig = {**_SNAC_32KHZ, "sampling_rate": 44100}

# Not published: the 24 kHz network for speech recorded at 16 kHz. Frames of 320 samples, 50 a second; padding to 0.08 s.
_SNAC_16KHZ: ModelConfig = {
    **_SNAC_24KHZ,
    "sampling_rate": 16000,
    "encoder_rates": [2, 4, 5, 8],
    "decoder_rates": [8, 5, 4, 2],
}

# Not published: the 44.1 kHz network at 48 kHz. Frames of 384 samples, 125 a second; padding to 0.256 s.
_SNAC_48KHZ: ModelConfig = {**_SNAC_32KHZ, "sampling_rate": 48000}

# Not published: small enough to train in minutes on two CPU cores; for the demo and the tests.
_TINY: ModelConfig = {
    "sampling_rate": 16000,
    "encoder_dim": 8,
    "encoder_rates": [4, 4, 4, 2],
    "latent_dim": None,
    "decoder_dim": 128,
    "decoder_rates": [2, 4, 4, 4],
    "attn_window_size": None,
    "codebook_size": 256,
    "codebook_dim": 8,
    "vq_strides": [2, 1],
    "noise": True,
    "depthwise": True,
}


def create_snac_24khz_config() -> ModelConfig:
    """Arguments of the published 24 kHz speech model; a fresh dict that may be edited."""
    return copy.deepcopy(_SNAC_24KHZ)


def create_snac_32khz_config() -> ModelConfig:
    """Arguments of the published 32 kHz model; a fresh dict that may be edited."""
    return copy.deepcopy(_SNAC_32KHZ)


def create_snac_44khz_config() -> ModelConfig:
    """Arguments of the published 44.1 kHz model; a fresh dict that may be edited."""
    return copy.deepcopy(_SNAC_44KHZ)


class ModelFacts(NamedTuple):
    """What follows from a model's arguments without building it."""

    hop_length: int  # samples per frame of the finest level
    padding_quantum: int  # samples; `snac` pads every clip with zeros to a multiple of it
    token_rates: tuple[float, ...]  # codes per second of each level, coarse to fine
    bitrate: float  # bit/s, all levels together, log2(codebook_size) bits a code


def describe_model(model_config: Mapping[str, Any]) -> ModelFacts:
    """Hop, padding quantum, token rates and bitrate of a SNAC model.

    The quantum is hop * lcm(vq_strides[0], attention window), as in `snac.SNAC.preprocess` (snac 1.2.1).
    """
    hop_length = math.prod(model_config["encoder_rates"])
    frames_per_second = model_config["sampling_rate"] / hop_length
    strides = model_config["vq_strides"]
    token_rates = tuple(frames_per_second / stride for stride in strides)
    return ModelFacts(
        hop_length=hop_length,
        padding_quantum=hop_length * math.lcm(strides[0], model_config["attn_window_size"] or 1),
        token_rates=token_rates,
        bitrate=sum(token_rates) * math.log2(model_config["codebook_size"]),
    )


# Whole padding quanta near the paper's 0.8 s: 9 x 2048, 2 x 12288, 3 x 12288, 10 x 1280, 3 x 12288 and 32 x 256 samples.
SEGMENT_SECONDS: dict[str, float] = {
    "24khz": 0.768,
    "32khz": 0.768,
    "44khz": 0.836,
    "16khz": 0.8,
    "48khz": 0.768,
    "tiny": 0.512,
}

# What the paper trains every model with: AdamW at 6e-4, 800 k iterations of 16 clips.
_PAPER: dict[str, Any] = {
    "model_config": "24khz",
    "segment_length": SEGMENT_SECONDS["24khz"],
    "batch_size": 16,
    "learning_rate": 6e-4,
    "discriminator_learning_rate": None,  # the same
    "num_iterations": 800000,
}

_LJSPEECH: dict[str, Any] = {
    **_PAPER,
    "dataset_path": "bad49wolf/ljspeech-simple",
    "configuration": None,
    "split": "train",
    "audio_column": "audio",
    "streaming": False,
    "source": "LJ Speech: 24 h of one English reader, 22.05 kHz; public domain",
    "access": "open",
    "sections": {"validation": {"fraction": 0.02}, "paths": {"run_name": "ljspeech"}},
}

# Mozilla withdrew mozilla-foundation/common_voice_* from the Hub in October 2025; this is a mirror of 17.0.
# Another language is another configuration: --dataset common_voice --data.configuration de
_COMMON_VOICE: dict[str, Any] = {
    **_PAPER,
    "dataset_path": "fixie-ai/common_voice_17_0",
    "configuration": "en",
    "split": "train",
    "audio_column": "audio",
    "streaming": True,
    "speaker_column": "client_id",
    "source": "Common Voice 17.0, parquet mirror: read speech in many languages, mp3 at 48 kHz; CC0",
    "access": "open (the original needs an account at Mozilla Data Collective)",
    "sections": {"validation": {"split": "validation"}, "paths": {"run_name": "common_voice"}},
}

_LIBRISPEECH: dict[str, Any] = {
    **_PAPER,
    "dataset_path": "openslr/librispeech_asr",
    "configuration": "clean",
    "split": "train.100",
    "audio_column": "audio",
    "streaming": True,
    "speaker_column": "speaker_id",
    "source": "LibriSpeech: 100 h of English audio books, flac at 16 kHz (nothing above 8 kHz); CC BY 4.0",
    "access": "open",
    "sections": {"validation": {"split": "validation"}, "paths": {"run_name": "librispeech"}},
}

_VCTK: dict[str, Any] = {
    **_PAPER,
    "dataset_path": "sanchit-gandhi/vctk",
    "configuration": None,
    "split": "train",
    "audio_column": "audio",
    "streaming": False,
    "speaker_column": "speaker_id",
    "source": "VCTK 0.92 mirror: 44 h of 110 English speakers, 48 kHz, two microphones; CC BY 4.0",
    "access": "open",
    # By speaker: every sentence is there twice (two microphones), so a split by clip would leak.
    "sections": {"validation": {"by": "speaker", "fraction": 0.05}, "paths": {"run_name": "vctk"}},
}

_DEMO: dict[str, Any] = {
    "dataset_path": str(Path(__file__).with_name("demo")),
    "configuration": None,
    "split": "train",
    "audio_column": "audio",
    "streaming": False,
    "model_config": "tiny",
    "segment_length": SEGMENT_SECONDS["tiny"],
    "batch_size": 8,
    "learning_rate": 2e-3,
    "discriminator_learning_rate": None,
    "num_iterations": 400,
    "source": "13 minutes of recorded English prompts, shipped with the package; CC BY-SA 3.0, see its folder",
    "access": "open, no network needed",
    "sections": {
        "training": {
            "log_interval": 20,
            "validation_interval": 100,
            "save_interval": 200,
            "warmup_steps": 20,
            "lr_decay": 0.996,  # to a fifth of the learning rate at the end, where the results then waver less
        },
        "data": {"num_workers": 1},
        "validation": {"split": "validation", "num_samples": 6},
        # A fiftieth of the original widths: on a CPU the step is bound by the number of operations, not by their size.
        "discriminators": {
            "mpd": {"channels": [4, 8, 16, 16]},
            "msstftd": {"hop_lengths": [256, 512, 128], "win_lengths": [1024, 2048, 512], "channels": [4, 8, 16]},
        },
        # Without the hold the coarse level carries almost nothing after so few steps: in three runs of 400 steps (three levels)
        # shuffling its codes in time cost 1 to 3 % of the mel distance; with it 5 to 21 %, with these settings 16 %.
        "codebook": {"initialization_clips": 256, "hold_steps": 100, "release_steps": 60},
        "checkpoint": {"resume": "never"},
        "paths": {"run_name": "demo"},
    },
}

# Fine-tuning: the published 24 kHz weights on the shipped speech, which --dataset_path replaces by yours. The discriminators, if
# none lie beside the weights, learn alone until they can tell what is real; then low rates, and an average of the weights.
_FINETUNE_24KHZ_DECODER: dict[str, Any] = {
    **{key: _DEMO[key] for key in ("dataset_path", "configuration", "split", "audio_column", "streaming", "access")},
    "model_config": "24khz",
    "segment_length": SEGMENT_SECONDS["24khz"],
    "batch_size": 8,
    "learning_rate": 1e-4,
    "discriminator_learning_rate": 2e-4,
    "num_iterations": 10000,
    "source": "the demo's speech; the model from hubertsiuzdak/snac_24khz on the Hub (MIT)",
    "sections": {
        "training": {
            "init_from": "hubertsiuzdak/snac_24khz",
            "freeze": ["encoder", "quantizer"],  # the codes stay, so language models built on them still fit
            "generator_wait_steps": 500,
            "warmup_steps": 200,
            "lr_decay": 0.9998,
            "log_interval": 50,
            "validation_interval": 500,
            "save_interval": 1000,
        },
        "validation": {"split": "validation"},
        "averaging": {"decay": 0.999},
        "codebook": {"method": "gradient", "restart": False},
        "paths": {"run_name": "finetune_24khz_decoder"},
    },
}

# Everything moves, encoder and codebooks slowest: the codes change, so it is for those who use this codec alone.
_FINETUNE_24KHZ_FULL: dict[str, Any] = {
    **_FINETUNE_24KHZ_DECODER,
    "learning_rate": 5e-5,
    "discriminator_learning_rate": 1e-4,
    "sections": {
        **_FINETUNE_24KHZ_DECODER["sections"],
        "training": {
            **_FINETUNE_24KHZ_DECODER["sections"]["training"],
            "freeze": [],
            "encoder_rate": 0.3,
            "quantizer_rate": 0.3,
        },
        "paths": {"run_name": "finetune_24khz_full"},
    },
}

# The flat keys of a data preset, and the section of the configuration that each belongs to; what else the run
# sets stands, already nested, under "sections". "source" and "access" are for the reader.
_SECTION_OF_KEY = {
    "dataset_path": "data",
    "configuration": "data",
    "split": "data",
    "audio_column": "data",
    "streaming": "data",
    "speaker_column": "data",
    "segment_length": "data",
    "batch_size": "training",
    "learning_rate": "training",
    "discriminator_learning_rate": "training",
    "num_iterations": "training",
}


def preset_run(name: str) -> dict[str, Any]:
    """The nested configuration of a preset, fresh and editable.

    A data preset gives a complete run. A model preset gives the model and a segment that fits it; the rest
    stays at the defaults. An unknown name raises KeyError.
    """
    if name in MODEL_CONFIGS:
        return {
            "model": copy.deepcopy(MODEL_CONFIGS[name]),
            "data": {"segment_length": SEGMENT_SECONDS[name]},
        }
    preset = copy.deepcopy(DATASET_CONFIGS[name])
    run: dict[str, Any] = {"model": copy.deepcopy(MODEL_CONFIGS[preset["model_config"]])}
    for section, settings in preset["sections"].items():
        run.setdefault(section, {}).update(settings)
    for key, section in _SECTION_OF_KEY.items():
        if key in preset:
            run.setdefault(section, {})[key] = preset[key]
    return run


MODEL_CONFIGS: dict[str, ModelConfig] = {
    "24khz": _SNAC_24KHZ,
    "32khz": _SNAC_32KHZ,
    "44khz": _SNAC_44KHZ,
    "16khz": _SNAC_16KHZ,
    "48khz": _SNAC_48KHZ,
    "tiny": _TINY,
}

DATASET_CONFIGS: dict[str, dict[str, Any]] = {
    "ljspeech": _LJSPEECH,
    "common_voice": _COMMON_VOICE,
    "librispeech": _LIBRISPEECH,
    "vctk": _VCTK,
    "demo": _DEMO,
    "finetune_24khz_decoder": _FINETUNE_24KHZ_DECODER,
    "finetune_24khz_full": _FINETUNE_24KHZ_FULL,
}
