"""Any store of obstore as `Objects`: S3 and what speaks its protocol; others by the same interface."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from wsmerge.errors import MissingDependencyError, StoreError
from wsmerge.registry.objects.interface import (
    Held,
    Listed,
    ObjectAbsentError,
    ObjectChangedError,
    ObjectRefusedError,
    Tag,
)
from wsmerge.registry.store_failures import obstore_message

__all__ = ["ObstoreObjects"]

_PART_BYTES: Final = 8 << 20
_MOST_PARTS: Final = 9_000  # S3 takes 10,000 of one object
_PARTS_IN_FLIGHT: Final = 4
# A store that does not answer is told within about a minute.
_RETRY: Final = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
_CONDITIONAL: Final = "a registry needs conditional writes (If-None-Match, If-Match), which S3 has"
_REFUSED: Final = {"PermissionDeniedError", "UnauthenticatedError"}


class ObstoreObjects:
    """The objects of one store of obstore.

    Args:
        store: an obstore store, its prefix included, that has conditional puts: create, and update by ETag or version.
        label: how messages name it.
    """

    def __init__(self, store: Any, label: str) -> None:  # noqa: ANN401 - obstore's stores share no class at run time
        self.label = label
        self._store = store
        self._obstore = _import_obstore()

    @classmethod
    def at(cls, address: str) -> ObstoreObjects:
        """The objects at an address, `s3://bucket/prefix`.

        Credentials, region and endpoint are those of the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
        `AWS_REGION`, `AWS_ENDPOINT_URL`, and whatever else obstore reads there.

        Raises:
            MissingDependencyError: obstore is not installed.
            StoreError: no such kind of store, or a setting that is not understood.
        """
        _import_obstore()
        from obstore.exceptions import BaseError  # noqa: PLC0415 - an optional package
        from obstore.store import from_url  # noqa: PLC0415 - an optional package

        endpoints = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
        plain = any(endpoint.startswith("http://") for endpoint in endpoints)
        options: Any = {"retry_config": _RETRY, "client_options": {"allow_http": True} if plain else None}
        try:
            return cls(from_url(address, **options), address.rstrip("/"))
        except (BaseError, ValueError) as error:
            raise StoreError(
                f"is no store: {obstore_message(error)}", where=address, hint="write s3://bucket/prefix, or a folder"
            ) from error

    def get(self, key: str) -> Held:
        """An object, whole."""
        with self._telling(key):
            result = self._obstore.get(self._store, key)
            meta = result.meta
            return Held(bytes(result.bytes()), Tag(meta["e_tag"], meta["version"]))

    def read_into(self, key: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of an object from byte `start` on."""
        if not len(out):
            return
        with self._telling(key):
            data = self._obstore.get_range(self._store, key, start=start, length=len(out))
        if len(data) != len(out):
            raise StoreError("ended while it was read", where=self._where(key))
        out[:] = memoryview(data)

    def head(self, key: str) -> Listed:
        """Size and time of an object."""
        with self._telling(key):
            return _listed(self._obstore.head(self._store, key))

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: Tag | None = None) -> None:
        """Write an object."""
        mode: Any = "create" if if_absent else "overwrite"
        if if_match is not None:
            mode = {field: value for field, value in if_match._asdict().items() if value is not None}
            if not mode:
                raise StoreError("the store gives no ETag", where=self._where(key), hint=_CONDITIONAL)
        with self._telling(key):
            self._obstore.put(self._store, key, data, mode=mode, use_multipart=False)

    def upload(self, key: str, chunks: Iterable[bytes], size: int) -> None:
        """Write a new object from `chunks`; of a large one, parts of it are in flight at once."""
        part_bytes = max(_PART_BYTES, -(-size // _MOST_PARTS))
        with self._telling(key):
            if size <= part_bytes:
                self._obstore.put(self._store, key, b"".join(chunks), use_multipart=False)
            else:
                self._obstore.put(
                    self._store, key, iter(chunks), chunk_size=part_bytes, max_concurrency=_PARTS_IN_FLIGHT
                )

    def list(self, prefix: str) -> Iterator[Listed]:
        """All objects whose key begins with `prefix`."""
        with self._telling(prefix):
            for page in self._obstore.list(self._store, prefix, chunk_size=1000):
                yield from map(_listed, page)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects."""
        if keys:
            with self._telling(keys[0]):
                self._obstore.delete(self._store, list(keys))

    def _where(self, key: str) -> str:
        return f"{self.label}/{key}"

    @contextmanager
    def _telling(self, key: str) -> Iterator[None]:
        """Turn obstore's errors into ours."""
        from obstore import exceptions  # noqa: PLC0415 - an optional package

        where = self._where(key)
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectAbsentError("is not there", where=where) from error
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise ObjectChangedError("was written by another process", where=where) from error
        except (exceptions.NotSupportedError, NotImplementedError) as error:
            raise ObjectRefusedError(
                f"the store cannot do this: {obstore_message(error)}",
                where=where,
                hint=_CONDITIONAL,
            ) from error
        except exceptions.BaseError as error:
            refused = type(error).__name__ in _REFUSED
            raise (ObjectRefusedError if refused else StoreError)(
                f"the store {'refuses' if refused else 'fails'}: {obstore_message(error)}",
                where=where,
                hint="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do"
                if refused
                else "check the address, AWS_ENDPOINT_URL and AWS_REGION, and try again",
            ) from error


def _import_obstore() -> Any:  # noqa: ANN401 - a module
    try:
        import obstore  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise MissingDependencyError(
            "object stores need the package obstore", hint="pip install 'wsmerge[s3]'"
        ) from error
    return obstore


def _listed(meta: Any) -> Listed:  # noqa: ANN401 - a dictionary of obstore
    return Listed(meta["path"], meta["size"], meta["last_modified"].timestamp())
