"""The listening page as files: curves of a log, clips that are written and read again. The page itself: tests/browser."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import make_generator

from snac_accel.dataset import Clip
from snac_accel.errors import DataError
from snac_accel.evaluation.run_page import run_page
from snac_accel.listening import Page, PageClip, Sound, read_page_clip, write_page
from snac_accel.listening.curves import MAX_POINTS, curves_of, read_log, thin
from snac_accel.listening.writing import STATIC, encode_flac

TEXT = "</script><script>alert(1)</script>\u2028 ü 😀"


def page_with(clip: PageClip) -> Page:
    return Page(TEXT, "", [(TEXT, TEXT)], [], [], [], [clip])


def clip_named(name: str, sounds: list[Sound] | None = None) -> PageClip:
    return PageClip(name, "s", "p", 1.5, sounds or [], {0: [[1, 2], [3]]}, {"0/2": {"mel_distance": 1.0, "pesq": None}}, TEXT)


def test_a_clip_comes_back_as_it_was(tmp_path: Path) -> None:
    sound = Sound("original", TEXT, None, None, True, bytes(range(256)), 16000)
    clip = clip_named(TEXT, [sound])
    write_page(tmp_path / "page", page_with(clip))
    assert read_page_clip(tmp_path / "page", 0) == clip


def test_text_of_strangers_is_ascii_json_in_a_call(tmp_path: Path) -> None:
    write_page(tmp_path / "page", page_with(clip_named(TEXT)))
    for file in ("data.js", "clips/0000.js"):
        text = (tmp_path / "page" / file).read_bytes().decode("ascii")
        call = re.fullmatch(r"listening\.(?:begin|clip)\((.*)\);\n", text)
        assert call and TEXT in json.dumps(json.loads(call[1]), ensure_ascii=False)


def test_the_page_replaces_the_one_before(tmp_path: Path) -> None:
    for count in (3, 1):
        write_page(tmp_path / "page", Page("", "", [], [], [], [], [clip_named("a")] * count))
    assert [file.name for file in (tmp_path / "page" / "clips").iterdir()] == ["0000.js"]
    assert {file.name for file in (tmp_path / "page").iterdir()} == {*STATIC, "data.js", "clips"}


@pytest.mark.parametrize("content", ["", "listening.clip(", "listening.clip([])", 'listening.clip({"sounds": 3})', "x" * 100])
def test_what_is_no_clip_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "0000.js").write_text(content)
    with pytest.raises(DataError, match="no clip of a listening page"):
        read_page_clip(tmp_path, 0)


def test_sound_keeps_level_and_length_and_is_cut_at_full_scale() -> None:
    audio = torch.tensor([0.0, 0.25, -0.5, 3.0, -3.0])
    samples, rate = soundfile.read(io.BytesIO(encode_flac(audio, 22050)))
    assert rate == 22050 and np.allclose(samples, [0, 0.25, -0.5, 1, -1], atol=1e-4)
    assert base64.b64decode(base64.b64encode(encode_flac(audio, 8000)))[:4] == b"fLaC"


def test_steps_that_were_gone_back_over_are_not_drawn() -> None:
    steps = [(0, 9.0), (100, 5.0), (200, 4.0), (100, 6.0), (150, 5.5)]
    rows = [{"step": step, "validation/mel_distance": value} for step, value in steps]
    (curves,) = curves_of(rows)
    assert curves.series == {"mel_distance": [(0, 9.0), (100, 6.0), (150, 5.5)]} and curves.is_logarithmic


def test_only_what_was_logged_and_finite_is_drawn() -> None:
    logged = {"train/mel": "nan", "codebook/level_0/perplexity": 5}
    rows = [{"step": step, "train/stft": 1.0 / (step + 1), **logged} for step in range(3)]
    titles = {curves.title: set(curves.series) for curves in curves_of(rows)}
    assert titles == {"Spectral losses in training": {"stft"}, "Perplexity of the codebooks in training": {"level_0"}}
    assert curves_of([]) == [] and curves_of([{"step": 1, "train/mel": 2.0}]) == []


def test_long_curves_are_thinned_by_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(10 * MAX_POINTS)]
    thinned = thin(points)
    assert len(thinned) == MAX_POINTS and {value for _, value in thinned} == {0.5} and thinned[-1][0] == points[-1][0]


def test_the_page_of_a_run_holds_its_clips_and_curves(tmp_path: Path, demo_folder: Path) -> None:
    """The log of a run and a tiny model: table of validations, curves, a clip with tokens of every level."""
    audio = torch.from_numpy(soundfile.read(sorted((demo_folder / "validation").glob("*.flac"))[0], dtype="float32")[0])
    (tmp_path / "logs").mkdir()
    rows = [
        {"step": step, "validation/mel_distance": value, "validation/level_0/perplexity": 20.0 + step, "train/mel": value}
        for step, value in ((0, 9.0), (10, 3.0), (20, 4.0))
    ]
    lines = [*map(json.dumps, rows), '{"step": 20, "cut sh']
    (tmp_path / "logs" / "metrics.jsonl").write_text("\n".join(lines))
    log = read_log(tmp_path / "logs")
    page = run_page("my run", make_generator(), [Clip("a.wav", audio[None, 8000:16000])], log, step=20, seed=0)
    assert [[cell[0] for cell in row[:3]] for row in page.tables[0].rows] == [
        ["first", "0", "9"], ["best by the first metric", "10", "3"], ["last", "20", "4"],
    ]  # fmt: skip
    assert {curves.title for curves in page.curves} >= {"Held-out distances", "Held-out perplexity of the codebooks"}
    (clip,) = page.clips
    assert [sound.key for sound in clip.sounds] == ["original", "0/3", "0/2", "0/1"] and len(clip.codes[0]) == 3
    assert clip.values["0/3"]["mel_distance"] is not None
    write_page(tmp_path / "page", page)
    assert read_page_clip(tmp_path / "page", 0) == clip
