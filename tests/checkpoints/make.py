"""Make the tiny checkpoint of the format that this version writes: `python tests/checkpoints/make.py`, once for each format.

It writes format_N/step_00000003 beside this file, and format_N/losses.json: the losses of the two steps after it. Formats
that were released are never made again: `tests/test_upgrade.py` loads them as they were written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tiny import MODEL, WINDOW, make_state, step_settings  # noqa: E402

from snac_accel.checkpoint import FORMAT, save_checkpoint  # noqa: E402
from snac_accel.discriminators import MultiPeriodDiscriminator  # noqa: E402
from snac_accel.state import TrainState  # noqa: E402
from snac_accel.step import train_step  # noqa: E402

CHANGES: dict[str, Any] = {  # of `MODEL`: some tens of kilobytes with both moments
    "encoder_dim": 2,
    "encoder_rates": [4, 8],
    "decoder_dim": 8,
    "decoder_rates": [8, 4],
    "codebook_size": 8,
    "codebook_dim": 2,
    "vq_strides": [2, 1],
}
STEPS = 3


def build(accelerator: Accelerator, seed: int = 0) -> TrainState:
    """The state that the checkpoints belong to."""
    torch.manual_seed(seed + 1)
    critics = {"mpd": MultiPeriodDiscriminator(periods=(2,), channels=(2, 4))}
    return make_state(accelerator, seed=seed, discriminators=critics, **CHANGES)


def batch(step: int) -> Tensor:
    """Two tones and a little noise (2, 1, WINDOW): nothing that a random generator would have to repeat for ever."""
    time = torch.arange(WINDOW, dtype=torch.float64) / MODEL["sampling_rate"]
    tones = [torch.sin(2 * torch.pi * (170.0 + 90 * step + 410 * clip) * time) for clip in range(2)]
    rough = torch.sin(1e4 * torch.sin(977.0 * (step + 1) + 1e3 * time))
    return torch.stack([0.3 * tone + 0.02 * rough for tone in tones]).float()[:, None]


def advance(state: TrainState, accelerator: Accelerator, steps: int) -> list[dict[str, float]]:
    """Train so many steps; return the losses of each."""
    rows = []
    for _ in range(steps):
        report = train_step([batch(state.step)], state, accelerator, step_settings(restart_after=8.0))
        rows.append({name: float(value) for name, value in report.losses.items()})
    return rows


def main() -> None:
    """Write the checkpoint and the losses after it."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    state = build(accelerator)
    advance(state, accelerator, STEPS)
    state.count("audio_samples", 1234)
    folder = HERE / f"format_{FORMAT}"
    config = {"model": MODEL | CHANGES, "training": {"seed": 0}}
    facts = {"config_hash": "0" * 64, "world_size": 1, "global_batch_size": 2}
    save_checkpoint(folder, state, config=config, **facts)
    (folder / "losses.json").write_text(json.dumps(advance(state, accelerator, 2), indent=2) + "\n")


if __name__ == "__main__":
    main()
