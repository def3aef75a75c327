"""Names of columns that mean something: the one table, and whether a column of such a name may stay unread.

Comes in: the name of a column that no layout read. Goes out: its kind, or None for metadata.
Decision: a name in this table that stays unread stops the run, since something else would be trained than what the file
says; all others are only named. Price: a file with an unusual use of such a name needs a line in its config.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ColumnKind:
    """Names with one meaning. holds: what is under them. stops: whether such a column, unread, stops the run. meaning: its
    name in `data.columns`, if it has one."""

    title: str
    names: tuple[str, ...]
    holds: str
    stops: bool = True
    meaning: str | None = None


_PROMPT = """prompt prompts question questions instruction instructions query input inputs problem request user_prompt
    user_input user_message user_query context history document documents passage dialogue_history prefix"""
_SYSTEM = (
    "system system_prompt system_message system_text system_instruction sys_prompt developer developer_prompt persona"
)
_CONVERSATION = "messages conversations conversation chat dialog dialogue"
_MEDIA = """image images image_path image_paths image_url image_urls pixel_values audio audios audio_path speech video videos
    video_path"""
_LABEL = "label labels kto_tag is_chosen is_desirable desirable is_good thumbs_up"
_RATING = """rating ratings score scores reward rewards rank ranks ranking overall_score overall_preference preference
    preferences preferred preference_strength winner winner_model better better_response_id choice vote votes"""
_TOOLS = "tools functions function_definitions available_tools tool_definitions"
_PAIR_SCORES = (
    *(
        f"{one}{joint}{other}"
        for side in ("chosen", "rejected")
        for what in ("score", "rating", "reward", "rank", "avg_rating", "logps", "logprob")
        for joint in ("_", "-")
        for one, other in ((side, what), (what, side))
    ),
    "margin",
    "score_diff",
    "score_difference",
    "reward_margin",
    "delta",
)
_ANSWERS = """answers responses completions candidates outputs generations raw_generation_responses answer response completion
    output generation chosen rejected text"""

KINDS: tuple[ColumnKind, ...] = (
    ColumnKind("prompt", tuple(_PROMPT.split()), "a part of what is asked", meaning="prompt"),
    ColumnKind("system text", tuple(_SYSTEM.split()), "what stands before the first turn", meaning="system"),
    ColumnKind("conversation", tuple(_CONVERSATION.split()), "turns of a conversation", meaning="messages"),
    ColumnKind("image, audio or video", tuple(_MEDIA.split()), "what the model would have to see or hear"),
    ColumnKind("label", tuple(_LABEL.split()), "whether an answer is desirable", meaning="label"),
    ColumnKind("rating", tuple(_RATING.split()), "which answer is better"),
    ColumnKind("tools", tuple(_TOOLS.split()), "tools that the model may call", meaning="tools"),
    ColumnKind("rating next to a pair", _PAIR_SCORES, "how good the answers of a pair are", stops=False),
    ColumnKind("other answers", tuple(_ANSWERS.split()), "answers next to those that a layout reads", stops=False),
)
"""Every kind; a name stands in one of them."""

_BY_NAME = {name: kind for kind in KINDS for name in kind.names}
MEDIA = frozenset(_MEDIA.split())


def kind_of_column(name: str) -> ColumnKind | None:
    """The kind of a column of this name, in capitals or not."""
    return _BY_NAME.get(name.strip().lower())
