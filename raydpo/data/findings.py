"""What a preparation found, and whether a run may go on with it.

What comes in: the report and the tally of a finished pass, and the config. What goes out: a DataError with all that
makes the data as a whole unusable; what a person should know, to the observer.
Decision: nothing here reads a row, so that what counts as too bad or worth a word is in one place and costs no pass.
"""

from __future__ import annotations

from pathlib import Path

from raydpo.config import Config
from raydpo.data.column_use import missing_columns
from raydpo.data.formats import FORMATS
from raydpo.data.report import DataReport, Tally, num_bad, table
from raydpo.errors import DataError
from raydpo.schema.events import Note, Observer, StageDone


def refuse(report: DataReport, tally: Tally, config: Config, quarantine: Path | None) -> None:
    """Raise what makes the data as a whole unusable. quarantine: the file that lists every line left out, if any."""
    settings, problems = config.data, []
    where = f"; every line is listed in {quarantine}" if quarantine is not None else ""
    bad, reasons = num_bad(report.quarantined), table(report.quarantined, report.samples)
    share = bad / max(1, report.lines_read)
    if share > settings.max_bad_fraction:
        hint = "" if "unknown_format" not in report.quarantined else f" Known layouts: {', '.join(FORMATS)}."
        problems.append(
            f"{bad:,} of {report.lines_read:,} lines ({share:.1%}) cannot be used, and data.max_bad_fraction "
            f"allows {settings.max_bad_fraction:.1%}. Training would run on what is left{where}. Fix the rows, set "
            f"data.format if the layout was mistaken, or raise data.max_bad_fraction.{hint}\n{reasons}"
        )
    if settings.overlong == "error" and report.quarantined.get("overlong"):
        problems.append(
            f"{report.quarantined['overlong']:,} examples are longer than data.max_length = {settings.max_length} tokens "
            f"and data.overlong is error; first: {'; '.join(report.samples['overlong'])}. Raise data.max_length, or set "
            "data.overlong to drop or truncate_prompt."
        )
    problems += missing_columns(settings, tally.uses)
    problems += [text for use in tally.uses if (text := use.problem(report.formats[use.source])) is not None]
    if not problems and settings.eval_fraction and report.eval_pairs and not report.train_pairs and not settings.eval:
        problems.append(
            f"data.eval_fraction = {settings.eval_fraction:g} leaves nothing to train on: all {report.eval_pairs:,} "
            "examples have prompts that go to eval. Use a smaller share, or name held-out data in data.eval."
        )
    if "mismatched" in config.objective.batch_kinds and not problems:
        problems += [_one_prompt(split, config) for split in tally.pairs if tally.num_prompts(split) == 1]
    for split, names in (("train", settings.train), ("eval", settings.eval)):
        if names and not problems and not tally.pairs[split]:
            problems.append(
                f"data.{split} gives no example: of {report.lines_read:,} lines none is left for {split}{where}.\n{reasons}"
            )
    if problems:
        raise DataError(problems)


def _one_prompt(split: str, config: Config) -> str:
    """Why a split of one prompt is no data for an objective that compares prompts with the answers to others."""
    name = f"data.{split}"
    if split == "eval" and not config.data.eval:
        name = f"data.eval_fraction = {config.data.eval_fraction:g}, which holds out one prompt,"
    return (
        f"{name} has a single prompt, and objective {config.objective.row.name} compares each prompt with the answer to "
        "another one. Give at least two prompts, or use objective apo_zero_unpaired, which compares none."
    )


def tell(report: DataReport, config: Config, observer: Observer) -> None:
    """Say how the stage ended, and what in the data may surprise."""
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in report.quarantined.items())
    text = f"{report.lines_read:,} lines: {report.train_pairs:,} train, {report.eval_pairs:,} eval"
    observer(StageDone("data", f"{text}; left out: {left_out}" if left_out else text))
    if sum(map(len, report.entries.values())) > 1 or report.not_drawn or report.repeated or report.deduplicated:
        for key, entries in report.entries.items():
            for name, counts in entries.items():
                said = ", ".join(f"{what.replace('_', ' ')} {count:,}" for what, count in counts.items())
                observer(Note("info", f"data.{key}, {name}: {said}"))
    for source, columns in report.columns_not_read.items():
        observer(Note("info", f"{source}: columns that are not read: {', '.join(columns)}"))
    for source, layout in report.formats.items():
        if "; also " in layout:
            observer(Note("warning", f"{source}: rows of several layouts, each read by its own: {layout}"))
    if report.empty_prompts:
        text = f"{report.empty_prompts:,} examples have an empty prompt and begin with a BOS, which the model has to start from"
        observer(Note("info", text))
    if report.contradicted_pairs:
        text = f"{report.contradicted_pairs:,} pairs have ratings that say the rejected answer is the better one"
        observer(Note("warning", f"{text}; chosen and rejected count"))
    if report.eval_prompts_in_train:
        shared = f"{report.eval_prompts_in_train:,} eval examples have a prompt that is also trained on"
        observer(Note("warning", shared))
    if config.objective.row.data == "labels":
        _tell_labels(report, config, observer)
    if report.reasoning_dropped:
        text = (
            f"the chat template leaves {report.reasoning_dropped:,} pieces of reasoning out of earlier turns of prompts"
        )
        observer(Note("info", f"{text}; the model does not read them there when it answers either"))
    if report.control_tokens_found:
        how = {"plain": "read as plain text", "allow": "read as control tokens", "quarantine": "left out"}
        text = f"{report.control_tokens_found:,} control tokens in the data, {how[config.data.control_tokens]}"
        observer(Note("info", text))


def _tell_labels(report: DataReport, config: Config, observer: Observer) -> None:
    totals = {"train": report.train_pairs, "eval": report.eval_pairs}
    sides = {split: (report.desirable[split], total - report.desirable[split]) for split, total in totals.items()}
    for split, (desirable, undesirable) in sides.items():
        if not desirable and not undesirable:
            continue
        observer(Note("info", f"{split}: {desirable:,} desirable and {undesirable:,} undesirable answers"))
        if not desirable or not undesirable:
            what = {"train": "nothing is compared with them", "eval": "there will be no margins"}[split]
            observer(Note("warning", f"{split}: all answers have one label; {what}"))
    desirable, undesirable = sides["train"]
    if config.objective.row.name == "kto" and desirable and undesirable:
        weights = [config.objective.parameters[f"{side}_weight"] for side in ("desirable", "undesirable")]
        gain, loss = weights[0] * desirable, weights[1] * undesirable
        if not loss <= gain <= 4 / 3 * loss:
            text = (
                f"kto: desirable answers weigh {gain:g} and undesirable ones {loss:g} in all; the paper advises a ratio of "
                f"1 to 4/3. objective.desirable_weight: {loss / desirable:.3g} would make it 1"
            )
            observer(Note("warning", text))
