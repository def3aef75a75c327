"""The page docs/data.md, and the same tables for a terminal: layouts, other names, columns that mean something.

Decision: every table is made of what the program reads by, so that the page cannot say anything else.
"""

from __future__ import annotations

from collections.abc import Iterator

from raydpo.config.meanings import MEANINGS
from raydpo.data.aliases import ANSWERS, OTHERS, PAIRS, PROMPTS
from raydpo.data.bad_rows import APART, REASONS
from raydpo.data.column_names import KINDS
from raydpo.data.formats import FORMATS

_HEAD = """# Columns of preference data

What becomes of each column of a row. `raydpo formats --markdown` prints this page.

Every column is read, or it is named as not read: in the log, in `columns_not_read` of the summary, and by `raydpo check`.
A column that nothing reads and whose name says that it matters stops the run, with all such columns of all sources at once
and the line to write:

```yaml
data: {columns: {prompt: question, system: instructions}}   # meaning: column; dots reach into nested fields
data: {ignore: [rating, images]}                            # may be left out
```

- What counts is a column that holds something; null, empty text and empty lists are no values. A file where only some rows
  have a column is judged by these rows.
- A prompt or conversation that only repeats what the example says (`prompt` next to `messages`) is not lost.
- A row is read by the layout that fits it; rows that fit none are read by the layout of most rows of their file, and are left
  out with the reason. A file with rows of several layouts is named in the log. `data.format` reads all rows by one layout.
- Chosen and rejected answers that a row names win over ratings next to them. Pairs whose ratings say the opposite are counted
  (`contradicted_pairs`).
- A system text is the first turn in every layout; a plain prompt becomes a conversation for it, which needs a chat template.
  Beside token ids, transcripts and prompts that are no column of their own the row is left out (`no_place_for_system`), and so
  is one whose conversation begins with another system text (`two_systems`).
- Rows with images, video or sound are left out (`unsupported_media`). With `data.ignore: [images]` their text is read, unless
  it holds a placeholder such as `<image>`. Without such a column a placeholder counts where it is a control token of the
  tokenizer.
- A format of your own (`package.module:name`) gets the columns as they are, after `data.columns` and `data.ignore`; what it
  does not read is named and stops nothing.
- `tokenized` rows may have `chosen_mask` and `rejected_mask`, a 0 or 1 for each id of the answer: the loss covers the tokens
  with 1. Without such a column, or with null, it covers all of them. Losses by length divide by covered tokens; `ld_alpha`
  counts covered tokens. A mask is part of a row's key; rows without one, or with 1 everywhere, keep theirs.
- Messages and lists of them may be JSON text in a cell, under any known name, and so may lists of answers and of scores.
"""


def page() -> str:
    """docs/data.md."""
    parts = [_HEAD, *_layouts(), *_aliases(), *_meanings(), *_kinds(), *_reasons()]
    return "\n".join(parts) + "\n"


def terminal_tables() -> Iterator[str]:
    """Layouts, other names and columns that mean something, a line each."""
    for layout in FORMATS.values():
        yield f"{layout.name:<15} {layout.title}"
    yield ""
    for name, columns in _named():
        yield f"{name:<15} also {', '.join(columns)}"
    yield ""
    for kind in KINDS:
        yield f"{kind.title:<22} {'stops a run unread' if kind.stops else 'is named':<18} {', '.join(kind.names)}"


def _layouts() -> Iterator[str]:
    yield "## Layouts\n\n| `data.format` | rows | holds |\n|---|---|---|"
    for layout in FORMATS.values():
        yield f"| `{layout.name}` | {layout.title} | {layout.data} |"


def _named() -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "prompt", (*PROMPTS, "context (messages)")
    yield "completion", ANSWERS
    yield from OTHERS.items()


def _aliases() -> Iterator[str]:
    yield "\n## Other names\n\nRead where the row has no column of the name itself; the first that holds something.\n"
    yield "| name | also |\n|---|---|"
    for name, columns in _named():
        yield f"| {name} | {', '.join(columns)} |"
    yield "\nPairs and rankings. A tie, or a vote for neither, is left out as `tied_scores`.\n"
    yield "| who writes so | columns |\n|---|---|"
    for alias in PAIRS:
        yield f"| {alias.title} | {', '.join(dict.fromkeys((*alias.needs, *alias.means.values())))} |"


def _meanings() -> Iterator[str]:
    yield "\n## Meanings of `data.columns`\n\n| meaning | holds |\n|---|---|"
    for meaning, holds in MEANINGS.items():
        yield f"| {meaning} | {holds} |"


def _kinds() -> Iterator[str]:
    yield "\n## Columns that mean something\n\nIn capitals or not. All others are metadata: named, and nothing else.\n"
    yield "| kind | holds | unread | names |\n|---|---|---|---|"
    for kind in KINDS:
        unread = "stops the run" if kind.stops else "is named"
        if kind.title == "image, audio or video":
            unread = "the row is left out"
        yield f"| {kind.title} | {kind.holds} | {unread} | {', '.join(kind.names)} |"


def _reasons() -> Iterator[str]:
    yield "\n## Why a row is left out\n\n| reason | meaning | counts against `data.max_bad_fraction` |\n|---|---|---|"
    for reason, meaning in REASONS.items():
        yield f"| `{reason}` | {meaning} | {'no' if reason in APART else 'yes'} |"
