from collections import deque
from dataclasses import replace
from itertools import pairwise

import pytest

from bulkhead.errors import UnsupportedError
from control_plane.placement.geometry import (
    BASE_PROFILE_IDS,
    KNOWN_GEOMETRY,
    MAX_COMPUTE_SLICES,
    MigProfile,
    Occupancy,
    check_profiles,
    feasible_starts,
    potential,
    smallest_profile,
)

GB300_MIB = 284_208
SLICE_MIB = 35_584


def gb300_profiles(ids=(19, 15, 14, 9, 5, 0)) -> list[MigProfile]:
    return [
        MigProfile(
            profile_id=number,
            compute_slices=known.compute_slices,
            memory_slices=known.memory_slices,
            memory_mib=SLICE_MIB * known.memory_slices,
            max_instances=known.max_instances,
            starts=known.starts,
        )
        for number, known in KNOWN_GEOMETRY.items()
        if number in ids
    ]


def occupancy_of(instances) -> Occupancy:
    occupancy = Occupancy()
    for number, start in instances:
        occupancy = occupancy.adding(KNOWN_GEOMETRY[number], start)
    return occupancy


def reachable_sets(ids) -> tuple[set[frozenset[tuple[int, int]]], int]:
    """Every placement set that feasible_starts allows, and how many of them are maximal."""
    seen = {frozenset()}
    queue = deque(seen)
    maximal = 0
    while queue:
        instances = queue.popleft()
        steps = [(number, start) for number in ids for start in feasible_starts(occupancy_of(instances), number)]
        maximal += not steps
        for step in steps:
            larger = instances | {step}
            if larger not in seen:
                seen.add(larger)
                queue.append(larger)
    return seen, maximal


def test_placement_sets_of_the_base_table_are_298_of_which_19_are_maximal() -> None:
    """The 1g/2g/3g/4g/7g table allows exactly the published numbers of placement sets."""
    sets, maximal = reachable_sets(BASE_PROFILE_IDS)
    assert (len(sets), maximal) == (298, 19)


def test_placement_sets_with_the_double_memory_1g_are_723_of_which_78_are_maximal() -> None:
    """Profile 15 (1g with two memory slices) gives the independently enumerated numbers."""
    sets, maximal = reachable_sets(BASE_PROFILE_IDS | {15})
    assert (len(sets), maximal) == (723, 78)


def test_no_reachable_set_overlaps_or_exceeds_compute_or_instances() -> None:
    """Checked from the definition: disjoint memory slices, at most 7 compute slices, at most max_instances each."""
    sets, _ = reachable_sets(BASE_PROFILE_IDS | {15})
    for instances in sets:
        slices = [s for n, start in instances for s in range(start, start + KNOWN_GEOMETRY[n].memory_slices)]
        assert len(slices) == len(set(slices))
        assert sum(KNOWN_GEOMETRY[n].compute_slices for n, _ in instances) <= MAX_COMPUTE_SLICES
        for number, known in KNOWN_GEOMETRY.items():
            assert sum(n == number for n, _ in instances) <= known.max_instances


def test_3g_at_0_leaves_one_2g_and_3g_at_4_leaves_two() -> None:
    """The start matters, so that placement must be explicit: 3g+2g+2g exists only with the 3g at slice 4."""
    for start, twos in ((0, 1), (4, 2)):
        occupancy = occupancy_of([(9, start)])
        count = 0
        while free := feasible_starts(occupancy, 14):
            occupancy = occupancy.adding(KNOWN_GEOMETRY[14], free[0])
            count += 1
        assert count == twos


def test_smaller_profile_stands_wherever_a_larger_one_does() -> None:
    """Trying only the smallest fitting profile rejects nothing that a larger one could take."""
    by_size = sorted((p for p in gb300_profiles()), key=lambda p: (p.memory_slices, p.compute_slices, p.profile_id))
    sets, _ = reachable_sets(BASE_PROFILE_IDS | {15})
    for instances in sets:
        occupancy = occupancy_of(instances)
        for small, large in pairwise(by_size):
            assert not feasible_starts(occupancy, large.profile_id) or feasible_starts(occupancy, small.profile_id)


def test_potential_falls_with_every_instance() -> None:
    """Fragmentation is a positive cost for any legal step."""
    sets, _ = reachable_sets(BASE_PROFILE_IDS)
    for instances in sets:
        occupancy = occupancy_of(instances)
        for number in BASE_PROFILE_IDS:
            for start in feasible_starts(occupancy, number):
                assert potential(occupancy.adding(KNOWN_GEOMETRY[number], start)) < potential(occupancy)


@pytest.mark.parametrize(
    ("memory_mib", "profile_id"),
    [(1, 19), (35_584, 19), (35_585, 15), (71_169, 9), (142_337, 0), (284_672, 0)],
)
def test_smallest_profile_holds_the_model(memory_mib: int, profile_id: int) -> None:
    """The fewest memory slices, then the fewest compute slices, that hold the model."""
    chosen = smallest_profile(gb300_profiles(), memory_mib)
    assert chosen is not None
    assert chosen.profile_id == profile_id


def test_no_profile_holds_a_model_above_the_gpu() -> None:
    """A model larger than the GPU has no MIG profile."""
    assert smallest_profile(gb300_profiles(), 284_673) is None


def test_media_profile_is_never_chosen() -> None:
    """Profile 20 spends the GPU's media engines, of which inference has no use."""
    chosen = smallest_profile(gb300_profiles(ids=(20, 14)), 100)
    assert chosen is not None
    assert chosen.profile_id == 14


def test_known_inventory_is_accepted() -> None:
    """The GB300 table, with and without the optional profiles."""
    assert len(check_profiles(gb300_profiles(), gpu_memory_mib=GB300_MIB)) == 6
    assert len(check_profiles(gb300_profiles(ids=(19, 14, 9, 5, 0)), gpu_memory_mib=GB300_MIB)) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"memory_slices": 3},
        {"compute_slices": 4},
        {"starts": (0, 2)},
        {"starts": (0, 4, 4)},
        {"starts": ()},
        {"max_instances": 3},
        {"profile_id": 99},
        {"profile_id": 0},
        {"memory_mib": 0},
        {"memory_mib": 160_000},
    ],
)
def test_departing_geometry_is_refused(change: dict) -> None:
    """A 3g profile that differs from the table in any field, or repeats another id, refuses the whole inventory."""
    profiles = [replace(p, **change) if p.profile_id == 9 else p for p in gb300_profiles()]
    with pytest.raises(UnsupportedError):
        check_profiles(profiles, gpu_memory_mib=GB300_MIB)


def test_missing_base_profile_is_refused() -> None:
    """A table without 3g is not the board that placement plans for."""
    with pytest.raises(UnsupportedError, match=r"\[9\]"):
        check_profiles(gb300_profiles(ids=(19, 14, 5, 0)), gpu_memory_mib=GB300_MIB)
