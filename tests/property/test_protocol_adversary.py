"""Client and worker machines with an adversary on every wire between them.

The adversary sees all messages of two sessions of one tenant, may deliver any of them anywhere, in any order, any
number of times, altered, cut or spliced together, or not at all. Whatever it does, a request ends complete, with
exactly the payload and the records that were sent, or it fails with an error of the sealed protocol.
"""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bulkhead.errors import (
    BulkheadError,
    InvalidRequestError,
    QueueFullError,
    SealError,
    TicketError,
    TruncatedError,
)
from bulkhead.protocol.client import ClientRequest, Complete
from bulkhead.protocol.context import Method
from bulkhead.protocol.envelope import Envelope
from bulkhead.protocol.payloads import Delta, End, Failure, Record, Usage
from bulkhead.protocol.server import ServerRequest
from tests.simulator.sealed_world import NOW_S, World

PAYLOADS = (b"", b"short", bytes(70_000))
TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=8)
PICK = st.integers(min_value=0, max_value=10**6)
EXPECTED_ERRORS = (SealError, TicketError, InvalidRequestError)


@dataclass
class Served:
    """A request that the worker opened."""

    machine: ServerRequest
    records: list[Record] = field(default_factory=list)
    out: list[bytes] = field(default_factory=list)
    opened: int = 0
    whole: bool = False
    broken: bool = False

    @property
    def answering(self) -> bool:
        """Whether the worker may still say something."""
        return self.whole and not self.broken and not self.ended

    @property
    def ended(self) -> bool:
        """Whether the last record was said."""
        return bool(self.records) and not isinstance(self.records[-1], Delta)

    @property
    def unfinished(self) -> bool:
        """Whether only the receipt is missing."""
        return self.ended and not self.broken and len(self.out) == len(self.records)


@dataclass
class Sent:
    """A request that a client made."""

    machine: ClientRequest
    payload: bytes
    got: list[Record] = field(default_factory=list)
    source: ServerRequest | None = None
    broken: bool = False

    @property
    def received(self) -> int:
        """Chunks that opened so far."""
        return len(self.got) + self.machine.complete


class Adversary(RuleBasedStateMachine):
    """Everything goes through ``wire``: (kind, bytes) of all that was ever sent."""

    worlds: tuple[World, World]
    completed = 0
    refused = 0

    @initialize()
    def open_sessions(self):
        """Two sessions of one tenant on one worker."""
        self.server = self.worlds[0].make_server()
        self.clients = [world.client(world.verified) for world in self.worlds]
        self.sent: list[Sent] = []
        self.served: list[Served] = []
        self.opened_envelopes: set[bytes] = set()
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.randoms: list[bytes] = []
        self.envelopes: list[bytes] = []

    @rule(client=st.booleans(), payload=st.sampled_from(PAYLOADS))
    def begin(self, client, payload):
        """A client sends a request; the adversary has it."""
        machine = self.clients[client].begin(Method.GENERATE, payload, now_s=NOW_S)
        self.sent.append(Sent(machine, payload))
        self.envelopes.append(machine.envelope)
        self.up.extend(machine.chunks)

    @precondition(lambda self: self.envelopes)
    @rule(pick=PICK, flip=st.none() | PICK)
    def deliver_envelope(self, pick, flip):
        """Any envelope reaches the worker, any number of times, whole or altered."""
        envelope = self._altered(self.envelopes[pick % len(self.envelopes)], flip)
        try:
            machine = self.server.open(envelope, now_s=NOW_S)
        except EXPECTED_ERRORS:
            return
        assert envelope in self.envelopes, "an altered envelope opened"
        assert envelope not in self.opened_envelopes, "an envelope opened twice"
        self.opened_envelopes.add(envelope)
        self.served.append(Served(machine))
        self.randoms.append(machine.worker_random)

    @precondition(lambda self: len(self.envelopes) > 1)
    @rule(one=PICK, other=PICK, part=st.sampled_from(["ticket", "key_id", "sequence", "request_id", "sealed_secret"]))
    def splice_envelopes(self, one, other, part):
        """A part of one envelope in another never opens, unless it is the same part."""
        base, donor = (Envelope.parse(self.envelopes[pick % len(self.envelopes)]) for pick in (one, other))
        spliced = replace(base, **{part: getattr(donor, part)})
        if spliced == base:
            return
        with pytest.raises(EXPECTED_ERRORS):
            self.server.open(spliced.encode(), now_s=NOW_S)

    @precondition(lambda self: self.served and self.up)
    @rule(at=PICK, pick=PICK, flip=st.none() | PICK, backwards=st.booleans())
    def deliver_request_chunk(self, at, pick, flip, backwards):
        """Any chunk of either direction reaches any opened request."""
        pool = self.down if backwards and self.down else self.up
        self._request_chunk(self.served[at % len(self.served)], self._altered(pool[pick % len(pool)], flip))

    @precondition(lambda self: self.served)
    @rule(at=PICK)
    def deliver_honest_request(self, at):
        """The rest of a request arrives as it was sent."""
        served = self.served[at % len(self.served)]
        if not served.broken:
            for chunk in self._origin(served).machine.chunks[served.opened :]:
                self._request_chunk(served, chunk)
            assert served.whole

    @precondition(lambda self: any(served.answering for served in self.served))
    @rule(at=PICK, text=TEXTS, step=st.sampled_from(["delta", "delta", "end", "fail"]))
    def answer(self, at, text, step):
        """The worker says something; the adversary has it."""
        ready = [served for served in self.served if served.answering]
        served = ready[at % len(ready)]
        match step:
            case "delta":
                record: Record = Delta(text=text, tokens=1)
                chunk = served.machine.send(record)
            case "end":
                record = End(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=len(served.records)))
                chunk = served.machine.end(record)
            case _:
                error = QueueFullError(text)
                record, chunk = Failure.of(error), served.machine.fail(error)
        served.records.append(record)
        served.out.append(chunk)
        self.down.append(chunk)

    @precondition(lambda self: any(served.unfinished for served in self.served))
    @rule(at=PICK)
    def finish(self, at):
        """The worker releases a receipt."""
        ready = [served for served in self.served if served.unfinished]
        served = ready[at % len(ready)]
        served.machine.make_receipt(ts_us=1)
        served.out.append(served.machine.finish())
        self.down.append(served.out[-1])

    @precondition(lambda self: self.sent and self.randoms)
    @rule(at=PICK, pick=PICK, flip=st.none() | PICK)
    def deliver_random(self, at, pick, flip):
        """Any opening bytes reach any client request."""
        sent = self.sent[at % len(self.sent)]
        random_bytes = self._altered(self.randoms[pick % len(self.randoms)], flip)
        try:
            sent.machine.accept(random_bytes)
        except SealError:
            sent.broken = True
            return
        for served in self.served:
            if self._origin(served) is sent and served.machine.worker_random == random_bytes:
                sent.source = served.machine

    @precondition(lambda self: self.sent and self.down)
    @rule(at=PICK, pick=PICK, flip=st.none() | PICK, backwards=st.booleans())
    def deliver_response_chunk(self, at, pick, flip, backwards):
        """Any chunk of either direction reaches any client request."""
        pool = self.up if backwards else self.down
        self._response_chunk(self.sent[at % len(self.sent)], self._altered(pool[pick % len(pool)], flip))

    @precondition(lambda self: self.sent and self.served)
    @rule(at=PICK)
    def deliver_honest_response(self, at):
        """The rest of a response arrives as it was sent; nothing of an honest wire is ever refused."""
        served = self.served[at % len(self.served)]
        sent = self._origin(served)
        if sent.machine.resendable and not sent.broken:
            sent.machine.accept(served.machine.worker_random)
            sent.source = served.machine
        if sent.source is served.machine and not sent.broken:
            for chunk in served.out[sent.received :]:
                self._response_chunk(sent, chunk)
            assert not sent.broken
            assert sent.received == len(served.out)

    @precondition(lambda self: self.sent)
    @rule(at=PICK, steps=st.integers(1, 12), fails=st.booleans())
    def leave_alone(self, at, steps, fails):
        """For a while the adversary forwards one request faithfully."""
        sent = self.sent[at % len(self.sent)]
        for _ in range(steps):
            place = next((place for place, served in enumerate(self.served) if self._origin(served) is sent), None)
            if place is None:
                self.deliver_envelope(pick=self.envelopes.index(sent.machine.envelope), flip=None)
                continue
            served = self.served[place]
            self.deliver_honest_request(at=place)
            if served.answering:
                ready = [other for other in self.served if other.answering]
                step = "delta" if not served.records else "fail" if fails else "end"
                self.answer(at=ready.index(served), text="text", step=step)
            elif served.unfinished:
                self.finish(at=[other for other in self.served if other.unfinished].index(served))
            self.deliver_honest_response(at=place)

    @precondition(lambda self: self.sent)
    @rule(at=PICK)
    def cut(self, at):
        """The stream ends here: the client has a receipt of a whole answer, or a typed error."""
        sent = self.sent[at % len(self.sent)]
        if sent.machine.complete:
            assert sent.machine.end_of_stream().receipt
            return
        failed = bool(sent.got) and isinstance(sent.got[-1], Failure) and not sent.broken
        with pytest.raises(QueueFullError if failed else TruncatedError):
            sent.machine.end_of_stream()
        sent.broken = sent.broken or not failed

    @invariant()
    def what_is_complete_is_authentic(self):
        """A complete answer is exactly what one worker request was asked and said."""
        for sent in getattr(self, "sent", []):
            if sent.machine.complete:
                sources = [served for served in self.served if self._origin(served) is sent]
                assert len(sources) == 1
                assert sources[0].machine.payload == sent.payload
                assert sources[0].records == sent.got

    @invariant()
    def what_arrived_is_a_prefix(self):
        """Even an incomplete answer holds only records that the worker said, from the first, in order."""
        for sent in getattr(self, "sent", []):
            if sent.got:
                sources = [served for served in self.served if self._origin(served) is sent]
                assert any(served.records[: len(sent.got)] == sent.got for served in sources)

    def _origin(self, served):
        return next(sent for sent in self.sent if sent.machine.request_id == served.machine.info.request_id)

    def _altered(self, data, flip):
        """Return ``data`` unchanged, cut at ``flip``, or with one bit flipped there."""
        if flip is None:
            return data
        place = flip % len(data)
        if flip % 3 == 0:
            return data[:place]
        return data[:place] + bytes([data[place] ^ 1 << flip % 8]) + data[place + 1 :]

    def _request_chunk(self, served, chunk):
        origin = self._origin(served)
        expected = origin.machine.chunks[served.opened :][:1]
        try:
            served.whole = served.machine.receive(chunk)
        except SealError:
            served.broken = True
            return
        assert (chunk,) == expected, "a chunk opened out of its place"
        served.opened += 1

    def _response_chunk(self, sent, chunk):
        try:
            event = sent.machine.receive(chunk)
        except SealError:
            sent.broken = True
            Adversary.refused += 1
            return
        assert chunk in self.down, "an altered or reflected chunk opened"
        if isinstance(event, Complete):
            Adversary.completed += 1
        else:
            sent.got.append(event)


def run(examples, steps):
    first = World(seed=1)
    second = World(seed=2, tenant=first.tenant)
    for name in ("issuer", "partition", "keys", "authority"):
        setattr(second, name, getattr(first, name))
    for world in (first, second):
        world.verified = world.grant()
    Adversary.worlds = (first, second)
    run_state_machine_as_test(
        Adversary,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_every_run_ends_authentic_or_in_a_typed_error():
    """No order of drops, copies, swaps, cuts, flips and splices yields an answer that was not given."""
    Adversary.completed = Adversary.refused = 0
    run(examples=120, steps=40)
    assert Adversary.completed > 20, "the runs must reach whole answers, not only refusals"
    assert Adversary.refused > 100


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_long_run_ends_authentic_or_in_a_typed_error():
    """The same over a hundred thousand steps."""
    run(examples=1_000, steps=100)


def test_errors_are_in_the_tree():
    """The errors that the adversary may cause are all Bulkhead's."""
    assert all(issubclass(error, BulkheadError) for error in (*EXPECTED_ERRORS, TruncatedError))
