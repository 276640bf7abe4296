"""What a run tells: a progress bar, trackers through Accelerate, and a plain JSON-lines log. Rank 0 only.

Names are paths: `train/multi_scale_mel`, `discriminator/mpd`, `validation/mel_distance`, `time/step_seconds`.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from tqdm import tqdm

from .evaluate import SamplePair, safe_stem, spectrogram_figure
from .line_log import LineLog
from .run_folder import METRICS_FILE
from .trackers import Picture, Sound, Trackers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


class Tracking:
    """Opened once by a run; every method is a no-op on ranks other than 0."""

    def __init__(
        self,
        accelerator: Accelerator,
        log_dir: Path,
        *,
        config: Mapping[str, Any],
        name: str,
        run: str | None = None,
        start: int,
        total: int,
        progress_bar: bool,
    ) -> None:
        self.accelerator = accelerator
        self.main = accelerator.is_main_process
        self.log_dir = log_dir
        self.file = LineLog(log_dir / METRICS_FILE, self.say) if self.main else None
        if self.file is not None:
            self.file.open()  # an unwritable folder ends the run here, not in the middle
        names = [str(tracker) for tracker in accelerator.log_with]
        self.trackers = None
        if self.main:
            self.trackers = Trackers(names, log_dir, project=name, run=run or name, config=flatten(config), say=self.say)
        self._hook = threading.excepthook
        threading.excepthook = self._quiet
        shown = self.main and progress_bar
        self.bar = tqdm(
            total=total, initial=start, desc="training", unit="step", disable=not shown, dynamic_ncols=True
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars to the trackers and, with step and time, as one line to the log; non-finite values stay visible."""
        if self.file is None:
            return
        line = {"step": step, "unix_time": round(time.time(), 3), **{k: plain(v) for k, v in values.items()}}
        self.file.write(json.dumps(line))
        if self.trackers is not None and not self.file.failing:  # a full disk would cost each tracker as well
            self.trackers.log(values, step)

    def advance(self) -> None:
        """Move the bar by one step."""
        self.bar.update()

    def show(self, values: Mapping[str, float]) -> None:
        """Put a few numbers behind the bar."""
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=False)

    def note(self, text: str) -> None:
        """Put a few words behind the bar, until the next numbers."""
        self.bar.set_postfix_str(text)

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self.main:
            with suppress(OSError):  # stdout may lead to a full disk as well
                tqdm.write(text)

    def samples(self, pairs: Sequence[SamplePair], sampling_rate: int, step: int) -> None:
        """Audio and spectrogram pictures of fixed clips, in the trackers that take them."""
        sounds, pictures = [], []
        for pair in pairs:
            name = f"samples/{safe_stem(pair.name)}"
            sounds.append(Sound(f"{name}/original", pair.real.clamp(-1, 1), sampling_rate))
            sounds.append(Sound(f"{name}/reconstruction", pair.fake.clamp(-1, 1), sampling_rate))
            pictures.append(Picture(name, spectrogram_figure(pair, sampling_rate)))
        self._media(sounds, pictures, step)

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """A picture by its path, such as `codebook/use`, in the trackers that take them."""
        self._media([], [Picture(name, figure)], step)

    def _media(self, sounds: Sequence[Sound], pictures: Sequence[Picture], step: int) -> None:
        if self.trackers is not None and self.file is not None and not self.file.failing:
            self.trackers.media(sounds, pictures, step)

    def _quiet(self, arguments: threading.ExceptHookArgs) -> None:
        """Keep pages of stack from the terminal when TensorBoard's thread meets a full disk: `Trackers` says it."""
        if not (type(arguments.thread).__name__ == "_AsyncWriterThread" and issubclass(arguments.exc_type, OSError)):
            self._hook(arguments)

    def close(self) -> None:
        """Close bar, log and trackers."""
        self.bar.close()
        if self.file is not None:
            self.file.close()
        if self.trackers is not None:
            self.trackers.close()
        self.accelerator.end_training()
        threading.excepthook = self._hook


def validations(log_dir: Path) -> list[dict[str, Any]]:
    """The validation rows of a run's log, in the order they were written; lines cut short by a crash are passed over."""
    rows: list[dict[str, Any]] = []
    try:
        text = (log_dir / METRICS_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return rows
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and any(name.startswith("validation/") for name in row):
            rows.append(row)
    return rows


def plain(value: float) -> float | str:
    """`value` for JSON, which has no NaN or infinity: those become the strings "nan", "inf", "-inf"."""
    return value if math.isfinite(value) else str(value)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, lists and None as text: TensorBoard drops everything but scalars in silence."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
