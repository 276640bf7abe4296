"""One job, brought to the Hub: what is there already is looked at first, so that a try too many changes nothing."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_delay

from .. import __version__
from ..errors import PublishError
from ..files import sha256
from .jobs import FILES, Job, Queue
from .trouble import in_one_line, is_passing, is_refusal, pause

PATIENCE_SECONDS = 900.0


def push_to_hub(
    folder: str | Path, repository: str, *, branch: str = "main", private: bool | None = None, message: str = "Model"
) -> str:
    """Push a snac folder and wait until it has arrived; returns the address of the commit.

    `private` is for a repository that has to be made; None: as its owner's settings have it. Raises PublishError, one line.
    """
    return push_job(Path(folder), Job(repository, 0, message, branch, private))


def push_job(
    folder: Path,
    job: Job,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Push the files of a folder and wait until they have arrived; returns the address of the commit.

    Tried again while the network or the Hub fails. Raises PublishError, one line, if the Hub refuses or the patience ends.
    """
    with tempfile.TemporaryDirectory(prefix="snac_accel_push_") as temporary:
        queue = Queue(Path(temporary))
        path = queue.put_copy(job, folder)
        retrying = Retrying(
            wait=pause,
            retry=retry_if_exception(is_passing),
            stop=stop_after_delay(patience_seconds),
            before_sleep=lambda state: say(_again(state)),
            reraise=True,
        )
        try:
            return retrying(push_files, path / FILES, job)
        except Exception as error:  # the client's network library, and so its exceptions, change between versions
            raise PublishError(problem(error, job)) from error


def _again(state: Any) -> str:
    return f"the Hub: {in_one_line(state.outcome.exception())}; again in {state.upcoming_sleep:.0f} s"


def problem(error: BaseException, job: Job) -> str:
    """One line about a push that failed for good."""
    advice = "; log in with `hf auth login`, or give HF_TOKEN, with the right to write there" if is_refusal(error) else ""
    return f"{job.repository} cannot be pushed to: {in_one_line(error)}{advice}"


def push_files(files: Path, job: Job) -> str:
    """Make the place of a job hold exactly these files beside others that are there, in at most one commit; one try.

    The commit names the one it follows. So one whose answer was lost is found by the next try, and none is made twice.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="snac_accel", library_version=__version__)
    repository = api.create_repo(job.repository, private=job.private, exist_ok=True).repo_id
    if job.branch != "main":
        api.create_branch(repository, branch=job.branch, exist_ok=True)
    head = str(api.repo_info(repository, revision=job.branch).sha)
    there = remote_files(api, repository, head)
    local = {file.relative_to(files).as_posix(): file for file in sorted(files.rglob("*")) if file.is_file()}
    operations: list[Any] = [
        CommitOperationAdd(path, file) for path, file in local.items() if not _is_same(file, there.get(path))
    ]
    if job.replaced is not None and any(path.startswith(f"{job.replaced}/") for path in local):
        stale = [path for path in there if path.startswith(f"{job.replaced}/") and path not in local]
        operations += [CommitOperationDelete(path) for path in stale]
    if operations:
        made = api.create_commit(
            repository, operations, commit_message=job.message, revision=job.branch, parent_commit=head
        )
        head = str(made.oid)
    if job.tag is not None:
        api.create_tag(repository, tag=job.tag, revision=head, exist_ok=True)
    if job.new_branch is not None:
        api.create_branch(repository, branch=job.new_branch, revision=head, exist_ok=True)
    return f"{api.endpoint}/{repository}/commit/{head}"


def remote_files(api: Any, repository: str, commit: str) -> dict[str, tuple[str, str]]:
    """Path -> how its content is named there: ("sha256", …) of large files, ("git", …) of others."""
    listed = api.list_repo_tree(repository, recursive=True, revision=commit)
    files = [entry for entry in listed if hasattr(entry, "blob_id")]
    return {file.path: ("sha256", file.lfs.sha256) if file.lfs else ("git", file.blob_id) for file in files}


def _is_same(file: Path, there: tuple[str, str] | None) -> bool:
    if there is None:
        return False
    kind, name = there
    return name == (sha256(file) if kind == "sha256" else _git_name(file.read_bytes()))


def _git_name(content: bytes) -> str:
    """The name that git has for a file of this content."""
    return hashlib.sha1(b"blob %d\x00" % len(content) + content, usedforsecurity=False).hexdigest()
