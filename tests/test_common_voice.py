"""Common Voice as it is handed out: tables without quoting, clips in one folder, one folder for each language."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import soundfile

from snac_accel.audio import AudioReader
from snac_accel.dataset.common_voice import is_common_voice, open_common_voice
from snac_accel.errors import DataError

COLUMNS = "client_id path sentence_id sentence up_votes down_votes age gender accents variant locale segment".split()
SENTENCES = ['She said "stop', "'tis", "«Ja», sagte er.", 'a "quoted" word', "comma, semicolon; bar|", 'end"']


def write_language(folder: Path, clips: list[Path], locale: str) -> None:
    """Lay six clips of real speech out as a release does, as mp3 at 48 kHz."""
    (folder / "clips").mkdir(parents=True)
    rows = []
    for number, clip in enumerate(clips):
        samples, rate = soundfile.read(clip, dtype="float32")
        name = f"common_voice_{locale}_{number}.mp3"
        soundfile.write(folder / "clips" / name, samples.repeat(48_000 // rate), 48_000, format="MP3")
        rows.append(
            [
                f"speaker-{number % 2}",
                name,
                f"{number:064x}",
                SENTENCES[number],
                "2",
                "0",
                "",
                "",
                "",
                "",
                locale,
                "",
            ]
        )
    for table, members in {
        "train": rows[:4],
        "dev": rows[4:5],
        "test": rows[5:],
        "validated": rows,
        "other": [],
    }.items():
        write_table(folder / f"{table}.tsv", members)
    (folder / "clip_durations.tsv").write_text(
        "clip\tduration[ms]\n" + "".join(f"{row[1]}\t2000\n" for row in rows)
    )
    (folder / "reported.tsv").write_text(
        f"sentence_id\tsentence\tlocale\treason\n0\tx\t{locale}\toffensive\n"
    )


def write_table(path: Path, rows: list[list[str]]) -> None:
    path.write_text("".join("\t".join(row) + "\n" for row in [COLUMNS, *rows]), encoding="utf-8")


@pytest.fixture(scope="module")
def release(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with two languages."""
    root = tmp_path_factory.mktemp("common_voice") / "cv-corpus-17.0-2024-03-15"
    clips = sorted((demo_folder / "validation").glob("*.flac"))[:6]
    write_language(root / "en", clips, "en")
    shutil.copytree(root / "en", root / "de")
    return root


@pytest.mark.parametrize("at", ["language", "release"])
def test_all_clips_can_be_decoded_and_nothing_is_lost(at: str, release: Path) -> None:
    root, configuration = (release / "en", None) if at == "language" else (release, "en")
    assert is_common_voice(root)
    rows = open_common_voice(root, "train", configuration)
    assert rows.column_names == ["audio", *COLUMNS]
    assert rows["sentence"][:] == SENTENCES[:4]
    assert rows["client_id"][:] == ["speaker-0", "speaker-1"] * 2
    prefix = "" if at == "language" else "en/"
    assert rows["audio"][:] == [f"{prefix}clips/common_voice_en_{number}.mp3" for number in range(4)]
    for path in rows["audio"]:
        with AudioReader(root / path, 24_000) as reader:
            assert reader.info.sampling_rate == 48_000
            assert reader.read(2400, 19_200).abs().max() > 0.005


@pytest.mark.parametrize(
    ("split", "count"), [("dev", 1), ("validation", 1), ("valid", 1), ("test", 1), ("validated", 6)]
)
def test_splits(split: str, count: int, release: Path) -> None:
    assert len(open_common_voice(release, split, "en")) == count


def test_the_only_language_needs_no_name(release: Path, tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "en").symlink_to(release / "en")
    assert len(open_common_voice(tmp_path / "release", "train")) == 4
    renamed = tmp_path / "my voices"
    renamed.symlink_to(release / "en")
    assert len(open_common_voice(renamed, "train", "en")) == 4


@pytest.mark.parametrize(
    ("folder", "split", "configuration", "message"),
    [
        ("en", "nope", None, "has no split 'nope'; there are: dev, other, test, train, validated$"),
        (".", "train", None, "has several languages: set data.configuration to one of de, en"),
        (".", "train", "fr", "has no language 'fr'; there are: de, en"),
        ("en", "train", "fr", "has no language 'fr'; it holds: en"),
    ],
)
def test_mistakes_get_one_line(
    folder: str, split: str, configuration: str | None, message: str, release: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_common_voice(release / folder, split, configuration)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ["a", "../../etc/passwd"] + [""] * 10,
            r"line 3 names '../../etc/passwd', which is no file of clips/",
        ),
        (["a", "/etc/passwd"] + [""] * 10, "line 3 names '/etc/passwd'"),
        (["a", ""] + [""] * 10, "line 3 names ''"),
        (["a", "b.mp3", "c"], "line 3 has 3 fields instead of 12"),
    ],
)
def test_damaged_tables_name_the_line(row: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    write_table(tmp_path / "train.tsv", [["a", "b"] + [""] * 10, row])
    with pytest.raises(DataError, match=message):
        open_common_voice(tmp_path, "train")


def test_names_without_a_suffix_are_mp3(tmp_path: Path) -> None:
    """So they stand in the tables of 2019."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "train.tsv").write_text("client_id\tpath\tsentence\r\nanna\tabc\thello\r\n", newline="")
    rows = open_common_voice(tmp_path, "train")
    assert rows[0] == {"audio": "clips/abc.mp3", "client_id": "anna", "path": "abc", "sentence": "hello"}


def test_other_folders_are_none(demo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("client_id\tpath\na\tb\n")
    assert not is_common_voice(demo_folder)
    assert not is_common_voice(tmp_path)  # a table, but no clips
    assert not is_common_voice(tmp_path / "nowhere")
