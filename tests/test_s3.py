"""Data in an S3 bucket, through the real s3fs client and a server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer

from snac_accel.dataset import AudioDataset, make_loader
from snac_accel.errors import DataError

from shards import write_parquet

BUCKET = "speech-for-tests"


@pytest.fixture(scope="module")
def clips(demo_folder: Path) -> list[Path]:
    """Real speech, 24 clips."""
    return sorted((demo_folder / "validation").glob("*.flac"))


@pytest.fixture(scope="module")
def bucket(clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket with the clips as files, as parquet and as a manifest; the client finds it as it finds Amazon's."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "secret-canary",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        parquet = write_parquet(tmp_path_factory.mktemp("parquet"), clips)
        for file in parquet.rglob("*.parquet"):
            client.upload_file(str(file), BUCKET, f"parquet/data/{file.name}")
        for clip in clips:
            client.upload_file(str(clip), BUCKET, f"files/train/{clip.name}")
        lines = "".join(f'{{"audio_filepath": "train/{clip.name}"}}\n' for clip in clips)
        client.put_object(Bucket=BUCKET, Key="files/all.jsonl", Body=lines.encode())
        yield f"s3://{BUCKET}"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.parametrize("path", ["parquet", "files", "files/all.jsonl"])
@pytest.mark.parametrize("workers", [0, 2])
def test_windows_are_those_of_the_files_on_the_disk(
    path: str, workers: int, bucket: str, clips: list[Path], tmp_path: Path
) -> None:
    options = {"seed": 3, "cache_dir": tmp_path / "cache", "shuffle_buffer": 100}
    remote = AudioDataset(f"{bucket}/{path}", 24_000, 0.2, **options)
    assert len(remote) == 24
    local = {clip.name: AudioDataset(clip.parent, 24_000, 0.2, seed=3) for clip in clips[:1]}[clips[0].name]
    names = [Path(name).name for name in local.clip_names()]
    loader = make_loader(remote, 6, num_steps=2, num_workers=workers, pin_memory=False)
    position = 0
    for batch in loader:
        for name, audio in zip(batch.names, batch.audio, strict=True):
            key = remote.order.key_at(position)._replace(clip=names.index(Path(name).name))
            assert torch.equal(local[key].audio, audio)
            position += 1
    assert position == 12


def test_what_is_not_there_is_one_line_without_secrets(bucket: str) -> None:
    for path in (f"{bucket}/nothing", "s3://no-such-bucket-of-ours/x"):
        with pytest.raises(DataError) as caught:
            AudioDataset(path)
        assert path in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "canary" not in str(caught.value)
