"""Packing keeps every token in its place, and held-out documents apart."""

import math

from hypothesis import given
from hypothesis import strategies as st

from core.packing import Packer, SpecialTokens, is_held_out, is_text

BOS, EOS, PAD = 0, 1, 2
SPECIAL = SpecialTokens(begin=BOS, excluded=(BOS, EOS, PAD))
documents_of_text = st.lists(st.lists(st.integers(3, 99), max_size=30), max_size=12)


def pack(documents: list[list[int]], context: int) -> list[list[int]]:
    packer = Packer(SPECIAL, context)
    return [sequence.tolist() for document in documents for sequence in packer.add(document)]


@given(documents=documents_of_text, context=st.integers(2, 12))
def test_each_sequence_begins_with_bos_and_is_as_long_as_the_context(documents, context):
    for sequence in pack(documents, context):
        assert len(sequence) == context
        assert sequence[0] == BOS


@given(documents=documents_of_text, context=st.integers(2, 12))
def test_tokens_appear_in_order_and_none_is_lost_but_a_remainder_shorter_than_a_sequence(documents, context):
    packed = [token for sequence in pack(documents, context) for token in sequence if token != BOS]
    given_tokens = [token for document in documents for token in document]
    assert packed == given_tokens[: len(packed)]
    assert len(given_tokens) - len(packed) < context


@given(documents=documents_of_text, context=st.integers(2, 12))
def test_bos_stands_before_each_document_and_at_the_start_of_sequences_and_nowhere_else(documents, context):
    first_of_document = [index == 0 for document in documents for index in range(len(document))]
    place = 0
    for sequence in pack(documents, context):
        for before, token in zip([None, *sequence], sequence, strict=False):
            if token == BOS:
                assert before != BOS, "no BOS follows another"
                continue
            starts_document = first_of_document[place]
            assert not starts_document or before == BOS
            if before == BOS and not starts_document:
                assert token == sequence[1], "a document goes on only at the start of a sequence"
            place += 1


@given(documents=documents_of_text, context=st.integers(2, 12))
def test_documents_without_tokens_leave_no_trace(documents, context):
    documents = [*documents, [50]]  # whatever comes after them
    assert pack([document for document in documents if document], context) == pack(documents, context)


def test_packing_by_hand():
    assert pack([[5, 6], [7], [], [8, 9, 10, 11, 12]], 4) == [[BOS, 5, 6, BOS], [BOS, 7, BOS, 8], [BOS, 9, 10, 11]]


def test_a_document_that_begins_with_a_sequence_has_one_bos():
    assert pack([[5, 6, 7], [8, 9, 10]], 4) == [[BOS, 5, 6, 7], [BOS, 8, 9, 10]]


def test_a_document_that_holds_a_bos_where_a_sequence_ends_gets_no_second_one():
    assert pack([[5, 6, 7, BOS, 8, 9, 10]], 4) == [[BOS, 5, 6, 7], [BOS, 8, 9, 10]]


def test_special_tokens_inside_a_document_are_kept_but_are_no_text():
    (sequence,) = Packer(SPECIAL, 5).add([7, EOS, PAD, 8])
    assert sequence.tolist() == [BOS, 7, EOS, PAD, 8]
    assert is_text(sequence, SPECIAL).tolist() == [False, True, False, False, True]


@given(document=st.text(), share=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_the_side_of_a_document_is_a_function_of_its_text_and_the_seed(document, share, seed):
    side = is_held_out(document, share, seed)
    copy = "".join(list(document))
    assert all(is_held_out(copy, share, seed) == side for _ in range(3))
    assert is_held_out(document, 1.0, seed)
    assert not is_held_out(document, 0.0, seed)
    assert not side or is_held_out(document, min(1.0, share + 0.1), seed), "a larger share only adds documents"


def test_text_that_is_not_unicode_has_a_side_too():
    assert is_held_out("half a pair: \ud800", 1.0, 0)


def test_the_held_out_share_is_about_what_was_asked_and_differs_by_seed():
    num, share = 5_000, 0.1
    sides = {seed: [is_held_out(f"document {i}", share, seed) for i in range(num)] for seed in (0, 1)}
    for side in sides.values():
        assert abs(sum(side) / num - share) < 4.5 * math.sqrt(share * (1 - share) / num)
    both = sum(a and b for a, b in zip(*sides.values(), strict=True))
    assert abs(both / num - share**2) < 4.5 * math.sqrt(share**2 * (1 - share**2) / num), "seeds choose independently"


def test_who_stops_taking_sequences_in_the_middle_of_a_document_may_go_on_with_another() -> None:
    packer = Packer(SpecialTokens(0, (0,)), 4)
    assert next(packer.add(list(range(1, 100)))).tolist() == [0, 1, 2, 3]
    assert [sequence.tolist() for sequence in packer.add([7, 8, 9])] == [[0, 7, 8, 9]]
