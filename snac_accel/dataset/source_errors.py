"""One clear line for everything that can go wrong when `datasets` opens a source."""

from __future__ import annotations

import re

import datasets

from ..errors import DataError
from .network import reason


def explain(
    error: Exception, dataset_path: str, configuration: str | None, split: str, is_local: bool
) -> DataError:
    """Return the DataError that says what is wrong with a source, from whatever `datasets` raised."""
    text = " ".join(str(error).split())
    names = ", ".join(re.findall(r"'([^']+)'", text[text.rfind("[") :])) if "[" in text else ""
    if re.search(r"(Unknown|Bad) split", text):
        return no_split(dataset_path, split, names)
    if "Config name is missing" in text:
        return DataError(
            f"{dataset_path!r} has several configurations: set data.configuration to one of {names}"
        )
    if "BuilderConfig" in text and "not found" in text:
        return DataError(f"{dataset_path!r} has no configuration {configuration!r}; there are: {names}")
    if "scripts are no longer supported" in text:
        return DataError(
            f"{dataset_path!r} is a dataset script, which is never run: give a copy made of data files "
            "(parquet or audio), or a local folder with --dataset_path"
        )
    if isinstance(error, (datasets.data_files.EmptyDatasetError, datasets.exceptions.DataFilesNotFoundError)):
        return DataError(f"{dataset_path!r} holds no data files that can be read")
    if is_local:
        return DataError(f"{dataset_path!r} cannot be read: {_shortened(error)}")
    return DataError(_hub_message(error, dataset_path, text))


def no_split(dataset_path: str, split: str, names: str) -> DataError:
    """Return the error for a split that does not exist; `names` lists those that do."""
    return DataError(f"{dataset_path!r} has no split {split!r}" + (f"; there are: {names}" if names else ""))


def _hub_message(error: Exception, dataset_path: str, text: str) -> str:
    """Return the line for a Hub repository that is gated, renamed, private or unreachable: the way out."""
    local = "or give a local folder with --dataset_path"
    if "gated" in text:
        return (
            f"{dataset_path!r} is gated: accept its terms at https://huggingface.co/datasets/{dataset_path}, "
            f"log in with `hf auth login`, {local}"
        )
    if "Revision" in text and "exist" in text:
        return f"{text.rstrip('.')}; check data.revision"
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return (
            f"{dataset_path!r} is neither a local folder nor a dataset on the Hub that you can see: "
            "check the name (it may have been renamed or withdrawn), log in with `hf auth login` if it is "
            f"private, {local}"
        )
    if isinstance(error, OSError):  # ConnectionError, TimeoutError and those of the HTTP client
        return (
            f"{dataset_path!r} cannot be reached on the Hub ({_shortened(error)}): check the network, {local}"
        )
    return f"{dataset_path!r} cannot be read from the Hub: {_shortened(error)}; {local}"


def _shortened(error: BaseException, limit: int = 200) -> str:
    """Return the innermost cause of an error as one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = reason(error)
    return text if len(text) <= limit else text[: limit - 1] + "…"
