"""Configs to JSON and back: nothing is lost, and what does not fit is named."""

import dataclasses
import json
import types
from dataclasses import dataclass
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.quantizers.choice import QuantizerConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.parallel import BranchConfig, ParallelConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.saved_config import config_from_json, config_to_json


@dataclass(frozen=True, kw_only=True)
class ShelfConfig:
    """All that a field may hold."""

    books: dict[str, FiniteScalarConfig | VectorConfig]
    pairs: tuple[tuple[int, int], ...] | None = None
    ends: tuple[FiniteScalarConfig, VectorConfig] | None = None


def values_of(hint):
    """Values of a type, with configs as their class and fields."""
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        fields = {key: values_of(one) for key, one in get_type_hints(hint).items()}
        return st.tuples(st.just(hint), st.fixed_dictionaries(fields))
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values_of, inner))
    if origin is tuple:
        return st.tuples(values_of(inner[0]), values_of(inner[0 if inner[1] is ... else 1]))
    if origin is dict:
        return st.dictionaries(st.sampled_from("ab"), values_of(inner[1]))
    if origin is Literal:
        return st.sampled_from(inner)
    return st.floats(allow_nan=False) if hint is float else st.from_type(hint)


def built(value):
    """The values, with configs built."""
    if isinstance(value, dict):
        return {key: built(one) for key, one in value.items()}
    if not isinstance(value, tuple):
        return value
    if not isinstance(value[0], type):
        return tuple(map(built, value))
    try:
        return value[0](**built(value[1]))
    except ValueError:
        reject()  # a config may refuse values that do not go together


def through_json(config):
    return config_from_json(type(config), json.loads(json.dumps(config_to_json(config))))


@given(values_of(QuantizerConfig))
def test_a_tokenizer_of_any_quantizer_survives_json(quantizer):
    config = ImageTokenizerConfig(quantizer=built(quantizer))
    assert through_json(config) == config


@given(values_of(ShelfConfig))
def test_tuples_and_dictionaries_of_configs_survive_json(values):
    config = built(values)
    assert through_json(config) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branches": [{"is": "BranchConfig", "name": "a", "quantizer": {"is": "Slots"}}]}, "'is' must be one of"),
        ({"branches": [{"is": "VectorConfig"}]}, "config must be a BranchConfig, got VectorConfig"),
        ({"branches": [{"name": "a"}]}, "BranchConfig cannot be read: .*'quantizer'"),
        ({"branches": 3}, "ParallelConfig cannot be read"),
    ],
)
def test_what_does_not_fit_inside_a_list_is_named(changes, message):
    config = ParallelConfig(branches=(BranchConfig(name="a", quantizer=VectorConfig()),))
    with pytest.raises(ValueError, match=message):
        config_from_json(ParallelConfig, {**config_to_json(config), **changes})


def test_a_list_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match=r"a list must have 2 values, got \[1, 2, 3\]"):
        config_from_json(ShelfConfig, {"books": {}, "pairs": [[1, 2, 3]]})
