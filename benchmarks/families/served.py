"""Does vLLM on a CPU load a model folder, and greedily give what transformers gives? In a process of its own: it keeps memory.

Comes in: a model folder. Goes out: "yes", or what it said, by the last line that names an error.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.families.trial import first_sentence

LIMIT_S = 900
_CODE = """
import sys
from vllm import LLM, SamplingParams
engine = LLM(model=sys.argv[1], dtype="float32", max_model_len=64, enforce_eager=True, disable_log_stats=True,
    gpu_memory_utilization=0.1)
answer = engine.generate([{"prompt_token_ids": [5, 6, 7]}], SamplingParams(max_tokens=4, temperature=0.0, logprobs=1))
print("IDS", list(answer[0].outputs[0].token_ids))
"""


def served(folder: Path) -> str:
    """What vLLM says of the model in `folder`."""
    command = [sys.executable, "-c", _CODE, str(folder)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {LIMIT_S} s"
    if found.returncode == 0 and "IDS" in found.stdout:
        return "yes"
    said = [line for line in (found.stdout + found.stderr).splitlines() if "Error" in line and ": " in line]
    causes = [line for line in said if "engine core" not in line.lower()] or said or ["it ended without a word"]
    line = causes[0][max(causes[0].find(word) for word in ("ValidationError", "Error:", "[E]")) :] or causes[0]
    text = causes[0].rpartition("] ")[2] if "] " in causes[0] else line
    return "no: " + first_sentence(text.replace(sys.executable, "python"))
