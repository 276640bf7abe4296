"""A picture of a step, who runs when, from a profile of a real run: the one in docs/speed/profiling.md.

python benchmarks/step_picture.py                                        24 kHz, two processes of one window each
python benchmarks/step_picture.py --processes 1 --output my_step.svg --preset demo

Trains a dozen steps on the demo's speech, with one data worker for each process, and draws a step in the middle, of rank 0.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from measure import machine, positive

import snac_accel
from snac_accel.config import load_config, to_dict
from snac_accel.profiling import TRACE_FILE
from snac_accel.traces import BACKENDS, Span, Trace, read_trace

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "docs" / "speed" / "step.svg"
STEPS = 12
PROFILED = "4:6"  # late enough to be warm, early enough that the data worker is still at work
WORKER_FILE = "SNAC_STEP_PICTURE_FILE"  # variable that names where data workers note their windows
LONGEST_SECONDS = 1800

# Lane -> names of ranges that are drawn in it, and colour (Okabe and Ito's, told apart by all eyes).
LANES = {
    "data worker": (("window",), "#999999"),
    "copy to the GPU": (("Memcpy HtoD",), "#999999"),
    "data wait": (("data wait",), "#d55e00"),
    "generator": (("generator forward", "generator backward"), "#0072b2"),
    "spectral losses": (("spectral losses",), "#f0e442"),
    "between processes": (BACKENDS, "#cc79a7"),
    "optimizers": (("optimizers",), "#e69f00"),
    "codebooks": (("codebooks",), "#56b4e9"),
    "bookkeeping": (("bookkeeping",), "#000000"),
}
DISCRIMINATOR, DISCRIMINATOR_COLOR = "discriminator ", "#009e73"
WIDTH, LEFT, ROW, BAR, TOP = 960, 150, 30, 20, 34  # of the picture, in its units
WIDE, LABEL = 54, "black"  # bars wider than that bear their length


class Bar(NamedTuple):
    """Something that lasted, in ms from the beginning of the step."""

    lane: str
    name: str
    start: float
    end: float
    color: str


# --- the run


def settings(preset: str, folder: Path) -> dict[str, Any]:
    """A run that only steps, with a profile of two of them."""
    overrides = {
        "training": {"num_iterations": STEPS, "batch_size": 1, "log_interval": 1, "save_interval": 1000},
        "data": {"dataset_path": str(Path(snac_accel.__file__).parent / "demo"), "num_workers": 1},
        "validation": {"enabled": False},
        "codebook": {"initialization": "random"},
        "tracking": {"trackers": [], "progress_bar": False, "profile": PROFILED},
        "paths": {"run_dir": str(folder / "run")},
    }
    return to_dict(load_config(preset, overrides=overrides, environment={}))


def train(preset: str, folder: Path) -> None:
    """Run on one rank, its data workers noting when they made which window."""
    from snac_accel import dataset
    from snac_accel.train import main as train_main

    make = dataset.Mixture.sample_at

    def noted(self: Any, position: int) -> Any:
        began = time.time_ns()
        sample = make(self, position)
        with open(os.environ[WORKER_FILE], "a") as file:
            file.write(f"{json.dumps([began, time.time_ns()])}\n")
        return sample

    dataset.Mixture.sample_at = noted  # type: ignore[method-assign]
    train_main(settings(preset, folder))


def run(preset: str, processes: int, folder: Path) -> tuple[Trace, list[Span]]:
    """Train with so many processes; return rank 0's trace, and the windows of its data worker."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(processes):
        layout = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        variables = {name: str(value) for name, value in layout.items()} if processes > 1 else {}
        variables |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            WORKER_FILE: str(folder / f"worker_{rank}"),
        }
        command = [sys.executable, __file__, "--preset", preset, "--train", str(folder)]
        ranks.append(subprocess.Popen(command, env={**os.environ, **variables}))
    try:
        codes = [process.wait(LONGEST_SECONDS) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    if any(codes):
        raise RuntimeError(f"the run failed: {codes}")
    trace = read_trace(folder / "run" / "profile" / TRACE_FILE)
    lines = (folder / "worker_0").read_text().splitlines()
    times = [[(time - trace.base) / 1e3 for time in json.loads(line)] for line in lines]
    return trace, [Span("window", start, end, ("worker", 0), "worker") for start, end in times]


# --- the picture


def bars(trace: Trace, windows: Sequence[Span]) -> list[Bar]:
    """All that is drawn of the trace's last step, clipped to it."""
    step = trace.steps[-1]
    copies = [kernel.span for kernel in trace.kernels if kernel.span.category == "gpu_memcpy"]
    found = []
    for span in sorted([*windows, *copies, *trace.ranges], key=lambda span: span.start):
        lane, color = lane_of(span.name)
        start, end = max(span.start, step.start), min(span.end, step.end)
        if lane is not None and end > start:
            found.append(Bar(lane, span.name, (start - step.start) / 1e3, (end - step.start) / 1e3, color))
    return found


def lane_of(name: str) -> tuple[str | None, str]:
    """The lane and the colour of a range; None: it is not drawn."""
    if name.startswith(DISCRIMINATOR):
        return name, DISCRIMINATOR_COLOR
    for lane, (names, color) in LANES.items():
        if name.startswith(names):
            return lane, color
    return None, ""


def lanes_of(drawn: Sequence[Bar]) -> list[str]:
    """The lanes from top to bottom: in the order of `LANES`, discriminators below the generator, empty ones left out."""
    used = dict.fromkeys(bar.lane for bar in drawn)
    discriminators = [lane for lane in used if lane.startswith(DISCRIMINATOR)]
    order = [
        entry for lane in LANES for entry in ([lane, *discriminators] if lane == "generator" else [lane])
    ]
    return [lane for lane in order if lane in used]


def svg(drawn: Sequence[Bar], milliseconds: float, title: str) -> str:
    """The picture: a lane for each part, time to the right."""
    lanes = lanes_of(drawn)
    height = TOP + ROW * len(lanes) + 40
    scale = (WIDTH - LEFT - 20) / milliseconds
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="18">{escape(title)}</text>',
        *axis(milliseconds, scale, TOP + ROW * len(lanes)),
    ]
    for number, lane in enumerate(lanes):
        middle = TOP + ROW * number + ROW / 2
        lines.append(f'<text x="{LEFT - 8}" y="{middle + 4:.0f}" text-anchor="end">{escape(lane)}</text>')
    for bar in drawn:
        y = TOP + ROW * lanes.index(bar.lane) + (ROW - BAR) / 2
        x, width = LEFT + bar.start * scale, max((bar.end - bar.start) * scale, 0.7)
        opacity = 0.55 if bar.name.endswith("forward") else 0.9
        tip = f"{bar.name}: {bar.end - bar.start:.1f} ms"
        lines.append(
            f'<rect x="{x:.1f}" y="{y:.0f}" width="{width:.1f}" height="{BAR}" fill="{bar.color}" '
            f'fill-opacity="{opacity}"><title>{escape(tip)}</title></rect>'
        )
        if width > WIDE:
            place = f'x="{x + width / 2:.1f}" y="{y + 14:.0f}" text-anchor="middle" fill="{LABEL}"'
            lines.append(f"<text {place}>{bar.end - bar.start:.0f} ms</text>")
    return "\n".join([*lines, "</svg>\n"])


def axis(milliseconds: float, scale: float, bottom: float) -> Iterator[str]:
    """Lines and numbers of the time."""
    distance = next(
        d for d in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10**9) if milliseconds / d <= 12
    )
    for mark in range(0, int(milliseconds) + 1, distance):
        x = LEFT + mark * scale
        yield f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#dddddd"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555555">{mark}</text>'
    yield f'<text x="{WIDTH - 20}" y="{bottom + 32}" text-anchor="end" fill="#555555">ms</text>'


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="24khz", help="a model or run (default: 24khz)")
    parser.add_argument("--processes", type=positive, default=2, help="of the run (default: 2)")
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="file to write (default: docs/speed/step.svg)"
    )
    parser.add_argument(
        "--train", type=Path, help=argparse.SUPPRESS
    )  # this process is a rank, and this its folder
    flags = parser.parse_args(arguments)
    if flags.train is not None:
        train(flags.preset, flags.train)
        return 0
    with tempfile.TemporaryDirectory(prefix="step_picture_") as folder:
        trace, windows = run(flags.preset, flags.processes, Path(folder))
    title = f"One step, {flags.preset}, {flags.processes} x 1 window; {machine().removeprefix('machine: ')}"
    flags.output.write_text(svg(bars(trace, windows), trace.steps[-1].length / 1e3, title), encoding="utf-8")
    print(f"drawn: {flags.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
