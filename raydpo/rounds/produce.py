"""From a policy to a round's pairs: prompts, generations (rollouts), scores, pairs, each a committed piece.

Comes in: who samples and who judges. Goes out: `Produced`, with counts. Decision: what is there and was made from the same
inputs is taken as it is, so the same call goes on where an earlier one ended.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from raydpo.artifacts import digest_of_rows
from raydpo.artifacts.durable import COMMIT
from raydpo.config import Config
from raydpo.config.mixture_entry import paths_of
from raydpo.config.outside import is_outside, source_sha256
from raydpo.data.encode import Encoded
from raydpo.data.offline_share import offline_rows
from raydpo.data.prompts import own_answer
from raydpo.data.tokenizer import TextTokenizer
from raydpo.driver.generators import Policy
from raydpo.driver.roles import OpenScores, Roles, WantedSamples
from raydpo.driver.turns import Turns
from raydpo.judge.measures import distinct_bigrams
from raydpo.judge.pairs import PairRule, make_pairs, record_of, spin_pairs
from raydpo.rounds.pair_parts import OFFLINE, PairParts, files_of
from raydpo.rounds.paired_rows import Scores as Values
from raydpo.rounds.paired_rows import lots_of, open_lots, samples_of, scored_samples
from raydpo.rounds.round_tally import RoundTally
from raydpo.rounds.stream import Chosen, PairStream
from raydpo.rundir.piece import Piece
from raydpo.rundir.rounds_folder import RoundsFolder, chunks, prompts_of, seed_of
from raydpo.schema.events import StageDone
from raydpo.schema.round_rows import SCORED_PAIRS, SPIN_PAIRS
from raydpo.schema.samples import Generate, Prompt, Sample, Sampling

PROMPTS_PER_PART = 4096


@dataclass(frozen=True)
class Produced:
    """The committed pairs of a round, which may be none.

    index: of the round, from 0.
    version: of the policy that sampled.
    folder: where the pairs are.
    metrics: of samples and pairs.
    versions: of policies -> pairs of their answers; without those of `data.train`.
    """

    index: int
    version: int
    folder: Path
    metrics: Mapping[str, float]
    versions: Mapping[int, int] = field(default_factory=dict)

    @property
    def num_pairs(self) -> int:
        """Without those of `data.train`, of which there are none where these are none."""
        return int(self.metrics["pairs/made"])

    @property
    def became(self) -> str:
        """What became of the samples, in words: "samples 32, kept 32, considered 8, ties 8"."""
        counts = {name.removeprefix("pairs/"): int(n) for name, n in self.metrics.items() if name.startswith("pairs/")}
        return _counted(counts)

    @property
    def files(self) -> tuple[str, ...]:
        """What `data.train` of the round's training is."""
        return tuple(map(str, files_of(self.folder)))


class Producer:
    """Makes the pairs of any round of a run."""

    def __init__(
        self,
        layout: RoundsFolder,
        prompts: Sequence[Prompt],
        tokenizer: TextTokenizer,
        roles: Roles,
        phase: Callable[[int, str], AbstractContextManager[None]] = lambda *_: nullcontext(),
    ) -> None:
        """phase: a block whose time counts for a phase of a round."""
        self._phase = phase
        self._layout, self._config, self._roles = layout, layout.config, roles
        self._prompts, self._tokenizer = prompts, tokenizer
        self._rounds = rounds = layout.rounds
        strategy = "best_worst" if rounds.pairs == "spin" else rounds.pairs  # spin asks for no scores, and reads none
        self._rule = PairRule(strategy, rounds.top_k, rounds.margin, rounds.max_length_ratio, rounds.truncated)
        # Such an objective needs answers to another prompt as well: the pairs of one prompt alone are not used.
        self._compares_prompts = "mismatched" in layout.config.objective.batch_kinds
        self._stream = None if rounds.pairs_per_round is None else PairStream(layout, prompts)

    def produce(self, index: int, policy: Policy) -> Produced:
        """The pairs of round `index`, sampled by `policy`."""
        folder = self._layout.round(index)
        chosen = self._stream.chosen(index) if self._stream else self._chosen(folder, index)
        generations = self._generations(folder, index, policy, chosen)
        used = chosen.prompts
        if self._stream:
            used = chosen.prompts[: generations.meta["prompts"]]
            _prompts_piece(folder, used)
        is_judged = self._rounds.pairs != "spin"
        scores = self._scores(folder, index, used, generations) if is_judged else None
        pairs = self._pairs(folder, index, used, generations, scores)
        meta = pairs.meta
        found = meta.get(
            "versions", {policy.version: int(meta["metrics"]["pairs/made"])}
        )  # as it was before they were kept
        versions = {int(version): n for version, n in found.items() if n}
        return Produced(index, policy.version, pairs.folder, meta["metrics"], versions)

    def _chosen(self, folder: Path, index: int) -> Chosen:
        """The prompts of a round, and the digest of their committed piece."""
        numbers = prompts_of(index, len(self._prompts), self._rounds.prompts_per_round, self._config.run.seed)
        prompts = [self._prompts[number] for number in numbers]
        return Chosen(prompts, _prompts_piece(folder, prompts).digest)

    def _generations(self, folder: Path, index: int, policy: Policy, chosen: Chosen) -> Piece:
        section = self._config.generate
        sampling = sampling_of(self._config)
        inputs = [
            chosen.digest,
            policy.digest,
            asdict(sampling),
            section.prompts_per_item,
            section.engine,
            self._config.run.seed,
        ]
        piece = Piece(folder / "generations", inputs)
        if not piece.is_done:
            requests = requests_of(self._config, chosen.prompts, sampling, policy.version, index)
            self._sample(folder, index, WantedSamples(piece, policy, requests, chosen.prompts, {}))
        return piece

    def _sample(self, folder: Path, index: int, wanted: WantedSamples) -> None:
        """Samples; with them their scores, where both roles can work and there are none of another attempt."""
        is_judged_later = self._rounds.pairs == "spin" or (folder / "scores" / COMMIT).is_file()
        if not self._stream and (is_judged_later or not self._roles.can_judge_meanwhile):
            with self._phase(index, "sample"):
                self._roles.sample(wanted)
            return
        lots = open_lots(wanted.piece, wanted.prompts, self._roles.rows_per_lot)
        open_piece = Piece(folder / "scores", self._while_sampled(wanted.piece))
        if self._stream:
            wanted.cut = self._stream.cut(wanted, open_piece, partial(self._num_pairs, index))
        scores = OpenScores(open_piece, lots, lambda: self._scores_piece(folder, wanted.piece))
        self._roles.sample_and_judge(wanted, scores, Turns(partial(self._phase, index)))

    def _while_sampled(self, generations: Piece) -> Any:
        """What scores depend on, as far as it is known before the samples are committed; each row says of which it is."""
        return ["while sampled", generations.inputs_digest, self._roles.judging.inputs]

    def _scores_piece(self, folder: Path, generations: Piece) -> Piece:
        """Scores of committed samples, with those that were given before the samples were."""
        piece = Piece(folder / "scores", [generations.digest, self._roles.judging.inputs])
        piece.take_over(self._while_sampled(generations))
        return piece

    def _scores(self, folder: Path, index: int, prompts: Sequence[Prompt], generations: Piece) -> Piece:
        piece = self._scores_piece(folder, generations)
        if not piece.is_done:
            with self._phase(index, "judge"):
                self._roles.judge(piece, lots_of([generations], prompts, self._roles.rows_per_lot))
        return piece

    def _pairs(
        self, folder: Path, index: int, prompts: Sequence[Prompt], generations: Piece, scores: Piece | None
    ) -> Piece:
        rounds = self._rounds
        upstream = generations.digest if scores is None else scores.digest
        inputs = [upstream, rounds.pairs, asdict(self._rule), rounds.offline_share, self._config.run.seed]
        inputs += [source_sha256(rounds.pairs)] if is_outside(rounds.pairs) else []
        piece = Piece(folder / "pairs", inputs)
        if piece.is_done:
            return piece
        extra = {"round": index, "version": generations.meta["version"]}
        parts = PairParts(piece, SPIN_PAIRS if scores is None else SCORED_PAIRS)
        tally = RoundTally(None if scores is None else scores.meta)
        for prompt, samples, values in scored_samples(generations, scores, prompts):
            made, counts = self._of_prompt(prompt, samples, values, extra)
            parts.add(prompt.key, made)
            tally.add(samples, values, counts)
        offline = self._offline(index, parts.num_pairs)
        if not offline and self._compares_prompts and parts.is_of_one_prompt:
            tally.counts["one_prompt"] = parts.num_pairs
            parts.forget()
        parts.finish()
        if rounds.offline_share:
            piece.write(OFFLINE, offline)
        metrics = tally.metrics(parts.num_pairs, distinct_2("samples", generations, prompts))
        if self._stream:
            metrics["samples/not_used"] = float(generations.meta["not_used"])
        versions = {str(version): n for version, n in parts.versions.items()}
        ended = self._stream.ended(index, len(prompts)) if self._stream else {}
        piece.commit({"metrics": metrics, "versions": versions, **ended})
        became = f"{parts.num_pairs} pairs of {len(prompts)} prompts ({_counted(tally.counts)})"
        self._roles.observer(StageDone("pairs", became))
        return piece

    def _num_pairs(self, index: int, prompt: Prompt, samples: Sequence[Sample], scores: Values) -> int:
        """Of a prompt, before its round is over."""
        return len(self._of_prompt(prompt, samples, scores, {"round": index, "version": 0})[0])

    def _offline(self, index: int, num_pairs: int) -> list[dict[str, Any]]:
        """Rows of `data.train` to be mixed with a round's own pairs."""
        share = self._rounds.offline_share
        number = round(num_pairs * share / (1 - share))
        chance = random.Random(seed_of(self._config.run.seed, index, "offline"))
        return offline_rows(paths_of(self._config.data.train), number, chance) if number else []

    def _of_prompt(
        self, prompt: Prompt, samples: Sequence[Sample], scores: Sequence[float] | None, extra: Mapping[str, int]
    ) -> tuple[list[dict[str, Any]], Mapping[str, int]]:
        digest = self._tokenizer.ids_digest
        if self._rounds.pairs == "spin":
            answer, _ = own_answer(self._tokenizer, prompt, control_tokens=self._config.data.control_tokens)
            if answer is None:
                return [], {"no_answer": 1}
            own, beside = own_sample(prompt, answer)
            spun = spin_pairs(own, samples, self._rule)
            return [
                {**record_of(prompt, own, samples[rejected], tokenizer_digest=digest, extra=extra), **beside}
                for rejected in spun.rejected
            ], spun.counts
        if scores is None:
            return [], {"failed": 1}
        made = make_pairs(samples, scores, self._rule, seed_of(self._config.run.seed, extra["round"], prompt.key))
        records = [
            record_of(
                prompt,
                samples[chosen],
                samples[rejected],
                tokenizer_digest=digest,
                extra={**extra, "chosen_score": scores[chosen], "rejected_score": scores[rejected]},
            )
            for chosen, rejected, _ in made.pairs
        ]
        return records, made.counts


def _prompts_piece(folder: Path, prompts: Sequence[Prompt]) -> Piece:
    """The prompts of a round, committed."""
    piece = Piece(folder / "prompts", None, digest_of_rows(map(vars, prompts)))
    if not piece.is_done:
        piece.begin()
        for number, lot in enumerate(chunks(prompts, PROMPTS_PER_PART)):
            piece.write_part(number, map(vars, lot))
        piece.commit({"prompts": len(prompts)})
    return piece


def own_sample(prompt: Prompt, answer: Encoded) -> tuple[Sample, dict[str, Any]]:
    """The data's own answer as a sample, and what its record has in addition: its turns, and which tokens count."""
    said, (mask,) = prompt.record["chosen"], answer.masks
    beside: dict[str, Any] = {} if mask is None else {"chosen_mask": [int(one) for one in mask]}
    if isinstance(said, list):
        beside["chosen"] = said
        said = "\n\n".join(turn["content"] for turn in said)
    return Sample(tuple(answer.answer_ids[0]), str(said), "eos"), beside


def sampling_of(config: Config) -> Sampling:
    """How a round samples."""
    section = config.generate
    return Sampling(section.num_answers, section.max_new_tokens, section.temperature, section.top_p, section.stop)


def requests_of(
    config: Config, prompts: Sequence[Prompt], sampling: Sampling, version: int, place: int | str
) -> list[Generate]:
    """One request for each `generate.prompts_per_item` prompts. place: what the samples are for; seeds differ by it."""
    return [
        Generate(tuple(prompt.ids for prompt in lot), sampling, seed_of(config.run.seed, place, number), version)
        for number, lot in enumerate(chunks(prompts, config.generate.prompts_per_item))
    ]


def distinct_2(prefix: str, generations: Piece, prompts: Sequence[Prompt]) -> dict[str, float]:
    """The share of distinct 2-grams; nothing where no sample has two tokens."""
    share = distinct_bigrams(lambda: ([each.ids for each in group] for group in samples_of(generations, prompts)))
    return {} if share is None else {f"{prefix}/distinct_2": share}


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {number}" for reason, number in counts.items() if number) or "none made"
