"""Inputs that mean harm, or are damaged as if they did: each is written into a folder and named on a command line.

Comes in: a folder with a good run (run.yaml, model/, pairs.jsonl). Goes out: words for `raydpo check`, and what must be said.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

PAIR = {"prompt": "the sky is", "chosen": " blue", "rejected": " green"}
PAIR_LINE = json.dumps(PAIR).encode()
ROWS = [{"prompt": f"p{index}", "chosen": "yes " * (index + 1), "rejected": "no"} for index in range(40)]
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(t='x') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}"

Words = list[str]


@dataclass(frozen=True)
class Case:
    """make: writes the input into a folder and returns words behind `raydpo check run.yaml`, or all behind `raydpo`.

    says: what the output has to match. quarantined: reason of rows that are left out of a check that ends with code 0; None:
    the code is 2.
    """

    make: Callable[[Path], Words]
    says: str
    quarantined: str | None = None


CASES: dict[str, Case] = {}


def data(name: str, content: bytes | Callable[[Path], object], says: str, quarantined: str | None = None) -> None:
    """A case of one file of data.train."""

    def make(folder: Path) -> Words:
        place = folder / name.partition(" ")[0]
        if callable(content):
            content(place)
        else:
            place.write_bytes(content)
        train = [str(folder / "pairs.jsonl")] * (quarantined is not None) + [str(place)]
        return [f"data.train={json.dumps(train)}", *(["data.max_bad_fraction=0.5"] if quarantined else [])]

    CASES[f"data {name}"] = Case(make, says, quarantined)


def model(name: str, file: str, content: str | bytes | Callable[[Path], object], says: str) -> None:
    """A case of one file of the model folder, which replaces the good one."""

    def make(folder: Path) -> Words:
        place = folder / "model" / file
        place.unlink(missing_ok=True)
        if callable(content):
            content(place)
        else:
            place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return []

    CASES[f"model {name}"] = Case(make, says)


def config(name: str, text: str | bytes, says: str) -> None:
    """A case of the YAML file."""

    def make(folder: Path) -> Words:
        (folder / "hostile.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["check", str(folder / "hostile.yaml")]

    CASES[f"config {name}"] = Case(make, says)


def words(name: str, make: Callable[[Path], Words], says: str) -> None:
    """A case of other words on the command line."""
    CASES[name] = Case(make, says)


# --- columns ---------------------------------------------------------------------------------------------------


def arrow(table: pa.Table | None = None, change: Callable[[bytes], bytes] = bytes, **more: Any) -> bytes:
    """A file of `table`, changed."""
    table = pa.Table.from_pylist(ROWS) if table is None else table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, **more) as writer:
        writer.write_table(table)
    return change(sink.getvalue().to_pybytes())


def parquet(table: pa.Table | None = None) -> bytes:
    """A file of `table`."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS) if table is None else table, sink)
    return sink.getvalue().to_pybytes()


def offsets() -> bytes:
    """A file whose second text begins before the first."""
    text = pa.StringArray.from_buffers(3, pa.py_buffer(struct.pack("<4i", 0, 4, -7, 9)), pa.py_buffer(b"good morning"))
    return arrow(pa.table({"prompt": text, "chosen": ["a"] * 3, "rejected": ["b"] * 3}))


def packed_zeros() -> bytes:
    """A few thousand bytes that unpack to 600 MB."""
    table = pa.table({"prompt": pa.array([b"\0" * (600 << 20)], pa.binary())})
    return arrow(table, options=pa.ipc.IpcWriteOptions(compression="zstd"))


def saved_folder(place: Path) -> None:
    """A save_to_disk folder whose shard points outside."""
    place.mkdir()
    (place / "data-00000-of-00001.arrow").write_bytes(offsets())
    (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (place / "dataset_info.json").write_text("{}")


def deep_folder(place: Path) -> None:
    """A save_to_disk folder whose state is nested."""
    place.mkdir()
    (place / "state.json").write_text("[" * 100_000)
    (place / "dataset_info.json").write_text("{}")


class Evil:
    """Unpickling one leaves a file behind."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch HACKED",))


EVIL = pickle.dumps(Evil())
UNREAD = r"cannot be read"
data("offsets.arrow", offsets(), UNREAD)
data("offsets.feather", offsets(), UNREAD)
data("zeros.arrow", lambda place: place.write_bytes(packed_zeros()), UNREAD)
data("cut.arrow", arrow(change=lambda raw: raw[:-9]), UNREAD)
data("half.arrow", arrow(change=lambda raw: raw[: len(raw) // 2]), UNREAD)
data("lengths.arrow", arrow(change=lambda raw: raw.replace(struct.pack("<i", 40), struct.pack("<i", 2**30))), UNREAD)
data("stream.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 100, UNREAD)
data("ends.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\0\0\0\0", UNREAD)
data("pickle.arrow", EVIL, UNREAD)
data("pickle.parquet", EVIL, UNREAD)
data("half.parquet", parquet()[:300], UNREAD)
data("footer.parquet", parquet()[:-8] + struct.pack("<i", 2**31 - 1) + b"PAR1", UNREAD)
data("nulls.parquet", parquet(pa.table({"prompt": pa.nulls(20_000_000)})), "claims more than 2 rows")
data("zip.parquet", gzip.compress(parquet()), UNREAD)
data("folder", saved_folder, UNREAD)
data("deep-folder", deep_folder, "cannot be loaded")

# --- text ------------------------------------------------------------------------------------------------------


def long_line() -> bytes:
    """A row of 100 MB."""
    return b'{"prompt": "' + b"x" * (100 << 20) + b'", "chosen": "a", "rejected": "b"}\n'


def many_long(place: Path) -> None:
    """Three rows of 40 MB, most of it in a column that nobody reads, and one that is too long."""
    place.write_bytes(
        gzip.compress((PAIR_LINE[:-1] + b', "more": "' + b"x" * (40 << 20) + b'"}\n') * 3 + long_line(), 1)
    )


data("long.jsonl.gz", lambda place: place.write_bytes(gzip.compress(long_line(), 1)), "too_large", "too_large")
data(
    "long.jsonl.zst",
    lambda place: place.write_bytes(zstandard.ZstdCompressor().compress(long_line())),
    "too_large",
    "too_large",
)
data("long.json.gz", lambda place: place.write_bytes(gzip.compress(b"[" + long_line() + b"]", 1)), "characters")
data("long.csv.gz", lambda place: place.write_bytes(gzip.compress(b'a,b\n"' + long_line(), 1)), "bytes")
data("lines.jsonl.gz", lambda place: place.write_bytes(gzip.compress(b"\n" * (50 << 20))), "more than 2 rows")
data(
    "items.json.gz",
    lambda place: place.write_bytes(gzip.compress(b"[1" + b",1" * (5 << 20) + b"]")),
    "more than 2 rows",
)
data(
    "text.jsonl", lambda place: place.write_bytes(long_line().replace(b"x" * (60 << 20), b"")), "too_large", "too_large"
)
data("many.jsonl.gz", many_long, "too_large", "too_large")
data("quote.csv", b'prompt,chosen,rejected\n"' + b"a,b\n" * 100_000, UNREAD)
data("columns.csv", b"a," * 100_000 + b"\n", "is no header")
data("deep.jsonl", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "malformed_json", "malformed_json")
data("deepish.jsonl", b'{"prompt": ' + b"[" * 800 + b"]" * 800 + b"}\n", "malformed_json", "malformed_json")
data("deep.json", b'[{"prompt": ' + b"[" * 100_000, "nested too deeply")
data("open.json", b"[", UNREAD)
data("wide.jsonl", PAIR_LINE.decode().encode("utf-16"), "UTF-16")
data("bytes.jsonl", b"\xff\xfe\xfd\n" * 10, "invalid_utf8|malformed")
data("nul.jsonl", b'{"prompt": "a\0b"}\n', "nul", "nul")
data("keys.jsonl", ("{" + '"a": 1, ' * 100_000 + '"b": 1}\n').encode(), "duplicate_key", "duplicate_key")
data("digits.jsonl", b'{"prompt": ' + b"9" * 100_000 + b"}\n", "malformed_json", "malformed_json")
data("cut.jsonl.gz", gzip.compress(PAIR_LINE * 1000)[:-20], UNREAD)
data("junk.jsonl.gz", b"\x1f\x8b" + os.urandom(1000), UNREAD)
data("pickle.jsonl", EVIL, "a NUL character")
data("fifo.jsonl", os.mkfifo, "is a FIFO")
data("socket.jsonl", lambda place: socket.socket(socket.AF_UNIX).bind(os.path.relpath(place)), "is a socket")
data("device.jsonl", lambda place: place.symlink_to("/dev/zero"), "is a device")
data("loop.jsonl", lambda place: place.symlink_to(place), "cannot be read|does not exist")
words("name nul", lambda folder: ['data.train=["a\\0.jsonl"]'], "NUL")
words("name long", lambda folder: [f"data.train=[{'x' * 5000}.jsonl]"], "255 bytes")

# --- config ----------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
config("bomb", BOMB, "aliases written out")
config("deep", "run: " + "[" * 5000, "nested too deeply")
config("digits", "run: {seed: " + "9" * 5000 + "}", "digits")
config("keys", "".join(f"k{n}: 1\n" for n in range(5_000)), "keys")
config("long", "x: " + "a" * (3 << 20), "characters")
config("tag", "run: !!python/object/apply:os.system ['touch HACKED']", "tag")
config("bytes", b"\xff\xfe\0\0", "UTF-8")
words("config device", lambda folder: ["check", "/dev/zero"], "device")


def fifo_config(folder: Path) -> Words:
    os.mkfifo(folder / "fifo.yaml")
    return ["check", str(folder / "fifo.yaml")]


def run_is_file(folder: Path) -> Words:
    (folder / "file").write_text("")
    return [f"run.dir={folder / 'file'}"]


def model_is_link(folder: Path) -> Words:
    (folder / "r").mkdir()
    (folder / "r/model").symlink_to(folder / "model")
    return [f"run.dir={folder / 'r'}"]


words("config fifo", fifo_config, "FIFO")
words("run.dir nul", lambda folder: ['run.dir="r/\\0x"'], "NUL")
words("run.dir line", lambda folder: ['run.dir="r\\nx"'], "line break")
words("run.dir scheme", lambda folder: ["run.dir=hdfs://bucket/run"], "hdfs://")
words("run.dir file", run_is_file, "is a file")
words("run.dir link", model_is_link, "is a link")

# --- model folders ---------------------------------------------------------------------------------------------

DEEP = "[" * 100_000
DEEPISH = '{"x": ' + "[" * 700 + "]" * 700 + "}"
model("config deep", "config.json", DEEP, "nested too deeply")
model("config deepish", "config.json", DEEPISH, "nested too deeply")
model("config list", "config.json", "[]", "not an object")
model("tokenizer_config deep", "tokenizer_config.json", DEEP, "nested too deeply")
model("tokenizer_config list", "tokenizer_config.json", "[1]", "not an object")
model("tokenizer deep", "tokenizer.json", DEEP, "No tokenizer could be read|cannot be read")
model("tokenizer pickle", "tokenizer.json", EVIL, "No tokenizer could be read|cannot be read")
model("generation_config text", "generation_config.json", '"x"', "not an object")
model(
    "index outside",
    "model.safetensors.index.json",
    '{"weight_map": {"a": "../../etc/passwd"}}',
    "no file of its folder",
)
model("index types", "model.safetensors.index.json", '{"weight_map": [1]}', "no weight_map")
model("pickles", "model.safetensors", lambda place: (place.parent / "pytorch_model.bin").write_bytes(EVIL), "run code")
model("template loops", "chat_template.jinja", LOOPS, "took more than")
model("template times", "chat_template.jinja", "{{ 'x' * 20000000000 }}", "asks for more")
model("template power", "chat_template.jinja", "{{ 9 ** (9 ** 9) }}", "asks for more")
model("template doubling", "chat_template.jinja", DOUBLING, "asks for more")
model("template macro", "chat_template.jinja", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself")
