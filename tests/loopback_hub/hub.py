"""A Hub on 127.0.0.1 for tests: the real client talks to it over HTTP, and it keeps real git repositories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, constants, get_session

from tests.loopback_hub.repositories import Repository
from tests.loopback_hub.routes import ROUTES, STORAGE_ROUTES
from tests.loopback_hub.routing import Router
from tests.loopback_hub.server import Server, Traffic
from tests.loopback_hub.site import Site
from tests.loopback_hub.wire import Request

__all__ = ["LoopbackHub"]


class LoopbackHub:
    """A Hub that lives as long as its `with` block.

    Inside the block the client of this process is pointed to it as well (`constants.ENDPOINT`, not offline, and Xet
    switched as the Hub has it), since the client reads its environment at import. A mistake in the server itself, which is
    answered with status 500, is raised when the block ends.

    Args:
        folder: where it keeps its files; made if it is not there.
        xet: whether large files go through Xet instead of LFS.
        tokens: token -> user name; None: one user "acme" with the token "hf_test".
    """

    def __init__(self, folder: Path, *, xet: bool = False, tokens: Mapping[str, str] | None = None) -> None:
        self._tokens = dict(tokens) if tokens is not None else {"hf_test": "acme"}
        self.site = Site(folder, self._tokens, xet=xet)
        self._folder = folder
        self._traffic = Traffic()
        self.faults = self._traffic.faults
        self._server = Server(self.site, Router(ROUTES), self._traffic)
        self._storage = Server(self.site, Router(STORAGE_ROUTES), self._traffic, storage=True)
        self.endpoint = self.site.endpoint = self._server.endpoint
        self.site.storage = self._storage.endpoint
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.callback(self.site.close)
        for server in (self._server, self._storage):
            server.start()
            self._stack.callback(server.stop)
        self._stack.enter_context(_pointed_client(self.endpoint, self._folder, xet=self.site.xet is not None))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._traffic.failures and error is None:
            raise ExceptionGroup("the loopback Hub itself failed", self._traffic.failures)

    @property
    def token(self) -> str:
        """The token of the first user."""
        return next(iter(self._tokens))

    @property
    def requests(self) -> list[Request]:
        """What was asked, in order of arrival; may be cleared. `/api/agent-harnesses` is left out."""
        return self._traffic.log

    @property
    def connections(self) -> int:
        """How many connections clients have opened."""
        return self._traffic.connections

    def environment(self, home: Path) -> dict[str, str]:
        """The variables that point a client in another process to this Hub; everything it keeps goes to `home`."""
        common = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": self.token, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        local = {"HF_HUB_CACHE": str(home / "hub"), "HF_XET_CACHE": str(home / "xet")}
        return common | quiet | local | ({} if self.site.xet else {"HF_HUB_DISABLE_XET": "1"})

    def api(self, token: str | Literal[False] | None = None) -> HfApi:
        """The real client, with the first user's token; False: with none."""
        return HfApi(endpoint=self.endpoint, token=self.token if token is None else token)

    def ask(
        self, path: str, *, method: str = "GET", token: str | Literal[False] | None = None, **settings: Any
    ) -> httpx2.Response:
        """A request that the client has no method for: `path` is a path of this Hub, or a URL.

        Redirects are followed; `settings` are those of `httpx2.Client.request`.
        """
        url = path if "://" in path else self.endpoint + path
        authorization = {} if token is False else {"Authorization": f"Bearer {token or self.token}"}
        headers = {**authorization, **settings.pop("headers", {})}
        return get_session().request(method, url, headers=headers, follow_redirects=True, **settings)

    def make_repo(self, repo: str, *, private: bool = False, gated: bool = False) -> None:
        """Make a repository, with the Hub's first commit."""
        self.site.create(repo, private=private, gated=gated)

    def grant(self, repo: str, user: str) -> None:
        """Let a user read a gated repository."""
        self._repository(repo).granted.add(user)

    def repo_path(self, repo: str) -> Path:
        """The bare git repository."""
        return self._repository(repo).path

    def commit(
        self, repo: str, files: Mapping[str, bytes], *, message: str = "Change beside the client", branch: str = "main"
    ) -> str:
        """Commit straight into the repository, as a writer beside the client; returns the commit id.

        A file whose name `.gitattributes` gives to LFS becomes a large file.
        """
        repository = self._repository(repo)
        with repository.change(branch, message=message, author="somebody-else") as change:
            for path, content in files.items():
                if change.is_large(path):
                    change.point(path, self.site.store_large(repository, content))
                else:
                    change.add(path, content)
        return change.commit

    def move_tag(self, repo: str, tag: str, commit: str) -> None:
        """Let a tag point to another commit, as someone else could."""
        self._repository(repo).set_ref("tags", tag, commit)

    def head(self, repo: str, branch: str = "main") -> str:
        """The commit of a branch."""
        return self._repository(repo).refs("heads")[branch]

    def tags(self, repo: str) -> dict[str, str]:
        """The tags: name -> commit."""
        return self._repository(repo).refs("tags")

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The content of all files at a revision, read without the client."""
        repository = self._repository(repo)
        held = repository.files(repository.resolve(revision)).values()
        return {file.path: self.site.read(repository, file) for file in held}

    def xet_bytes(self) -> int:
        """The bytes that lie in the store of Xet: what uploads have added, deduplicated and compressed."""
        if self.site.xet is None:
            raise ValueError("this Hub has no Xet")
        return self.site.xet.stored_bytes()

    def _repository(self, repo: str) -> Repository:
        return self.site.repositories[repo]


@contextmanager
def _pointed_client(endpoint: str, folder: Path, *, xet: bool) -> Iterator[None]:
    wanted: dict[str, Any] = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": not xet,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "AGENT_HARNESSES_PATH": str(folder / "agent-harnesses.json"),
    }
    before = {name: getattr(constants, name) for name in wanted}
    for name, value in wanted.items():
        setattr(constants, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(constants, name, value)
        # Connections that the client keeps open would be closed under it.
        huggingface_hub.close_session()
