"""A process that tries one input after the other, each in a fork of its own: what the fork used is what the input cost.

In (stdin): lines of JSON, {"folder", "words"}. Out (stdout): lines of JSON with exit code, output, CPU seconds and peak memory.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import tempfile
import traceback
from contextlib import redirect_stderr, redirect_stdout


def attempt(folder: str, words: list[str]) -> dict[str, object]:
    """One command line in a fork."""
    with tempfile.TemporaryFile() as kept:
        child = os.fork()
        if child == 0:
            os._exit(_in_child(folder, words, kept.fileno()))
        _, status, used = os.wait4(child, 0)
        kept.seek(0)
        said = kept.read().decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "said": said, "cpu_s": used.ru_utime + used.ru_stime, "rss_bytes": used.ru_maxrss << 10}


def _in_child(folder: str, words: list[str], output: int) -> int:
    from raydpo import cli

    text = io.StringIO()
    os.chdir(folder)
    try:
        with redirect_stdout(text), redirect_stderr(text):
            code = cli.main(words)
    except BaseException:  # noqa: BLE001  whatever comes out of it is what is asked
        text.write(traceback.format_exc())
        code = 70
    os.write(output, text.getvalue().encode("utf-8", "backslashreplace"))
    return code


def main() -> None:
    import transformers

    import raydpo.data
    import raydpo.pipelines

    assert raydpo.data
    assert raydpo.pipelines
    assert transformers.AutoTokenizer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(attempt(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
