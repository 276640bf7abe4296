"""A Hub on loopback with the corpora of the presets, and a process that reads from it; both started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import pytest
from client import Client, set_token
from repositories import OWNER, READER, Corpus, every_corpus
from server import LoopbackHub


@pytest.fixture(scope="session")
def corpora() -> dict[str, Corpus]:
    """Every repository by its name."""
    return {corpus.repository.repo_id: corpus for corpus in every_corpus()}


@pytest.fixture(scope="session")
def running_hub(corpora: dict[str, Corpus]) -> Iterator[LoopbackHub]:
    """The Hub of the whole session."""
    with LoopbackHub({READER: "reader", OWNER: "loopback"}) as hub:
        for corpus in corpora.values():
            hub.add(corpus.repository)
        yield hub


@pytest.fixture
def hub(running_hub: LoopbackHub) -> LoopbackHub:
    """The Hub, with an empty book."""
    running_hub.book.clear()
    return running_hub


@pytest.fixture(scope="session")
def clients(
    running_hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Client]]:
    """The process of the whole session, or another if it was lost."""
    folder = tmp_path_factory.mktemp("client")
    started: list[Client] = []

    def current() -> Client:
        if not started or not started[-1].is_alive:
            started.append(Client(running_hub.environment(folder / "home"), folder / "log.txt"))
        return started[-1]

    yield current
    for client in started:
        client.close()


@pytest.fixture
def client(clients: Callable[[], Client]) -> Client:
    """The process, logged out."""
    current = clients()
    current.call(set_token, None)
    return current
