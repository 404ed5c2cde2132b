"""One process server for all of the engine's tests."""

from collections.abc import Iterator

import pytest

from tests.engine.processes import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("processes") / "output.txt")
    yield server
    server.close()
