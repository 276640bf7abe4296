"""The trackers of a run, by the names that Accelerate knows: numbers to all, audio and pictures to those that take them.

What goes wrong in a tracker is said once and costs neither the other trackers nor the training: one that cannot be opened is left
out, one that fails again and again is left. A full disk passes, so after that TensorBoard goes on. Rank 0 only.
"""

from __future__ import annotations

import io
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import soundfile
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor

from .errors import ConfigError
from .files import writing_problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

MOST_FAILURES = 3  # in a row, after which a tracker is left
ID_FILE = "run_id"
# How mlflow waits for a server that does not answer: by default each number may take minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
Say = Callable[[str], None]


class Sound(NamedTuple):
    """Audio for a tracker."""

    name: str  # a path
    audio: Tensor  # (T,), in -1..1
    sampling_rate: int


class Picture(NamedTuple):
    """A picture for a tracker."""

    name: str  # a path
    figure: Figure

    def image(self) -> Image:
        """The picture in pixels."""
        from PIL import Image

        content = io.BytesIO()
        self.figure.savefig(content, dpi=100, format="png")
        return Image.open(content)


class Trackers:
    """Those of a run, opened once."""

    def __init__(
        self, names: Iterable[str], folder: Path, *, project: str, run: str, config: Mapping[str, Any], say: Say
    ) -> None:
        """`project`: what the runs of one kind have in common; `run`: the name of this one; `config`: flat."""
        self.folder, self._say = folder, say
        self.run_id = run_id(folder)
        self.open: dict[str, Any] = {}
        self._failures: dict[str, int] = {}
        for name in names:
            try:
                self.open[name] = _start(name, folder, project, run, self.run_id)
                self.open[name].store_init_configuration({**config, "run_id": self.run_id})
            except (Exception, SystemExit) as error:
                self.open.pop(name, None)
                say(f"warning: tracker {name} cannot be opened, training goes on without it: {self._reason(error)}")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        self._each(lambda name, tracker: tracker.log(dict(values), step=step))

    def media(self, sounds: Sequence[Sound], pictures: Sequence[Picture], step: int) -> None:
        """Write audio and pictures, where a tracker takes them."""
        self._each(lambda name, tracker: MEDIA[name](tracker, sounds, pictures, step) if name in MEDIA else None)

    def _each(self, write: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self.open.items()):
            try:
                if self._failures.get(name) and name == "tensorboard":
                    _begin_anew(tracker)
                write(name, tracker)
                self._failures[name] = 0
            except OSError as error:  # a disk may have room again
                self._failed(name, error, for_ever=False)
            except (Exception, SystemExit) as error:
                self._failed(name, error, for_ever=True)

    def _failed(self, name: str, error: BaseException, for_ever: bool) -> None:
        self._failures[name] = self._failures.get(name, 0) + 1
        if self._failures[name] == 1:
            self._say(f"warning: trackers: {name}: {self._reason(error)}; training goes on")
        if for_ever and self._failures[name] >= MOST_FAILURES:
            del self.open[name]
            self._say(f"warning: tracker {name} failed {MOST_FAILURES} times in a row: training goes on without it")

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, OSError) and error.errno is not None:
            return writing_problem(error, self.folder)
        return " ".join(f"{type(error).__name__} {error}".split())[:300]

    def close(self) -> None:
        """Let each write what it still has."""
        self._each(lambda name, tracker: tracker.finish())
        self.open = {}


def check_trackers(names: Iterable[str]) -> None:
    """Raise ConfigError, one line, for a tracker whose package is not installed: Accelerate would leave it out in silence."""
    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in installed:
            raise ConfigError(f"tracking.trackers: {name} is not installed here: pip install {name}, or leave it out")


def run_id(folder: Path) -> str:
    """What a run is known by, over all its restarts: twelve characters, kept in its logs."""
    file = folder / ID_FILE
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12] + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8")[:64].strip()


def _start(name: str, folder: Path, project: str, run: str, identity: str) -> Any:
    """A tracker of Accelerate, begun."""
    kind = LOGGER_TYPE_TO_CLASS[name]
    own = _options(name, folder, run, identity)
    tracker = kind(project, str(folder), **own) if kind.requires_logging_directory else kind(project, **own)
    tracker.start()
    if name == "mlflow":
        (folder / f"{ID_FILE}.mlflow").write_text(tracker.tracker.info.run_id, encoding="utf-8")
    return tracker


def _options(name: str, folder: Path, run: str, identity: str) -> dict[str, Any]:
    """What lets a tracker go on with a run that was interrupted, under its own name, in the run's own folder."""
    if name == "wandb":
        return {"id": identity, "name": run, "dir": str(folder), "resume": "allow"}
    if name == "trackio":
        return {"name": f"{run}-{identity}", "resume": "allow"}
    if name == "mlflow":
        for setting, value in PATIENCE.items():
            os.environ.setdefault(setting, value)
        file = folder / f"{ID_FILE}.mlflow"
        return {"run_name": run, "run_id": file.read_text(encoding="utf-8").strip() if file.exists() else None}
    return {}


def _begin_anew(tracker: Any) -> None:
    """Let TensorBoard open another file: after an error its writer never writes again."""
    tracker.writer.file_writer = tracker.writer.all_writers = None


def _to_tensorboard(tracker: Any, sounds: Sequence[Sound], pictures: Sequence[Picture], step: int) -> None:
    writer = tracker.writer
    for sound in sounds:
        writer.add_audio(sound.name, sound.audio, step, sample_rate=sound.sampling_rate)
    for picture in pictures:
        writer.add_figure(picture.name, picture.figure, step, close=False)
    writer.flush()


def _to_wandb(tracker: Any, sounds: Sequence[Sound], pictures: Sequence[Picture], step: int) -> None:
    import wandb

    media = {sound.name: wandb.Audio(sound.audio.numpy(), sample_rate=sound.sampling_rate) for sound in sounds}
    tracker.log({**media, **{picture.name: wandb.Image(picture.image()) for picture in pictures}}, step=step)


def _to_trackio(tracker: Any, sounds: Sequence[Sound], pictures: Sequence[Picture], step: int) -> None:
    import trackio

    media: dict[str, Any] = {sound.name: trackio.Audio(sound.audio.numpy(), sample_rate=sound.sampling_rate) for sound in sounds}
    tracker.log({**media, **{picture.name: trackio.Image(picture.image()) for picture in pictures}}, step=step)


def _to_mlflow(tracker: Any, sounds: Sequence[Sound], pictures: Sequence[Picture], step: int) -> None:
    import mlflow

    for picture in pictures:
        mlflow.log_image(picture.image(), artifact_file=f"{picture.name}/step_{step:08d}.png")
    with tempfile.TemporaryDirectory() as folder:
        for sound in sounds:
            file = Path(folder) / f"step_{step:08d}.wav"
            soundfile.write(file, sound.audio.numpy(), sound.sampling_rate, subtype="PCM_16")
            mlflow.log_artifact(str(file), artifact_path=sound.name)


# Those that take audio and pictures; all others are given numbers and settings.
MEDIA: dict[str, Callable[[Any, Sequence[Sound], Sequence[Picture], int], None]] = {
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
    "trackio": _to_trackio,
    "mlflow": _to_mlflow,
}
