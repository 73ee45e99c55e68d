"""The split: by parent, the same whatever the order, one range each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sim2or_dataset.split import train_first, validation_parents

PARENTS = st.lists(st.sampled_from([f"p{i}" for i in range(30)]), min_size=1, max_size=80)


@given(PARENTS, st.floats(0, 0.9), st.integers(0, 5), st.randoms())
def test_siblings_stay_together(parents, fraction, seed, random):
    """No parent is in both splits, nothing is lost, and the choice does not depend on the order."""
    held_out = validation_parents(parents, fraction, seed)
    order, train = train_first(parents, held_out)
    assert sorted(order) == list(range(len(parents)))
    assert {parents[i] for i in order[:train]}.isdisjoint({parents[i] for i in order[train:]})
    shuffled = list(parents)
    random.shuffle(shuffled)
    assert validation_parents(shuffled, fraction, seed) == held_out


def test_share_held_out():
    """A tenth of twenty parents is two, of three still one, of one none; a zero fraction is none."""
    assert len(validation_parents([f"{i}" for i in range(20)], 0.1, 0)) == 2
    assert len(validation_parents(["a", "b", "c"], 0.1, 0)) == 1
    assert not validation_parents(["a", "a"], 0.5, 0)
    assert not validation_parents(["a", "b"], 0.0, 0)
