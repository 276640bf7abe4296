"""A page as a folder.

index.html          opens from the disk: no module, no request, no inline script
page.css, *.js      the page itself, the same for every page
data.js             what is on it, as one call of a function
clips/0000.js       a clip each: its sounds as FLAC, its tokens; loaded when it is chosen

A page opened from the disk may load scripts but not files, so sounds are text in scripts. All text is JSON of ASCII characters,
and the page puts it into the document as text, never as markup: names of clips come from strangers.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import soundfile
from torch import Tensor

from ..errors import DataError
from ..files import new_folder, write_bytes
from ..plain_json import parse_json, read_bounded
from .contents import Page, PageClip, Sound

INDEX_FILE, DATA_FILE, CLIPS = "index.html", "data.js", "clips"
STATIC = (INDEX_FILE, "page.css", "elements.js", "player.js", "pictures.js", "tables.js", "curves.js", "blind.js", "page.js")
MAX_CLIP_BYTES = 2**28


def write_page(folder: Path, page: Page) -> Path:
    """Write the page over whatever stood in `folder`, whole or not at all; returns the file to open."""
    with new_folder(folder) as draft:
        add_page(draft, page)
    return folder / INDEX_FILE


def add_page(folder: Path, page: Page) -> None:
    """Write the files of a page into a folder that is there."""
    static = files(__package__) / "static"
    for name in STATIC:
        write_bytes(folder / name, (static / name).read_bytes())
    write_bytes(folder / DATA_FILE, _call("begin", _contents(page)))
    (folder / CLIPS).mkdir()
    for number, clip in enumerate(page.clips):
        write_bytes(folder / CLIPS / f"{number:04d}.js", _call("clip", {"number": number, **_clip_contents(clip)}))


def encode_flac(audio: Tensor, sampling_rate: int) -> bytes:
    """Audio (T,) as FLAC of 16 bits, at its own level; what lies beyond full scale is cut."""
    content = io.BytesIO()
    soundfile.write(content, audio.clamp(-1, 1).numpy(), sampling_rate, subtype="PCM_16", format="FLAC")
    return content.getvalue()


def read_page_clip(folder: Path, number: int) -> PageClip:
    """A clip of a page that was written before; DataError, one line, if it cannot be read."""
    file = folder / CLIPS / f"{number:04d}.js"
    try:
        text = read_bounded(file, MAX_CLIP_BYTES).decode("ascii")
        value = parse_json(text[text.index("(") + 1 : text.rindex(")")])
        sounds = [Sound(**{**sound, "content": base64.b64decode(sound["content"])}) for sound in value["sounds"]]
        codes = {int(model): levels for model, levels in value["codes"].items()}
        parts = {name: value[name] for name in ("name", "source", "speaker", "seconds", "values", "note")}
        return PageClip(sounds=sounds, codes=codes, **parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is no clip of a listening page: {type(error).__name__} {error}") from error


def _contents(page: Page) -> dict[str, Any]:
    """What is loaded at once: everything but sounds and tokens."""
    shown = {
        name: getattr(page, name) for name in ("title", "subtitle", "facts", "metrics", "notes")
    }
    clips = [
        {name: getattr(clip, name) for name in ("name", "source", "speaker", "seconds", "values", "note")}
        | {"sounds": [_without_content(sound) for sound in clip.sounds]}
        for clip in page.clips
    ]
    lists = {name: [asdict(one) for one in getattr(page, name)] for name in ("models", "tables", "curves")}
    return {**shown, **lists, "clips": clips}


def _clip_contents(clip: PageClip) -> dict[str, Any]:
    sounds = [
        {**_without_content(sound), "content": base64.b64encode(sound.content).decode()} for sound in clip.sounds
    ]
    parts = {name: getattr(clip, name) for name in ("name", "source", "speaker", "seconds", "values", "note")}
    return {**parts, "sounds": sounds, "codes": {str(model): levels for model, levels in clip.codes.items()}}


def _without_content(sound: Sound) -> dict[str, Any]:
    return {name: value for name, value in vars(sound).items() if name != "content"}


def _call(function: str, value: Mapping[str, Any]) -> bytes:
    """A script that hands `value` to the page."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return f"listening.{function}({text});\n".encode("ascii")
