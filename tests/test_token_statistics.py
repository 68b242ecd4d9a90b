"""Statistics of codes against distributions whose figures are known."""

import math

import pytest
import torch

from rebus.evaluation import token_statistics
from rebus.evaluation.token_statistics import (
    entropy_bits,
    heaps,
    information_bits,
    innovation,
    stream_statistics,
    zipf,
)
from rebus.model.command_line import SHIPPED_MODEL
from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_the_exponent_of_a_power_law_is_found(exponent):
    counts = (1e5 / torch.arange(1, 301).double() ** exponent).round().long()
    found, fit = zipf(torch.arange(300).repeat_interleave(counts))
    assert found == pytest.approx(exponent, abs=0.01) and fit > 0.999


def test_uniform_codes_have_all_bits_no_slope_and_no_information(generator):
    codes = torch.randint(16, (40_000,), generator=generator)
    assert entropy_bits(codes) == pytest.approx(4, abs=0.01)
    assert zipf(codes)[0] == pytest.approx(0, abs=0.05)
    assert information_bits(codes[:-1], codes[1:], generator) == pytest.approx(0, abs=0.01)


def test_information_is_that_of_the_pairs_and_not_of_small_numbers(generator):
    codes = torch.randint(8, (20_000,), generator=generator)
    assert information_bits(codes, codes * 5 % 8, generator) == pytest.approx(3, abs=0.01)  # one tells the other
    assert information_bits(codes, codes // 2, generator) == pytest.approx(2, abs=0.01)
    few = torch.randint(1000, (2, 500), generator=generator)  # a plain estimate would say 8 bits
    assert abs(information_bits(few[0], few[1], generator)) < 0.1


def test_novelty_counts_distinct_codes():
    assert innovation(torch.tensor([3, 3, 1, 3, 2, 1])).tolist() == [1, 1, 2, 2, 3, 3]
    assert heaps(innovation(torch.arange(100))) == 1 and heaps(innovation(torch.zeros(100).long())) == 0


def test_codes_of_a_picture_whose_rows_repeat(generator):
    layout = CodeLayout("grid", 12, (Stream("codes", 32),), grid=(4, 3))
    row = torch.randint(32, (2000, 1, 3), generator=generator)
    tokens = Tokens(row.expand(-1, 4, -1).reshape(2000, 12, 1), torch.full((2000,), 12), layout)
    found = stream_statistics(tokens, 0, generator)
    assert found.num_codes == 24_000 and found.entropy_bits == pytest.approx(5, abs=0.01)
    assert found.redundancy == pytest.approx(0, abs=0.01) and found.above_bits == pytest.approx(5, abs=0.1)
    assert found.previous_bits == pytest.approx(0, abs=0.15)


def test_only_positions_that_a_picture_holds_count(generator):
    layout = CodeLayout("sequence", 3, (Stream("codes", 4),), prefix_decodable=True)
    tokens = Tokens(torch.tensor([[[0], [1], [2]], [[3], [-1], [-1]]]), torch.tensor([3, 1]), layout)
    found = stream_statistics(tokens, 0, generator)
    assert found.num_codes == 4 and found.entropy_bits == pytest.approx(math.log2(4)) and found.above_bits is None


@pytest.mark.slow
def test_the_command_tells_and_draws(tmp_path, capsys):
    picture, shipped = tmp_path / "statistics.png", str(SHIPPED_MODEL / "image_tokenizer")
    token_statistics.main(["--image_tokenizer", shipped, "--limit", "4", "--plot", str(picture), "--json"])
    told = capsys.readouterr().out.splitlines()
    assert '"zipf_exponent"' in told[-1] and picture.stat().st_size > 1000
    with pytest.raises(SystemExit, match="2"):
        token_statistics.main(["--image_tokenizer", shipped, "--limit", "0"])
    assert "limit must be at least 1, got 0" in capsys.readouterr().err
