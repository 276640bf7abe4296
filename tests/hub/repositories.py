"""Repositories laid out as the sources of the data presets are on the Hub, filled with the shipped recordings.

What they are like was read from their cards and listings: columns, configurations, splits, the names of files, and the
encodings. They differ in size: some twenty clips, in small row groups, so that a test reads several of them.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import datasets
from recordings import SHARDS, Corpus, Recording, Row, audio, card, corpus, encoded, parquet, shards, text

READER, OWNER = "hf_loopbackReaderToken0123456789", "hf_loopbackOwnerToken0123456789"  # tokens of two users


def ljspeech() -> Corpus:
    """bad49wolf/ljspeech-simple: wav at 22.05 kHz. Its card could not be read: laid out as `push_to_hub` does."""
    features = datasets.Features({"audio": datasets.Audio(sampling_rate=22050), "text": text()})
    recordings = {
        f"default/train/LJ001-{i:04}.wav": Recording(f"LJ001-{i:04}.wav", encoded(i, "wav", 22050))
        for i in range(18)
    }
    rows = [{"audio": audio(one), "text": f"Sentence {i}."} for i, one in enumerate(recordings.values())]
    files = shards(rows, features, "data/train-{number:05}-of-{count:05}.parquet")
    readme = card({"default": {"train": "data/train-*"}}, features, files)
    return corpus("bad49wolf/ljspeech-simple", {"README.md": readme, **files}, recordings)


COMMON_VOICE = datasets.Features(
    {
        "client_id": text(), "path": text(), "audio": datasets.Audio(sampling_rate=48000), "sentence": text(),
        "up_votes": text("int64"), "down_votes": text("int64"), "age": text(), "gender": text(), "accent": text(),
        "locale": text(), "segment": text(), "variant": text(),
    }
)  # fmt: skip


def common_voice() -> Corpus:
    """fixie-ai/common_voice_17_0: a configuration for each language, mp3 at 48 kHz, one folder a language."""
    splits = {"train": 12, "validation": 4, "test": 2}
    files: dict[str, bytes] = {}
    recordings: dict[str, Recording] = {}
    for language, first in (("en", 0), ("de", 40)):
        number = first
        for split, count in splits.items():
            rows = []
            for _ in range(count):
                one = Recording(
                    f"common_voice_{language}_{17290000 + number}.mp3", encoded(number, "mp3", 48000)
                )
                recordings[f"{language}/{split}/{one.name}"] = one
                rows.append(_common_voice_row(one, number, language))
                number += 1
            shard = f"{language}/{split}-{{number:05}}-of-{{count:05}}.parquet"
            files |= shards(rows, COMMON_VOICE, shard, SHARDS if split == "train" else 1)
    where = {language: {split: f"{language}/{split}-*" for split in splits} for language in ("de", "en")}
    return corpus(
        "fixie-ai/common_voice_17_0", {"README.md": card(where, COMMON_VOICE, files), **files}, recordings
    )


def _common_voice_row(one: Recording, number: int, language: str) -> Row:
    return {
        "client_id": f"{number % 4:0128x}", "path": one.name, "audio": audio(one), "sentence": f"Sentence {number}.",
        "up_votes": 2, "down_votes": 0, "age": "", "gender": "", "accent": "", "locale": language, "segment": "",
        "variant": "",
    }  # fmt: skip


LIBRISPEECH = datasets.Features(
    {
        "file": text(), "audio": datasets.Audio(sampling_rate=16000), "text": text(), "speaker_id": text("int64"),
        "chapter_id": text("int64"), "id": text(),
    }
)  # fmt: skip


def librispeech() -> Corpus:
    """openslr/librispeech_asr: flac at 16 kHz; configurations clean, other and all, a folder for each split."""
    files: dict[str, bytes] = {}
    recordings: dict[str, Recording] = {}
    first = 0
    for split, count in {"train.100": 18, "validation": 4, "test": 2}.items():
        rows = []
        for number in range(first, first + count):
            speaker, chapter = 100 + number % 5, 1000 + number % 5
            name = f"{speaker}-{chapter}-{number:04}"
            one = Recording(f"{name}.flac", encoded(number, "flac", 16000))
            recordings[f"clean/{split}/{one.name}"] = one
            rows.append({"file": one.name, "audio": audio(one), "text": f"SENTENCE {number}", "speaker_id": speaker,
                         "chapter_id": chapter, "id": name})  # fmt: skip
        first += count
        files |= shards(rows, LIBRISPEECH, f"clean/{split}/{{number:04}}.parquet", SHARDS if count > 6 else 1)
        everything = split.replace("train.100", "train.clean.100").replace("validation", "validation.clean")
        files[f"all/{everything.replace('test', 'test.clean')}/0000.parquet"] = parquet(rows, LIBRISPEECH)
    where = {
        "all": {
            split: f"all/{split}/*.parquet" for split in ("train.clean.100", "validation.clean", "test.clean")
        },
        "clean": {split: f"clean/{split}/*.parquet" for split in ("train.100", "validation", "test")},
    }
    return corpus(
        "openslr/librispeech_asr", {"README.md": card(where, LIBRISPEECH, files), **files}, recordings
    )


VCTK = datasets.Features(
    {
        "speaker_id": text(), "audio": datasets.Audio(sampling_rate=48000),
        **{name: text() for name in ("file", "text", "text_id", "age", "gender", "accent", "region", "comment")},
    }
)  # fmt: skip


def vctk() -> Corpus:
    """sanchit-gandhi/vctk: flac at 48 kHz, every sentence twice, as two microphones took it."""
    recordings: dict[str, Recording] = {}
    rows = []
    for number in range(12):
        speaker, sentence = f"p{225 + number // 4}", f"{number % 4 + 1:03}"
        for microphone in ("mic1", "mic2"):
            name = f"{speaker}_{sentence}_{microphone}.flac"
            one = Recording(name, encoded(number + (microphone == "mic2") * 12, "flac", 48000))
            recordings[f"default/train/{name}"] = one
            rows.append({
                "speaker_id": speaker, "audio": audio(one), "text": f"Sentence {sentence}.", "text_id": sentence,
                "file": f"/cache/downloads/extracted/0123/wav48_silence_trimmed/{speaker}/{name}",
                "age": "23", "gender": "F", "accent": "English", "region": "Southern England", "comment": "",
            })  # fmt: skip
    files = shards(rows, VCTK, "data/train-{number:05}-of-{count:05}.parquet")
    readme = card({"default": {"train": "data/train-*"}}, VCTK, files)
    return corpus("sanchit-gandhi/vctk", {"README.md": readme, **files}, recordings)


def sound_files() -> Corpus:
    """loopback/sound-files: audio in a folder for each split, and nothing that describes it."""
    files = {f"{split}/one/clip-{i:02}.flac": encoded(i, "flac", 16000)
             for split, numbers in {"train": range(6), "validation": range(6, 8)}.items() for i in numbers}  # fmt: skip
    recordings = {f"default/{path}": Recording(path, content) for path, content in files.items()}
    return corpus("loopback/sound-files", files, recordings)


def tars() -> Corpus:
    """loopback/tars: WebDataset shards, a flac and a json for each sample."""
    recordings = {
        f"default/train/sample-{i:04}": Recording(f"sample-{i:04}", encoded(i, "flac", 16000))
        for i in range(8)
    }
    files = {}
    for shard in range(2):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for one in list(recordings.values())[shard::2]:
                facts = json.dumps({"speaker": "a", "text": "Sentence."}).encode()
                for name, content in ((f"{one.name}.flac", one.content), (f"{one.name}.json", facts)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        files[f"data/train-{shard:05}.tar"] = file.getvalue()
    return corpus("loopback/tars", files, recordings)


def manifest() -> Corpus:
    """loopback/manifest: JSON lines that name audio files beside them."""
    recordings = {f"default/train/clips/clip-{i:02}.flac": Recording(f"clips/clip-{i:02}.flac", encoded(i, "flac", 16000))
                  for i in range(6)}  # fmt: skip
    lines = [
        json.dumps({"audio": one.name, "speaker": f"speaker-{i % 2}"})
        for i, one in enumerate(recordings.values())
    ]
    files = {one.name: one.content for one in recordings.values()}
    return corpus(
        "loopback/manifest", {**files, "train.jsonl": ("\n".join(lines) + "\n").encode()}, recordings
    )


def restricted(repo_id: str, **access: Any) -> Corpus:
    """LibriSpeech under another name that not everybody may read."""
    original = librispeech()
    repository = original.repository
    files = {path: entry.content for path, entry in repository.commits[repository.branches["main"]].items()}
    return corpus(repo_id, files, original.recordings, **access)


def every_corpus() -> Iterator[Corpus]:
    """All of them; the private one is its owner's, `reader` may read the gated one."""
    yield from (ljspeech(), common_voice(), librispeech(), vctk(), sound_files(), tars(), manifest())
    yield restricted("loopback/private", private=True)
    yield restricted("loopback/gated", gated="manual", readers=frozenset({"reader"}))
