"""Rows on disk: durable writes, digests, verified shards, committed folders, the reference cache."""

from raydpo.artifacts.arrow import ShardRecord
from raydpo.artifacts.compaction import compact_cache
from raydpo.artifacts.digest import digest_of, digest_of_rows, file_sha256, tokenizer_digest, weights_digest
from raydpo.artifacts.durable import CRASH_POINTS, crash_point, fsync, write_bytes, write_json, write_text
from raydpo.artifacts.examples import ExampleTable, ExampleWriter, examples_digest
from raydpo.artifacts.folders import commit_folder, discard, newest_valid, read_commit, verify_folder
from raydpo.artifacts.garbage import collect_garbage
from raydpo.artifacts.housekeeping import list_caches, verify_caches
from raydpo.artifacts.lease import Lease, fence, require_lease, settle
from raydpo.artifacts.lock import RunLock
from raydpo.artifacts.mirror_path import local_path, shown
from raydpo.artifacts.placeholder import fetch
from raydpo.artifacts.reference_cache import CacheIdentity, ReferenceCache, open_reference

__all__ = [
    "CRASH_POINTS",
    "CacheIdentity",
    "ExampleTable",
    "ExampleWriter",
    "Lease",
    "ReferenceCache",
    "RunLock",
    "ShardRecord",
    "collect_garbage",
    "commit_folder",
    "compact_cache",
    "crash_point",
    "digest_of",
    "digest_of_rows",
    "discard",
    "examples_digest",
    "fence",
    "fetch",
    "file_sha256",
    "fsync",
    "list_caches",
    "local_path",
    "newest_valid",
    "open_reference",
    "read_commit",
    "require_lease",
    "settle",
    "shown",
    "tokenizer_digest",
    "verify_caches",
    "verify_folder",
    "weights_digest",
    "write_bytes",
    "write_json",
    "write_text",
]
