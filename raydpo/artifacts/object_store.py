"""An object store by its address: put, put if nobody was there, read in parallel ranges, copy, list and delete.

Comes in: `s3://bucket/run` and keys below it. Goes out: bytes, or a StorageError in plain words. Decision: the client is
obstore, whose `create` is the provider's own conditional request; where an answer was lost, the object is read back and tells
by its content whether the put was ours. Credentials come by the provider's own chain from the environment and are never
written down. The price is a dependency with a compiled client.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raydpo.artifacts.durable import crash_point
from raydpo.errors import StorageError
from raydpo.redaction import redacted

PART_BYTES = 8 << 20
"""Of one part of an upload and of one range of a download."""
PARALLEL = 8
"""Requests at one time, of one file and of all files together."""
_MOST_PARTS = 5_000
"""Of an upload; S3 takes 10,000."""
COPY_BYTES = 5 << 30
"""The largest object that S3 copies in one request."""
_TRIES, _WAIT_S = 4, 0.5
"""Of a conditional put of which nothing is known."""
_QUERY = re.compile(r"\?[^\s\"']*")


class ObjectStore:
    """What lies below `url`. counts: requests by kind, and bytes under `sent` and `received`. Safe in threads."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.counts: Counter[str] = Counter()
        self._turn = threading.Lock()
        with _said(f"{self.url} cannot be opened"):
            self._client = _client(self.url)

    def put(self, key: str, data: bytes | Path, num_bytes: int | None = None) -> None:
        """Put `data`, or the content of a file, at `key`, whole, replacing what was there.

        num_bytes: of a file that may be growing, how much of it; None: all.
        """
        import obstore

        if num_bytes is None:
            num_bytes = data.stat().st_size if isinstance(data, Path) else len(data)
        crash_point("object:before-put")
        with _said(f"{self.url}/{key} could not be written"):
            is_large, part_bytes = num_bytes > PART_BYTES, max(PART_BYTES, num_bytes // _MOST_PARTS)
            content = blocks_of(data, num_bytes) if isinstance(data, Path) and is_large else data
            obstore.put(
                self._client, key, content, use_multipart=is_large, chunk_size=part_bytes, max_concurrency=PARALLEL // 2
            )
        self._count("put", sent=num_bytes)
        crash_point("object:after-put")

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Put `data`, which nobody else puts, at `key`, unless something is there; False then.

        Raises StorageError where it is not known whether it was put: it may be there, now or later.
        """
        crash_point("object:before-create")
        for left in reversed(range(_TRIES)):
            outcome = self._create(key, data, is_last=not left)
            if outcome is not None:
                crash_point("object:after-create")
                return outcome
            time.sleep(_WAIT_S)
        raise AssertionError("the last try raises")

    def _create(self, key: str, data: bytes, *, is_last: bool) -> bool | None:
        """Whether it was put; None where nobody knows."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        self._count("create", sent=len(data))
        try:
            obstore.put(self._client, key, data, mode="create", use_multipart=False)
            return True
        except (AlreadyExistsError, PreconditionError):
            return self.get(key) == data  # an answer was lost, and this is the client's second request
        except Exception as error:
            with suppress(StorageError):
                if (found := self.get(key)) is not None:
                    return found == data
            if is_last or isinstance(error, PermissionError):
                raise _refused(f"nobody knows whether {self.url}/{key} was written", error) from error
            return None

    def get(self, key: str) -> bytes | None:
        """The content of `key`; None if there is none."""
        import obstore

        self._count("get")
        with _said(f"{self.url}/{key} could not be read"):
            try:
                data = bytes(obstore.get(self._client, key).bytes())
            except FileNotFoundError:
                return None
        self._count("", received=len(data))
        return data

    def head(self, key: str) -> tuple[int, str] | None:
        """(bytes, tag of the content) of `key`; None if there is none."""
        import obstore

        self._count("head")
        with _said(f"{self.url}/{key} could not be read"):
            try:
                found = obstore.head(self._client, key)
            except FileNotFoundError:
                return None
        return int(found["size"]), str(found["e_tag"])

    def fetch(self, key: str, path: Path, num_bytes: int) -> bool:
        """Write the content of `key`, of which `num_bytes` are known, to `path`, in parallel ranges; False if there is none."""
        import obstore

        def one(start: int) -> bool:
            self._count("get")
            try:
                length = min(PART_BYTES, num_bytes - start)
                data = bytes(obstore.get_range(self._client, key, start=start, length=length))
            except FileNotFoundError:
                return False
            self._count("", received=len(data))
            os.pwrite(descriptor, data, start)
            return True

        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            with _said(f"{self.url}/{key} could not be read"), ThreadPoolExecutor(PARALLEL) as threads:
                return all(threads.map(one, range(0, num_bytes, PART_BYTES)))
        finally:
            os.close(descriptor)

    def copy(self, source: str, key: str) -> None:
        """Make `key` the same as `source`, in the store."""
        import obstore

        crash_point("object:before-copy")
        with _said(f"{self.url}/{key} could not be written"):
            obstore.copy(self._client, source, key)
        self._count("copy")

    def delete(self, keys: Sequence[str]) -> None:
        """Remove what is there of `keys`."""
        import obstore

        if not keys:
            return
        crash_point("object:before-delete")
        with _said(f"{self.url} could not be tidied"), suppress(FileNotFoundError):
            obstore.delete(self._client, list(keys))
        self._count("delete")

    def listed(self, prefix: str = "") -> Iterator[tuple[str, int, str]]:
        """(key, bytes, tag of the content) of everything below the folder `prefix`. What was put just now may be missing."""
        for found in self._listed(prefix):
            yield found["path"], int(found["size"]), str(found["e_tag"])

    def dated(self, prefix: str = "") -> Iterator[tuple[str, int, float]]:
        """(key, bytes, seconds since the epoch by the store's clock) of everything below the folder `prefix`, likewise."""
        for found in self._listed(prefix):
            yield found["path"], int(found["size"]), found["last_modified"].timestamp()

    def _listed(self, prefix: str) -> Iterator[Any]:
        import obstore

        crash_point("object:before-list")
        self._count("list")
        with _said(f"{self.url}/{prefix} could not be listed"):
            for batch in obstore.list(self._client, prefix=prefix or None):
                yield from batch

    def _count(self, kind: str, sent: int = 0, received: int = 0) -> None:
        with self._turn:
            self.counts.update({kind: 1} if kind else {}, sent=sent, received=received)


class StoreFolder:
    """The folder `prefix` of a store, as a log of commits uses it."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def __str__(self) -> str:
        return f"{self._store.url}/{self._prefix}"

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return self._store.put_if_absent(f"{self._prefix}/{name}", data)

    def read(self, name: str) -> bytes | None:
        return self._store.get(f"{self._prefix}/{name}")

    def names(self) -> list[str]:
        return [key.rpartition("/")[2] for key, _, _ in self._store.listed(self._prefix)]


def blocks_of(path: Path, num_bytes: int) -> Iterator[bytes]:
    """The first `num_bytes` of a file, piece by piece."""
    with path.open("rb") as file:
        while num_bytes > 0 and (block := file.read(min(PART_BYTES, num_bytes))):
            num_bytes -= len(block)
            yield block


def _client(url: str) -> Any:
    from obstore.store import from_url

    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    options = {"allow_http": True} if endpoint.startswith("http://") else {}
    config: Any = {"conditional_put": "etag"} if url.startswith("s3://") else {}
    return from_url(url, config=config, client_options=options)  # type: ignore[call-overload]


_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "GOOGLE_ENDPOINT", "AZURE_ENDPOINT")


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Turn what the client says into a StorageError that begins with `what`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno is not None:  # of this machine's files
            raise
        raise _refused(what, error) from error
    except Exception as error:
        if not type(error).__module__.startswith("obstore"):
            raise
        raise _refused(what, error) from error


def _refused(what: str, error: Exception) -> StorageError:
    line = _QUERY.sub("", redacted(str(error).strip().partition("\n")[0]))[:300]
    return StorageError(
        f"{what}: {line or type(error).__name__}. What was committed before is untouched. Credentials, region and endpoint "
        "come from the environment (docs/storage.md); once they and the network are right, run the same command again."
    )
