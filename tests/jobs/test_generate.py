"""Responses: the same whatever the batch, from the distribution that the update sees, ended where they end."""

import numpy
import pytest
import torch

from jobs.generate import draw_noise, generate, sample
from jobs.tiny import make_model, make_tokenizer

PROMPTS = [[40, 41], [42, 43, 44, 45, 46, 47], [48], [49, 50, 51], [52, 53, 54, 55]]
NOISE = draw_noise(7, numpy.arange(5), 12)
PAD, STOP = make_tokenizer().pad_token_id, make_tokenizer().eos_token_id


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return make_model().eval()


def write(
    model: torch.nn.Module, *, stop: int = STOP, batch_size: int = 2, temperature: float = 0.2
) -> list[list[int]]:
    options = {"temperature": temperature, "stop": stop, "pad": PAD, "device": "cpu"}
    return generate(model, PROMPTS, NOISE, batch_size=batch_size, **options)


def write_slowly(model: torch.nn.Module, prompt: list[int], noise: "numpy.ndarray", temperature: float) -> list[int]:
    """Without padding, cache or batch: the whole sequence anew for each token."""
    response: list[int] = []
    for number in noise:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, -1].double()
        shares = torch.softmax(logits / temperature, dim=0).cumsum(0)
        response.append(int((shares <= number).sum()))
        if response[-1] == STOP:
            break
    return response


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_padding_and_cache_change_no_token(model: torch.nn.Module, batch_size: int) -> None:
    expected = [write_slowly(model, prompt, noise, 0.2) for prompt, noise in zip(PROMPTS, NOISE, strict=True)]
    assert write(model, batch_size=batch_size) == expected


def test_a_response_ends_with_the_stop_token_and_the_others_go_on(model: torch.nn.Module) -> None:
    whole = write(model)
    stop = whole[1][3]  # any token that some of them write
    cut = write(model, stop=stop, batch_size=5)
    for response, full in zip(cut, whole, strict=True):
        place = full.index(stop) if stop in full else len(full) - 1
        assert response == full[: place + 1]
    assert len({len(response) for response in cut}) > 1


def test_ranks_that_go_on_keep_one_that_has_ended_going(model: torch.nn.Module) -> None:
    calls: list[bool] = []

    def any_rank(is_alive: bool) -> bool:
        calls.append(is_alive)
        return len(calls) < 9  # another rank goes on until here

    first = write(model, batch_size=5)
    stop = first[2][0]
    options = {"temperature": 0.2, "stop": stop, "pad": PAD, "device": "cpu", "batch_size": 1}
    (response,) = generate(model, [PROMPTS[2]], NOISE[2:3], any_rank=any_rank, **options)
    assert response == [stop]
    assert calls == [False] * 9


def test_noise_chooses_each_token_with_its_probability() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0]])
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    chosen = sample(logits.expand(20_000, 4), grid, 0.7)
    shares = torch.bincount(chosen, minlength=4) / 20_000
    assert torch.allclose(shares, torch.softmax(logits[0] / 0.7, dim=0), atol=1e-4)


def test_the_largest_noise_is_still_a_token_and_an_impossible_one_is_never_taken() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 0.0, float("-inf")]])
    noise = torch.tensor([0.0, 0.499999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert sample(logits.expand(4, 4), noise, 1.0).tolist() == [0, 0, 2, 2]


def test_noise_belongs_to_the_place_of_a_prompt() -> None:
    assert (draw_noise(7, numpy.array([3, 1]), 12) == NOISE[[3, 1]]).all()
    assert not (draw_noise(8, numpy.arange(5), 12) == NOISE).any()
    assert ((NOISE >= 0) & (NOISE < 1)).all()
