"""Bare git repositories: real objects, refs, tags, trees and LFS pointers, written with dulwich.

Large files lie where git-lfs keeps them, `lfs/objects/AB/CD/SHA256` inside the repository.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dulwich.index import commit_tree
from dulwich.objects import Blob, Commit, ObjectID, Tag
from dulwich.refs import Ref
from dulwich.repo import Repo

from tests.loopback_hub.changes import Change, File
from tests.loopback_hub.large_files import LargeFiles, Pointer

__all__ = ["NoSuchRevisionError", "Repository", "StaleParentError"]

FILE = 0o100644
FOLDER = 0o040000
COMMIT_ID = re.compile(r"[0-9a-f]{40}")
SHORT_ID = re.compile(r"[0-9a-f]{5,39}")


class NoSuchRevisionError(Exception):
    """There is no branch, tag or commit of this name."""


class StaleParentError(Exception):
    """The branch is not at the commit that the writer expects."""


class Repository:
    """One repository of the Hub.

    Args:
        name: `OWNER/NAME`.
        path: the folder of the bare git repository, which is made.
        private: only the owner sees it.
        gated: only the owner, and users in `granted`, read its files.
    """

    def __init__(self, name: str, path: Path, *, private: bool = False, gated: bool = False) -> None:
        self.name, self.path = name, path
        self.private, self.gated = private, gated
        self.granted: set[str] = set()
        self.downloads = 0
        self.created = time.time()
        self.lock = threading.RLock()
        path.mkdir(parents=True)
        self._git = Repo.init_bare(path, default_branch=b"main")
        self.large = LargeFiles(path / "lfs" / "objects")
        self._files: dict[str, tuple[int, Pointer | None]] = {}

    @property
    def owner(self) -> str:
        """The namespace."""
        return self.name.partition("/")[0]

    def refs(self, kind: str) -> dict[str, str]:
        """The `heads` or `tags`: name -> commit."""
        prefix = Ref(f"refs/{kind}/".encode())
        names = sorted(ref for ref in self._git.refs.allkeys() if ref.startswith(prefix))
        return {name[len(prefix) :].decode(): self._peeled(self._git.refs[name]) for name in names}

    def is_branch(self, name: str) -> bool:
        """Whether `name` is that of a branch."""
        return name in self.refs("heads")

    def resolve(self, revision: str) -> str:
        """The commit of a branch, a tag, a full ref, or a commit id of at least five digits."""
        name = "main" if revision == "HEAD" else revision
        for ref in (f"refs/heads/{name}", f"refs/tags/{name}", name if name.startswith("refs/") else None):
            if ref is not None and Ref(ref.encode()) in self._git.refs:
                return self._peeled(self._git.refs[Ref(ref.encode())])
        if COMMIT_ID.fullmatch(name) and self._is_commit(name):
            return name
        if SHORT_ID.fullmatch(name):
            full = [oid.decode() for oid in self._git.object_store.iter_prefix(name.encode())]
            if len(commits := [oid for oid in full if self._is_commit(oid)]) == 1:
                return commits[0]
        raise NoSuchRevisionError(revision)

    def parents(self, commit: str) -> list[str]:
        """The parents of a commit."""
        return [oid.decode() for oid in self.commit_object(commit).parents]

    def commit_object(self, commit: str) -> Commit:
        """The git object of a commit."""
        found = self._git.object_store[ObjectID(commit.encode())]
        assert isinstance(found, Commit)
        return found

    def history(self, commit: str) -> Iterator[Commit]:
        """A commit and its first parents, newest first."""
        while True:
            found = self.commit_object(commit)
            yield found
            if not found.parents:
                return
            commit = found.parents[0].decode()

    def files(self, commit: str) -> dict[str, File]:
        """The files of a commit by path, in git's order."""
        entries = self._git.object_store.iter_tree_contents(self.commit_object(commit).tree)
        return {entry.path.decode(): self._file(entry.path.decode(), entry.sha.decode()) for entry in entries}

    def folders(self, commit: str) -> dict[str, str]:
        """The folders of a commit: path -> tree object."""
        entries = self._git.object_store.iter_tree_contents(self.commit_object(commit).tree, include_trees=True)
        found = [(entry.path.decode(), entry.sha.decode()) for entry in entries if entry.mode == FOLDER]
        return {path: oid for path, oid in found if path}

    def content(self, file: File) -> bytes:
        """The bytes of a git object (of a large file: its pointer)."""
        return self._git.object_store[ObjectID(file.oid.encode())].as_raw_string()

    @contextmanager
    def change(self, branch: str, *, message: str, author: str, parent: str | None = None) -> Iterator[Change]:
        """Change the tree of a branch and commit it at the end; `parent` must then be its head.

        The new commit is `Change.commit` afterwards. Writers wait for each other.
        """
        with self.lock:
            heads = self.refs("heads")
            if heads and branch not in heads:
                raise NoSuchRevisionError(branch)
            head = heads.get(branch)
            if parent is not None and not (head or "").startswith(parent.lower()):
                raise StaleParentError(parent)
            change = Change(self, self.files(head) if head else {})
            yield change
            change.commit = self._commit(change, head, message=message, author=author)
            self._git.refs[Ref(f"refs/heads/{branch}".encode())] = ObjectID(change.commit.encode())

    def write_blob(self, content: bytes) -> str:
        """Store a git object."""
        blob = Blob.from_string(content)
        self._git.object_store.add_object(blob)
        return blob.id.decode()

    def set_ref(self, kind: str, name: str, commit: str, *, message: str | None = None, author: str = "") -> None:
        """Let a branch (`heads`) or a tag (`tags`) point to a commit; with a message a tag is an object of its own."""
        target = ObjectID(commit.encode())
        with self.lock:
            if message:
                tag = Tag()
                tag.name, tag.object, tag.message = name.encode(), (Commit, target), f"{message}\n".encode()
                tag.tagger, tag.tag_time, tag.tag_timezone = _person(author), int(time.time()), 0
                self._git.object_store.add_object(tag)
                target = tag.id
            self._git.refs[Ref(f"refs/{kind}/{name}".encode())] = target

    def remove_ref(self, kind: str, name: str) -> None:
        """Remove a branch or a tag."""
        with self.lock:
            del self._git.refs[Ref(f"refs/{kind}/{name}".encode())]

    def squash(self, branch: str, message: str) -> None:
        """Replace the history of a branch by one commit of its tree."""
        with self.lock:
            head = self.refs("heads")[branch]
            change = Change(self, self.files(head))
            commit = self._commit(change, None, message=message, author=self.owner)
            self.set_ref("heads", branch, commit)

    def move(self, name: str, path: Path) -> None:
        """Give the repository another name and place."""
        with self.lock:
            self._git.close()
            path.parent.mkdir(parents=True, exist_ok=True)
            self.path.rename(path)
            self.name, self.path, self._git = name, path, Repo(path)
            self.large = LargeFiles(path / "lfs" / "objects")

    def delete(self) -> None:
        """Remove all files."""
        self.close()
        shutil.rmtree(self.path)

    def close(self) -> None:
        """Close the git repository."""
        self._git.close()

    def _peeled(self, oid: ObjectID) -> str:
        found = self._git.object_store[oid]
        return self._peeled(found.object[1]) if isinstance(found, Tag) else oid.decode()

    def _is_commit(self, oid: str) -> bool:
        key = ObjectID(oid.encode())
        return key in self._git.object_store and isinstance(self._git.object_store[key], Commit)

    def _file(self, path: str, oid: str) -> File:
        if oid not in self._files:
            content = self._git.object_store[ObjectID(oid.encode())].as_raw_string()
            pointer = Pointer.parse(content)
            self._files[oid] = (pointer.size if pointer else len(content), pointer)
        return File(path, oid, *self._files[oid])

    def _commit(self, change: Change, parent: str | None, *, message: str, author: str) -> str:
        blobs = [(path.encode(), ObjectID(file.oid.encode()), FILE) for path, file in change.files.items()]
        commit = Commit()
        commit.tree = commit_tree(self._git.object_store, blobs)
        commit.parents = [ObjectID(parent.encode())] if parent else []
        commit.author = commit.committer = _person(author)
        commit.author_time = commit.commit_time = int(time.time())
        commit.author_timezone = commit.commit_timezone = 0
        commit.message = message.encode()
        self._git.object_store.add_object(commit)
        return commit.id.decode()


def _person(name: str) -> bytes:
    return f"{name} <{name}@users.noreply.localhost>".encode()
