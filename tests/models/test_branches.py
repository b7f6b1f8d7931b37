"""Rows are told apart by what they are conditioned on, whatever their place, length and company."""

import itertools

import pytest
import torch
from tests.tiny_families import FAMILIES

from diffmem.errors import MitigationRefused, ModelError
from diffmem.models.conditioning import SHAPE, Conditioning
from diffmem.models.families import denoiser_for
from diffmem.models.pipelines.branches import BranchSorter, distances, halves_of, nearest_branch, read_pass


def rows(*values, name="encoder_hidden_states"):
    return Conditioning({name: torch.stack([torch.as_tensor(v) for v in values])}, len(values))


def drawn(seed, size=2, length=5):
    return rows(*torch.randn(size, length, 3, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("conditional_first", [True, False])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_both_orders_of_one_call_are_known_also_with_rounding(conditional_first, noise):
    with_prompt, without = drawn(1), drawn(2)
    sorter = BranchSorter(with_prompt, without)
    parts = [with_prompt, without] if conditional_first else [without, with_prompt]
    given = Conditioning.cat(parts)
    given = rows(*(given.tensors["encoder_hidden_states"] + noise * drawn(3, 4).tensors["encoder_hidden_states"]))
    assert sorter.conditional_rows(given) == [conditional_first] * 2 + [not conditional_first] * 2
    assert sorter.conditional_rows(parts[0]) == [conditional_first] * 2


def test_equal_branches_come_in_the_usual_order():
    same = drawn(1)
    sorter = BranchSorter(same, same)
    assert sorter.conditional_rows(Conditioning.cat([same, same])) == [False, False, True, True]
    assert sorter.conditional_rows(same) == [True, True]
    assert sorter.conditional_rows(same, expected_first=False) == [False, False]


def test_other_numbers_of_rows_are_refused():
    assert halves_of(4, 2) == [slice(0, 2), slice(2, 4)]
    assert halves_of(2, 2) == [slice(0, 2)]
    assert [halves_of(n, 2) for n in (1, 3, 6)] == [None] * 3
    with pytest.raises(MitigationRefused, match="6 rows for 2 images"):
        BranchSorter(drawn(1), drawn(2)).conditional_rows(drawn(3, 6))


def test_a_shorter_text_length_is_compared_as_far_as_it_goes():
    long, other = drawn(1, 1, 8), drawn(2, 1, 8)
    short = rows(long.tensors["encoder_hidden_states"][0, :4])
    assert BranchSorter(long, other).conditional_rows(short) == [True]
    assert BranchSorter(other, long).conditional_rows(short) == [False]


def test_rows_with_lengths_of_their_own_are_not_mistaken_for_what_they_begin_with():
    """The empty prompt's only token begins every prompt of a causal encoder."""
    prompt = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))

    def ragged(value):
        return Conditioning({"cap": value[None], f"cap{SHAPE}": torch.tensor([list(value.shape)])}, 1)

    whole, empty = ragged(prompt), ragged(prompt[:1])
    rounded = ragged(prompt[:1] + 1e-6)
    sorter = BranchSorter(whole, empty)
    assert sorter.conditional_rows(rounded) == [False]
    assert sorter.conditional_rows(whole) == [True]
    assert nearest_branch(rounded, [whole, empty]) == 1
    assert nearest_branch(Conditioning.cat([whole, empty]).select([1]), [whole, empty]) == 1, (
        "padded beside a longer one"
    )


def test_the_nearest_of_several_branches_and_none_that_lacks_what_was_given():
    known = [drawn(seed, 1) for seed in range(3)]
    assert [nearest_branch(one, known) for one in known] == [0, 1, 2]
    assert float(distances(known[0], known[0])[0]) == 0
    assert torch.isinf(distances(known[0], rows(torch.zeros(1), name="class_labels"))).all()
    assert nearest_branch(Conditioning({}, 1), [Conditioning({}, 1)]) == 0
    labels = [Conditioning({"class_labels": torch.tensor([n])}, 1) for n in (10, 3)]
    assert nearest_branch(labels[1], labels) == 1


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_rows_of_every_family_are_found_in_every_order(name):
    denoiser = denoiser_for(FAMILIES[name]())
    if not (denoiser.conditional and denoiser.unconditional_branch):
        pytest.skip("one branch")
    prompts = ["3", "5"] if name == "dit" else ["a fox", "a much longer description of a hill"]
    with torch.no_grad():
        with_prompt, without = denoiser.encode_prompts(prompts), denoiser.null().expand(2)
    sorter = BranchSorter(with_prompt, without)
    for order in itertools.permutations([with_prompt, without]):
        expected = [part is with_prompt for part in order for _ in range(2)]
        assert sorter.conditional_rows(Conditioning.cat(order)) == expected


def test_a_call_that_cannot_be_read_is_an_error_that_says_so():
    denoiser = denoiser_for(FAMILIES["dit"]())
    with pytest.raises(ModelError, match="cannot be read"):
        read_pass(denoiser, (), {})
