"""A student with a trimmed vocabulary, and a teacher with more of it: which of its tokens the student knows."""

from __future__ import annotations

from compressor.checkpoints.store import Checkpoint
from compressor.checkpoints.vocabulary import kept_tokens_of


def teacher_rows(student: Checkpoint, teacher: Checkpoint) -> tuple[int, ...] | None:
    """The teacher's token ids that the student kept, in the student's order; None where both read the same tokens.

    A teacher cut to these rows reads the student's ids, and its logits are those gathered by `kept_token_ids`. None too
    where the vocabularies have nothing to do with each other, which the caller's comparison of tokenizers tells.
    """
    ours, theirs = kept_tokens_of(student), kept_tokens_of(teacher)
    if ours is None or ours == theirs:
        return None
    if theirs is None:
        whole = teacher.content.files.get("tokenizer.json")
        return ours.kept_token_ids if whole is not None and whole.sha256 == ours.of_tokenizer else None
    places = {number: row for row, number in enumerate(theirs.kept_token_ids)}
    if theirs.of_tokenizer != ours.of_tokenizer or not set(ours.kept_token_ids) <= set(places):
        return None
    return tuple(places[number] for number in ours.kept_token_ids)
