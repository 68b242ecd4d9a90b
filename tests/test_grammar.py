from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.model.grammar import Grammar, PictureSpan, TextSpan


def picture(vocabulary):
    streams = len(vocabulary.layout.streams)
    codes = [vocabulary.code_range(index % streams)[0] for index in range(vocabulary.num_codes)]
    return [vocabulary.begin_picture, *codes, vocabulary.end_picture]


def every_state(grammar):
    inside = [grammar.start()]
    for token in picture(grammar.vocabulary)[:-1]:
        inside.append(grammar.advance(inside[-1], token))
    return inside


@given(st.integers(0, 1 << 32))
def test_a_walk_of_legal_ids_holds_only_whole_pictures(vocabulary, seed):
    grammar, rng = Grammar(vocabulary), Random(seed)
    state, ids = grammar.start(), []
    steps = rng.randint(0, 60)
    while len(ids) < steps or state.inside:
        start, stop = rng.choice(grammar.legal(state))
        ids.append(rng.randrange(start, stop))
        state = grammar.advance(state, ids[-1])
    spans = grammar.spans(ids)
    assert [index for span in spans for index in range(span.start, span.stop)] == list(range(len(ids)))
    modality = grammar.modality(ids)
    for span in spans:
        if isinstance(span, PictureSpan):
            assert ids[span.start] == vocabulary.begin_picture and ids[span.stop - 1] == vocabulary.end_picture
            assert vocabulary.unflatten(ids[span.codes]).lengths.tolist() == [vocabulary.layout.num_positions]
            assert modality[span.start : span.stop] == [0, *[1] * vocabulary.num_codes, 0]
        else:
            allowed = range(vocabulary.pad + 1, vocabulary.num_text)
            assert all(token == vocabulary.eos or token in allowed for token in ids[span.start : span.stop])
            assert modality[span.start : span.stop] == [0] * (span.stop - span.start)


def test_advance_accepts_exactly_what_is_legal_and_outside_also_what_is_rendered(vocabulary):
    grammar = Grammar(vocabulary)
    states = every_state(grammar)
    assert len(states) == vocabulary.num_codes + 2
    for state in states:
        accepted = set()
        for token in range(-1, vocabulary.size + 1):
            try:
                grammar.advance(state, token)
            except ValueError:
                continue
            accepted.add(token)
        legal = {token for start, stop in grammar.legal(state) for token in range(start, stop)}
        rendered = set() if state.inside else {vocabulary.bos, vocabulary.user, vocabulary.assistant}
        assert accepted == legal | rendered and not legal & rendered


def test_inside_a_picture_one_range_is_legal_and_the_streams_take_turns(vocabulary):
    grammar = Grammar(vocabulary)
    expected = [vocabulary.code_range(index % 2) for index in range(vocabulary.num_codes)]
    expected.append((vocabulary.end_picture, vocabulary.end_picture + 1))
    assert [grammar.legal(state) for state in every_state(grammar)[1:]] == [(only,) for only in expected]


def test_states_are_values(vocabulary):
    assert len({*every_state(Grammar(vocabulary)), *every_state(Grammar(vocabulary))}) == vocabulary.num_codes + 2


def test_spans_of_a_rendered_chat(vocabulary):
    one = picture(vocabulary)
    ids = [vocabulary.bos, vocabulary.user, *one, *one, 9, vocabulary.eos]
    first, second = PictureSpan(2, 2 + len(one)), PictureSpan(2 + len(one), 2 + 2 * len(one))
    assert Grammar(vocabulary).spans(ids) == [TextSpan(0, 2), first, second, TextSpan(second.stop, second.stop + 2)]
    assert Grammar(vocabulary).spans([]) == []


def test_a_broken_picture_is_named(vocabulary):
    grammar, whole = Grammar(vocabulary), picture(vocabulary)
    for ids in (whole[:5], [*whole[:5], vocabulary.end_picture], [*whole[:5], vocabulary.eos], [*whole[:5], 9]):
        with pytest.raises(ValueError, match="picture must have 12 codes, got 4"):
            grammar.spans(ids)
    with pytest.raises(ValueError, match="picture must have 12 codes, got all but no end_picture"):
        grammar.spans(whole[:-1])
    with pytest.raises(ValueError, match="id after 12 of 12 codes must lie in"):
        grammar.spans([*whole[:-1], whole[1]])
    with pytest.raises(ValueError, match="id after 1 of 12 codes must lie in"):
        grammar.spans([*whole[:2], whole[1]])
    with pytest.raises(ValueError, match="outside a picture, an id must be text"):
        grammar.spans(whole[1:])
