"""A small byte-level BPE tokenizer, trained on the spot.

What comes in: texts and a vocabulary size. What goes out: a transformers tokenizer with <s>, </s> and <pad>, on
request saved as a tokenizer folder.
Decision: all 256 bytes are in the vocabulary, so that every text can be encoded and comes back unchanged; the price
is that a vocabulary below 259 entries is refused. Texts get a <s> in front, and no </s> behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from raydpo.errors import UserError

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SMALLEST_VOCABULARY = 256 + 3


def train_bpe(texts: Iterable[str], vocab_size: int, folder: Path | None = None) -> PreTrainedTokenizerFast:
    """Learn at most `vocab_size` entries from `texts`; with `folder`, save the tokenizer there.

    Fewer entries come out when the texts hold no more pairs to merge. The same texts give the same tokenizer.
    Raises UserError when `vocab_size` cannot hold the bytes and the control tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"vocab_size is {vocab_size}; a byte-level tokenizer needs at least {SMALLEST_VOCABULARY} entries "
            f"(256 bytes, {BOS}, {EOS}, {PAD}), otherwise some text could not be encoded. Raise vocab_size."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    trained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    if folder is not None:
        trained.save_pretrained(folder)
    return trained
