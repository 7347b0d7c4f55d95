"""The pure functions on logits, against probabilities worked out by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from rl_estimators.verl.rollout.sampling import Streams, draw, keep_top_k, keep_top_p, log_probabilities

P = [0.4, 0.3, 0.2, 0.1]
LOGITS = torch.tensor([P], dtype=torch.float64).log()


def probabilities(temperature=1.0, top_k=0, top_p=1.0, logits=LOGITS):
    rows = len(logits)
    return log_probabilities(
        logits,
        torch.full((rows,), temperature, dtype=torch.float64),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p, dtype=torch.float64),
    ).exp()


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor([expected], dtype=torch.float64))


def test_without_filters_the_softmax_is_left():
    close(probabilities(), P)


def test_temperature_raises_probabilities_to_its_inverse():
    # p^(1/0.5) = p^2: 16, 9, 4, 1 of 30
    close(probabilities(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30])
    # p^(1/2): square roots over their sum
    total = sum(math.sqrt(p) for p in P)
    close(probabilities(temperature=2.0), [math.sqrt(p) / total for p in P])


def test_temperature_zero_counts_as_one():
    close(probabilities(temperature=0.0), P)


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(0, P), (1, [1, 0, 0, 0]), (2, [4 / 7, 3 / 7, 0, 0]), (4, P), (99, P)],
)
def test_top_k(top_k, expected):
    close(probabilities(top_k=top_k), expected)


def test_top_k_keeps_ties_with_the_last():
    # 1st, then two equal ones for the 2nd place: all three stay
    logits = torch.tensor([[0.2, 0.4, 0.2, 0.1]], dtype=torch.float64).log()
    close(probabilities(top_k=2, logits=logits), [0.25, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1e-9, [1, 0, 0, 0]),  # never less than one token
        (0.39, [1, 0, 0, 0]),
        (0.41, [4 / 7, 3 / 7, 0, 0]),  # the first alone holds less than 0.41
        (0.69, [4 / 7, 3 / 7, 0, 0]),
        (0.71, [4 / 9, 3 / 9, 2 / 9, 0]),
        (0.95, P),
        (1.0, P),
    ],
)
def test_top_p(top_p, expected):
    close(probabilities(top_p=top_p), expected)


def test_top_p_boundary_keeps_the_fewest_that_reach_it():
    # binary fractions, so that the sums are exact: 0.5 reaches 0.5, and 0.5 + 0.25 reaches 0.75
    logits = torch.tensor([[0.25, 0.5, 0.125, 0.125]], dtype=torch.float64).log()
    close(probabilities(top_p=0.5, logits=logits), [0, 1, 0, 0])
    close(probabilities(top_p=0.75, logits=logits), [1 / 3, 2 / 3, 0, 0])


def test_top_p_takes_equals_in_the_order_of_their_ids():
    close(probabilities(top_p=0.5, logits=torch.zeros(1, 4)), [0.5, 0.5, 0, 0])


def test_top_k_comes_before_top_p():
    # of 4/7 and 3/7 the first holds 0.571 >= 0.5; without top-k it would hold 0.4 and need the second
    close(probabilities(top_k=2, top_p=0.5), [1, 0, 0, 0])
    close(probabilities(top_k=0, top_p=0.5), [4 / 7, 3 / 7, 0, 0])


def test_temperature_comes_before_top_p():
    # at temperature 1/2 the first holds 16/30 = 0.53
    close(probabilities(temperature=0.5, top_p=0.5), [1, 0, 0, 0])


def test_equal_uniform_steps_draw_each_token_in_proportion():
    # the midpoints of 1000 equal steps fall into the tokens' intervals 400, 300, 200 and 100 times
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = draw(LOGITS.expand(1000, -1), uniforms)
    assert Counter(drawn.tolist()) == {0: 400, 1: 300, 2: 200, 3: 100}


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.2499, 1), (0.25, 3), (1 - 2**-53, 3)])
def test_a_token_of_probability_zero_is_never_drawn(uniform, token):
    log_probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64).log()
    assert draw(log_probs, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


def test_the_greatest_uniform_finds_a_token_whatever_the_rounding_of_the_total():
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(2000, 37, generator=generator, dtype=torch.float64).log_softmax(-1)
    assert draw(log_probs, torch.full((2000,), 1 - 2**-53, dtype=torch.float64)).max() < 37


def test_frequencies_of_a_stream_are_the_filtered_probabilities():
    expected = [4 / 9, 3 / 9, 2 / 9, 0]
    stream, n = Streams(seed=7, replica=0).next_for([1, 2, 3]), 30_000
    uniforms = torch.tensor([stream.random() for _ in range(n)], dtype=torch.float64)
    counts = Counter(draw(probabilities(top_p=0.71).log().expand(n, -1), uniforms).tolist())
    for token, p in enumerate(expected):
        assert abs(counts[token] - n * p) <= 4 * math.sqrt(n * p * (1 - p))


def test_rows_do_not_depend_on_their_neighbours():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 50, generator=generator)
    temperature = torch.tensor([0.0, 0.3, 1.0, 1.0, 1.7, 0.9], dtype=torch.float64)
    top_k = torch.tensor([0, 5, 0, 50, 3, 0])
    top_p = torch.tensor([1.0, 1.0, 0.5, 0.9, 0.99, 1.0], dtype=torch.float64)
    uniforms = torch.rand(6, generator=generator, dtype=torch.float64)
    together = log_probabilities(logits, temperature, top_k, top_p)
    for row in range(6):
        one = slice(row, row + 1)
        alone = log_probabilities(logits[one], temperature[one], top_k[one], top_p[one])
        assert torch.equal(together[one], alone)
        assert draw(together, uniforms)[row] == draw(alone, uniforms[one])


def test_filters_leave_their_input_alone():
    logits = LOGITS.clone()
    keep_top_k(logits, torch.tensor([1]))
    keep_top_p(logits, torch.tensor([0.1]))
    assert torch.equal(logits, LOGITS)


def numbers(stream):
    return [stream.random() for _ in range(4)]


def test_a_stream_follows_from_seed_replica_version_prompt_and_turn_alone():
    def first(seed=1, replica=0, version=3, prompt=(5, 6)):
        streams = Streams(seed, replica)
        streams.weights_changed(version)
        return numbers(streams.next_for(prompt))

    assert first() == first()
    others = [first(seed=2), first(replica=1), first(version=4), first(version=None), first(prompt=(6, 5))]
    assert all(first() != other for other in others)


def test_other_prompts_in_between_change_nothing():
    one, two = Streams(1, 0), Streams(1, 0)
    expected = [numbers(one.next_for([1])), numbers(one.next_for([1]))]
    actual = [numbers(two.next_for([1]))]
    two.next_for([2])
    assert [*actual, numbers(two.next_for([1]))] == expected
    assert expected[0] != expected[1]


def test_turns_are_counted_anew_for_a_new_version_only():
    streams = Streams(1, 0)
    streams.weights_changed(1)
    first, second = numbers(streams.next_for([1])), numbers(streams.next_for([1]))
    streams.weights_changed(1)
    streams.weights_changed(None)
    third = numbers(streams.next_for([1]))
    assert third not in (first, second)
    streams.weights_changed(2)
    streams.weights_changed(1)
    assert numbers(streams.next_for([1])) == first


def test_prompt_ids_may_be_numpy_integers():
    assert numbers(Streams(1, 0).next_for(np.array([3, 4], dtype=np.int32))) == numbers(
        Streams(1, 0).next_for([3, 4])
    )
