"""Dividing a tray: exact placement, the ledger, scrub and cordon, on both backends."""

import itertools
import json
from importlib.resources import files

import pytest

from bulkhead.attestation.tiers import Tier
from bulkhead.errors import CapacityError, ConflictError, InvalidRequestError, NotFoundError
from data_plane.partitions import HostBackend, SimulatedRackBackend
from data_plane.partitions.rack import StandInMemory
from data_plane.ports import PartitionBackend, PartitionSpec

MIG_BASE = {19: 1, 14: 2, 9: 3, 5: 4, 0: 7}  # profile id -> compute slices, without the variants


def rack(**changes: object) -> SimulatedRackBackend:
    return SimulatedRackBackend(**({"rack": "rack1", "tray": 3, "region": "eu", "process_slots": 2} | changes))


def host() -> HostBackend:
    return HostBackend(rack="rack1", tray=0, region="eu", process_slots=2)


def mig(backend: PartitionBackend, name: str, profile_id: int, start: int, *, gpu: int = 0) -> PartitionSpec:
    inventory = backend.inventory()
    sizes = {profile.profile_id: profile.memory_slices for profile in inventory.mig_profiles}
    return PartitionSpec(
        partition_id=name,
        tenant_id="t",
        tier=Tier.MIG,
        gpu_uuids=(inventory.gpus[gpu].uuid,),
        mig_profile_id=profile_id,
        memory_slice_start=start,
        memory_slices=sizes.get(profile_id, 1),
    )


def process(name: str) -> PartitionSpec:
    return PartitionSpec(partition_id=name, tenant_id="t", tier=Tier.PROCESS)


def whole(backend: PartitionBackend, name: str, *gpus: int) -> PartitionSpec:
    uuids = tuple(backend.inventory().gpus[gpu].uuid for gpu in gpus)
    return PartitionSpec(partition_id=name, tenant_id="t", tier=Tier.GPU, gpu_uuids=uuids)


def test_the_simulated_tray_says_so_everywhere() -> None:
    """Inventory, product, driver version and scrub report of the simulated rack all call themselves simulated."""
    inventory = rack().inventory()
    assert inventory.simulated
    assert all("simulated" in gpu.product for gpu in inventory.gpus)
    assert "simulated" in inventory.driver_version


def test_the_tray_is_the_captured_one() -> None:
    """A tray has four GPUs of 284,208 MiB; uuids are stable across restarts and differ between trays and racks."""
    gpus = rack().inventory().gpus
    assert [gpu.memory_mib for gpu in gpus] == [284_208] * 4
    assert rack().inventory().gpus == gpus
    others = rack(tray=4).inventory().gpus + rack(rack="rack2").inventory().gpus
    assert not {gpu.uuid for gpu in gpus} & {gpu.uuid for gpu in others}


def test_profile_memory_never_exceeds_the_gpu() -> None:
    """Each profile's memory is its share of memory slices of what the board reports."""
    inventory = rack().inventory()
    for profile in inventory.mig_profiles:
        assert profile.memory_mib == 284_208 * profile.memory_slices // 8


def test_every_fact_names_its_source() -> None:
    """The data file says where each of its figures comes from, and which are derived."""
    facts = json.loads(files("data_plane.partitions").joinpath("gb300.json").read_text("utf-8"))
    assert {"gpu", "gpus_per_tray", "profile_id", "max_instances", "starts"} <= facts["sources"].keys()
    assert "derived" in facts["sources"]["starts"]


async def _accepted(backend: SimulatedRackBackend, chosen: tuple[tuple[int, int], ...]) -> bool:
    try:
        for index, (profile_id, start) in enumerate(chosen):
            await backend.create(mig(backend, f"p{index}", profile_id, start))
    except ConflictError:
        return False
    return True


async def test_exactly_the_known_placement_sets_are_accepted() -> None:
    """Of all sets of placements of the five base profiles, 298 fit on one GPU, as enumerated independently."""
    table = {profile.profile_id: profile for profile in rack().inventory().mig_profiles}
    places = [(profile_id, start) for profile_id in MIG_BASE for start in table[profile_id].starts]
    count = 0
    for size in range(8):
        for chosen in itertools.combinations(places, size):
            slices = [s for profile_id, start in chosen for s in range(start, start + table[profile_id].memory_slices)]
            if len(slices) > 8:
                continue
            fits = len(set(slices)) == len(slices) and sum(MIG_BASE[p] for p, _ in chosen) <= 7
            fits = fits and all([p for p, _ in chosen].count(q) <= table[q].max_instances for q in MIG_BASE)
            assert await _accepted(rack(), chosen) is fits
            count += fits
    assert count == 298


async def test_overlap_is_refused_and_leaves_nothing_behind() -> None:
    """An instance over a taken slice is a conflict; the place next to it is still free afterwards."""
    backend = rack()
    await backend.create(mig(backend, "a", 9, 0))
    with pytest.raises(ConflictError):
        await backend.create(mig(backend, "b", 19, 3))
    with pytest.raises(ConflictError):
        await backend.create(whole(backend, "c", 1, 0))
    await backend.create(mig(backend, "d", 9, 4))
    await backend.create(whole(backend, "e", 1))


@pytest.mark.parametrize(
    ("profile_id", "start", "changes"),
    [
        (99, 0, {}),
        (9, 2, {}),
        (9, 0, {"memory_slices": 3}),
        (9, 0, {"memory_mib": 142_336}),
        (19, 7, {}),
        (9, 0, {"gpu_uuids": ("GPU-of-somewhere-else",)}),
        (9, 0, {"gpu_uuids": ()}),
    ],
)
async def test_unknown_geometry_is_refused(profile_id: int, start: int, changes: dict[str, object]) -> None:
    """A profile, start, size, amount of memory or GPU that the tray does not have is invalid, never approximated."""
    backend = rack()
    spec = mig(backend, "a", profile_id, start)
    changed = PartitionSpec(**{name: getattr(spec, name) for name in PartitionSpec.__slots__} | changes)
    with pytest.raises(InvalidRequestError):
        await backend.create(changed)


async def test_a_mig_partition_never_spans_gpus() -> None:
    """MIG has no peer-to-peer, so two GPUs for one MIG partition are refused."""
    backend = rack()
    spec = mig(backend, "a", 9, 0)
    both = tuple(gpu.uuid for gpu in backend.inventory().gpus[:2])
    with pytest.raises(InvalidRequestError):
        await backend.create(
            PartitionSpec(**{n: getattr(spec, n) for n in PartitionSpec.__slots__} | {"gpu_uuids": both})
        )


async def test_a_gpu_named_twice_is_refused() -> None:
    """Two times the same GPU is not two GPUs."""
    backend = rack()
    with pytest.raises(InvalidRequestError):
        await backend.create(whole(backend, "a", 2, 2))


async def test_what_a_partition_got_names_its_own_devices() -> None:
    """A GPU partition names its GPUs; two MIG instances of one GPU have different uuids, which are not the GPU's."""
    backend = rack()
    first = await backend.create(mig(backend, "a", 9, 0))
    second = await backend.create(mig(backend, "b", 9, 4))
    assert first.memory_mib == second.memory_mib == 142_104
    assert first.device_uuids != second.device_uuids
    assert first.device_uuids[0].startswith("MIG-")
    gpu = await backend.create(whole(backend, "c", 1, 2))
    assert gpu.device_uuids == tuple(backend.inventory().gpus[index].uuid for index in (1, 2))
    assert gpu.memory_mib == 2 * 284_208


class ForgetfulMemory(StandInMemory):
    """Memory whose clearing leaves a byte behind."""

    def clear(self, slices: range) -> None:
        """Clear, but for one byte."""
        super().clear(slices)
        self._slices[slices[0]][17] = 1


async def test_scrub_clears_what_the_partition_held_and_frees_its_place() -> None:
    """After a proven scrub the place can be taken again, and the report calls itself simulated."""
    backend = rack()
    await backend.create(mig(backend, "a", 0, 0))
    report = await backend.scrub("a")
    assert report.proven
    assert report.simulated
    await backend.create(mig(backend, "b", 0, 0))


async def test_scrub_touches_no_neighbour() -> None:
    """Scrubbing one instance leaves the memory of the one beside it as it was."""
    memories: list[StandInMemory] = []

    def memory(**arguments: int) -> StandInMemory:
        memories.append(StandInMemory(**arguments))
        return memories[-1]

    backend = rack(memory=memory)
    await backend.create(mig(backend, "a", 9, 0))
    await backend.create(mig(backend, "b", 9, 4))
    before = [bytes(content) for content in memories[0]._slices[4:]]
    await backend.scrub("a")
    assert memories[0].is_clear(range(4))
    assert [bytes(content) for content in memories[0]._slices[4:]] == before


async def test_a_scrub_that_cannot_be_proven_cordons() -> None:
    """Memory that still holds a byte after clearing is reported unproven, and its place is not given out again."""
    backend = rack(memory=ForgetfulMemory)
    await backend.create(mig(backend, "a", 9, 0))
    report = await backend.scrub("a")
    assert not report.proven
    with pytest.raises(ConflictError):
        await backend.create(mig(backend, "b", 9, 0))
    assert not (await backend.scrub("a")).proven
    await backend.create(mig(backend, "c", 9, 4))


@pytest.mark.parametrize("backend", [rack(), host()], ids=["rack", "host"])
async def test_process_slots_are_counted(backend: PartitionBackend) -> None:
    """One partition more than slots is refused until one is scrubbed; an id is used once at a time."""
    await backend.create(process("a"))
    with pytest.raises(ConflictError):
        await backend.create(process("a"))
    await backend.create(process("b"))
    with pytest.raises(CapacityError):
        await backend.create(process("c"))
    assert (await backend.scrub("a")).proven
    await backend.create(process("c"))
    await backend.cordon("c")
    assert not (await backend.scrub("c")).proven
    with pytest.raises(CapacityError):
        await backend.create(process("d"))


@pytest.mark.parametrize("backend", [rack(), host()], ids=["rack", "host"])
async def test_scrubbing_or_cordoning_a_stranger_is_not_found(backend: PartitionBackend) -> None:
    """A partition that is not there can be neither scrubbed nor cordoned."""
    with pytest.raises(NotFoundError):
        await backend.scrub("nobody")
    with pytest.raises(NotFoundError):
        await backend.cordon("nobody")


@pytest.mark.parametrize("tier", [Tier.MIG, Tier.GPU, Tier.CONFIDENTIAL])
async def test_the_host_offers_processes_only(tier: Tier) -> None:
    """A plain host refuses every tier above process and reports itself as not simulated."""
    assert not host().inventory().simulated
    with pytest.raises(InvalidRequestError):
        await host().create(PartitionSpec(partition_id="a", tenant_id="t", tier=tier))


async def test_no_tray_offers_the_confidential_tier() -> None:
    """The simulated rack refuses tier confidential: nothing here could show it."""
    with pytest.raises(InvalidRequestError):
        await rack().create(PartitionSpec(partition_id="a", tenant_id="t", tier=Tier.CONFIDENTIAL))
