"""Client and worker machines with an adversary on every wire between them.

The adversary sees all messages of two sessions of one tenant with a root, one padded ``default`` and one ``strict``, on
two generations of a worker's keys. He may deliver any message anywhere, in any order, any number of times, altered, cut
or spliced together, or not at all; he may strike once at clocks, keys or tickets. Whatever he does, a request ends
complete, with exactly the payload and the records that were sent, or with the one error that his move deserves.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, seed, settings
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
    CertificateError,
    CertificateKeyError,
    ChunkReflectedError,
    ChunkReorderedError,
    ChunkRepeatedError,
    ClockSkewError,
    InvalidRequestError,
    KeyMismatchError,
    MalformedRequestError,
    QueueFullError,
    ReplayError,
    SealError,
    SignatureError,
    StaleKeyError,
    TicketError,
    TicketExpiredError,
    TicketRevokedError,
    TruncatedError,
)
from bulkhead.protocol.client import ClientRequest, Complete
from bulkhead.protocol.context import Method
from bulkhead.protocol.envelope import Envelope
from bulkhead.protocol.payloads import Delta, End, Failure, Record, Usage
from bulkhead.protocol.server_request import ServerRequest
from bulkhead.sealing import PaddingMode, WorkerKeys
from tests.simulator.sealed_world import NOW_S, World

PAYLOADS = (b"", b"short", bytes(140_000))
TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=8)
PICK = st.integers(min_value=0, max_value=10**6)
FLIP = st.none() | st.none() | PICK  # messages are altered now and then, and more often only misdelivered
ALTERED = (CertificateError, SealError, TicketError, InvalidRequestError)
FATES = ("calm", "calm", "behind", "ahead", "rotated", "revoked")
SPLICED = ("ticket", "certificate", "key_id", "sequence", "request_id", "sealed_secret")


@dataclass
class Served:
    """A request that the worker opened; ``out`` holds each chunk with its record, None for filling and receipt."""

    machine: ServerRequest
    out: list[tuple[bytes, Record | None]] = field(default_factory=list)
    opened: int = 0
    whole: bool = False
    broken: bool = False
    finished: bool = False

    @property
    def records(self) -> list[Record]:
        """What was said."""
        return [record for _, record in self.out if record is not None]

    @property
    def ended(self) -> bool:
        """Whether the last record was said."""
        return bool(self.records) and not isinstance(self.records[-1], Delta)

    @property
    def answering(self) -> bool:
        """Whether the worker may still say something."""
        return self.whole and not self.broken and not self.ended

    @property
    def unfinished(self) -> bool:
        """Whether only the receipt is missing."""
        return self.ended and not self.broken and not self.finished


@dataclass
class Sent:
    """A request that a client made."""

    machine: ClientRequest
    payload: bytes
    generation: int
    got: list[Record] = field(default_factory=list)
    source: Served | None = None
    opened: int = 0
    broken: bool = False


class Adversary(RuleBasedStateMachine):
    """Everything goes through ``envelopes``, ``up``, ``down`` and ``randoms``: all that was ever sent."""

    worlds: tuple[World, World]
    keys: tuple[WorkerKeys, WorkerKeys]
    seen: Counter[str]

    @initialize(fate=st.sampled_from(FATES))
    def open_sessions(self, fate):
        """Two sessions of one tenant on one worker, each under both generations of keys."""
        self.fate, self.struck = fate, False
        self.now_s = NOW_S - 90 if fate == "behind" else NOW_S
        for world in self.worlds:
            world.revoked = set()
        self.server = self.worlds[0].make_server()
        self.server.add_keys(self.keys[1])
        self.server.retire_keys = self._retire  # destroying them would end the runs after this one
        self.clients = [[world.client(grant) for grant in world.grants] for world in self.worlds]
        self.sent: list[Sent] = []
        self.served: list[Served] = []
        self.opened_envelopes: set[bytes] = set()
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.randoms: list[bytes] = []

    def _retire(self, key_id):
        self.server._keys = {known: held for known, held in self.server._keys.items() if known != key_id}
        self.server._replay.forget(key_id)

    @invariant()
    def count_steps(self):
        """Count what is done over all runs."""
        self.seen["steps"] += 1
        self.moves = getattr(self, "moves", 0) + 1

    @rule(session=st.integers(0, 1), generation=st.integers(0, 1), payload=st.sampled_from(PAYLOADS))
    def begin(self, session, generation, payload):
        """A client sends a request; the adversary has it."""
        machine = self.clients[session][generation].begin(Method.GENERATE, payload, now_s=NOW_S)
        self.sent.append(Sent(machine, payload, generation))
        self.up.extend(machine.chunks)

    @precondition(lambda self: self.fate != "calm" and not self.struck and len(self.served) + len(self.sent) > 4)
    @rule()
    def strike(self):
        """Once in a run: clocks are set, keys destroyed, a session revoked."""
        self.struck = True
        match self.fate:
            case "behind":
                self.now_s = NOW_S
            case "ahead":
                self.now_s = NOW_S + 300
            case "rotated":
                self.server.retire_keys(self.keys[0].key_id)
            case "revoked":
                self.worlds[0].revoked.add(self.worlds[0].session)

    @precondition(lambda self: self.struck and self.fate == "ahead")
    @rule()
    def set_clock_back(self):
        """The worker's clock is set back, which revives nothing."""
        self.now_s = NOW_S

    @precondition(lambda self: self.sent)
    @rule(pick=PICK, flip=FLIP)
    def deliver_envelope(self, pick, flip):
        """Any envelope reaches the worker, any number of times, whole or altered."""
        sent = self.sent[pick % len(self.sent)]
        envelope = self._altered(sent.machine.envelope, flip)
        if envelope != sent.machine.envelope:
            with pytest.raises(ALTERED):
                self.server.open(envelope, now_s=self.now_s)
            self.seen["altered envelope"] += 1
            return
        expected = self._ticket_error(sent) or (ReplayError if envelope in self.opened_envelopes else None)
        if expected is not None:
            self._refused(expected, lambda: self.server.open(envelope, now_s=self.now_s))
            return
        machine = self.server.open(envelope, now_s=self.now_s)
        self.opened_envelopes.add(envelope)
        self.served.append(Served(machine))
        self.randoms.append(machine.worker_random)

    @precondition(lambda self: len(self.sent) > 1)
    @rule(one=PICK, other=PICK, part=st.sampled_from(SPLICED))
    def splice_envelopes(self, one, other, part):
        """A part of one envelope in another never opens, unless it is the same part."""
        first, second = (self.sent[pick % len(self.sent)] for pick in (one, other))
        base, donor = Envelope.parse(first.machine.envelope), Envelope.parse(second.machine.envelope)
        spliced = replace(base, **{part: getattr(donor, part)})
        if spliced != base:
            expected = self._ticket_error(second if part == "ticket" else first)
            if expected is None and part in {"ticket", "key_id"} and base.key_id != donor.key_id:
                expected = KeyMismatchError
            sessions = {sent.machine._grant.claims.session for sent in (first, second)}
            if expected is None and part in {"ticket", "certificate"} and len(sessions) > 1:
                expected = CertificateKeyError
            self._refused(expected or SignatureError, lambda: self.server.open(spliced.encode(), now_s=self.now_s))
            self.seen["splice"] += 1

    @precondition(lambda self: self.sent and self.moves % 4 == 0)
    @rule(pick=PICK, version=st.integers(0, 255).filter(lambda version: version != 1))
    def downgrade_envelope(self, pick, version):
        """An envelope of another version is refused before anything else of it is read."""
        envelope = self.sent[pick % len(self.sent)].machine.envelope
        self._refused(
            MalformedRequestError, lambda: self.server.open(bytes([version]) + envelope[1:], now_s=self.now_s)
        )
        self.seen["downgrade"] += 1

    @precondition(lambda self: self.served and self.up)
    @rule(at=PICK, pick=PICK, flip=FLIP, backwards=st.booleans())
    def deliver_request_chunk(self, at, pick, flip, backwards):
        """Any chunk of either direction reaches any opened request."""
        pool = self.down if backwards and self.down else self.up
        self._request_chunk(self.served[at % len(self.served)], self._altered(pool[pick % len(pool)], flip))

    @precondition(lambda self: any(not served.whole and not served.broken for served in self.served))
    @rule(at=PICK, pick=PICK)
    def misplace_request_chunk(self, at, pick):
        """A chunk of the request itself comes at any place."""
        ready = [served for served in self.served if not served.whole and not served.broken]
        served = ready[at % len(ready)]
        chunks = self._origin(served).machine.chunks
        self._request_chunk(served, chunks[-1 - pick % len(chunks)])

    @precondition(lambda self: any(served.answering for served in self.served))
    @rule(at=PICK, text=TEXTS, step=st.sampled_from(["delta", "delta", "end", "fail"]))
    def answer(self, at, text, step):
        """The worker says something; the adversary has it."""
        ready = [served for served in self.served if served.answering]
        self._answer(ready[at % len(ready)], text, step)

    @precondition(lambda self: any(self._fillable(served) for served in self.served))
    @rule(at=PICK)
    def fill(self, at):
        """The worker fills its place in time."""
        ready = [served for served in self.served if self._fillable(served)]
        self._out(ready[at % len(ready)], ready[at % len(ready)].machine.fill(), None)

    @precondition(lambda self: any(served.unfinished for served in self.served))
    @rule(at=PICK)
    def finish(self, at):
        """The worker releases a receipt."""
        ready = [served for served in self.served if served.unfinished]
        self._finish(ready[at % len(ready)])

    @precondition(lambda self: self.sent and self.randoms)
    @rule(at=PICK, pick=PICK, flip=FLIP)
    def deliver_random(self, at, pick, flip):
        """Any opening bytes reach any client request."""
        self._random(self.sent[at % len(self.sent)], self._altered(self.randoms[pick % len(self.randoms)], flip))

    @precondition(lambda self: self.sent and self.down)
    @rule(at=PICK, pick=PICK, flip=FLIP, backwards=st.booleans())
    def deliver_response_chunk(self, at, pick, flip, backwards):
        """Any chunk of either direction reaches any client request."""
        pool = self.up if backwards else self.down
        self._response_chunk(self.sent[at % len(self.sent)], self._altered(pool[pick % len(pool)], flip))

    @precondition(lambda self: any(self._reading(sent) for sent in self.sent))
    @rule(at=PICK, pick=PICK, pool=st.sampled_from(["own", "all", "later"]))
    def misplace_response_chunk(self, at, pick, pool):
        """A chunk of the response itself, or of the client's own request, comes at any place."""
        ready = [sent for sent in self.sent if self._reading(sent)]
        sent = ready[at % len(ready)]
        chunks = [chunk for chunk, _ in sent.source.out]
        if pool == "own":
            chunks = list(sent.machine.chunks)
        elif pool == "later":
            chunks = chunks[sent.opened + 1 :] or chunks
        self._response_chunk(sent, chunks[pick % len(chunks)])

    @precondition(lambda self: self.sent)
    @rule(at=PICK, steps=st.integers(1, 12), fails=st.booleans(), ahead=st.booleans())
    def leave_alone(self, at, steps, fails, ahead):
        """For a while the adversary forwards one request faithfully; nothing of an honest wire is ever refused."""
        sent = self.sent[at % len(self.sent)]
        for _ in range(steps):
            served = next((served for served in self.served if self._origin(served) is sent), None)
            if served is None:
                self.deliver_envelope(pick=self.sent.index(sent), flip=None)
                continue
            while not served.broken and not served.whole:
                self._request_chunk(served, sent.machine.chunks[served.opened])
            if served.answering:
                self._answer(served, "text", "delta" if len(served.records) < 2 else "fail" if fails else "end")
            elif served.unfinished:
                self._finish(served)
            if self._fillable(served):
                self._out(served, served.machine.fill(), None)
            if sent.machine.resendable and not sent.broken:
                self._random(sent, served.machine.worker_random)
            while sent.source is served and not sent.broken and sent.opened < len(served.out) - ahead:
                self._response_chunk(sent, served.out[sent.opened][0])

    @precondition(lambda self: self.sent and self.moves % 4 == 0)
    @rule(at=PICK)
    def cut(self, at):
        """The stream ends here: the client has a receipt of a whole answer, or a typed error."""
        sent = self.sent[at % len(self.sent)]
        if sent.machine.complete:
            assert sent.machine.end_of_stream().receipt
            return
        failed = bool(sent.got) and isinstance(sent.got[-1], Failure) and not sent.broken
        self._refused(QueueFullError if failed else TruncatedError, sent.machine.end_of_stream)
        sent.broken = sent.broken or not failed

    @invariant()
    def what_is_complete_is_authentic(self):
        """A complete answer is exactly what one worker request was asked and said."""
        for sent in getattr(self, "sent", []):
            if sent.machine.complete:
                (served,) = [served for served in self.served if self._origin(served) is sent]
                assert served.machine.payload == sent.payload
                assert served.records == sent.got

    @invariant()
    def what_arrived_is_a_prefix(self):
        """Even an incomplete answer holds only records that the worker said, from the first, in order."""
        for sent in getattr(self, "sent", []):
            if sent.got:
                assert sent.source is not None
                assert sent.source.records[: len(sent.got)] == sent.got

    def _ticket_error(self, sent):
        """Return what the worker says of a request's ticket and keys now, None while they hold."""
        self.latest_s = self.server._latest_s = max(self.server._latest_s, self.now_s)
        if self.latest_s < NOW_S - 60:
            return ClockSkewError
        if self.latest_s >= NOW_S + 300:
            return TicketExpiredError
        if sent.machine._grant.claims.session in self.worlds[0].revoked:
            return TicketRevokedError
        if self.fate == "rotated" and self.struck and sent.generation == 0:
            return StaleKeyError
        return None

    def _refused(self, expected, attempt):
        with pytest.raises(BulkheadError) as caught:
            attempt()
        assert type(caught.value) is expected
        self.seen[expected.__name__] += 1

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

    def _reading(self, sent):
        return sent.source is not None and bool(sent.source.out) and not sent.broken and not sent.machine.complete

    def _fillable(self, served):
        strict = served.machine.claims.padding is PaddingMode.STRICT
        return strict and served.whole and not served.broken and not served.finished

    def _out(self, served, chunk, record):
        served.out.append((chunk, record))
        self.down.append(chunk)

    def _answer(self, served, text, step):
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
        self._out(served, chunk, record)

    def _finish(self, served):
        served.finished = True
        served.machine.make_receipt(ts_us=1)
        self._out(served, served.machine.finish(), None)

    def _random(self, sent, random_bytes):
        if not sent.machine.resendable or sent.broken or len(random_bytes) != 32:
            self._refused(SealError, lambda: sent.machine.accept(random_bytes))
            sent.broken = True
            return
        sent.machine.accept(random_bytes)
        for served in self.served:
            if self._origin(served) is sent and served.machine.worker_random == random_bytes:
                sent.source = served

    def _misplacement(self, own, opened, chunk):
        """Return the error of a chunk that does not belong at place ``opened`` of the stream ``own``."""
        if chunk not in own:
            return SealError
        return ChunkRepeatedError if own.index(chunk) < opened else ChunkReorderedError

    def _request_chunk(self, served, chunk):
        own = self._origin(served).machine.chunks
        if served.broken or served.whole or (chunk,) != own[served.opened : served.opened + 1]:
            over = served.broken or served.whole
            self._refused(
                SealError if over else self._misplacement(own, served.opened, chunk),
                lambda: served.machine.receive(chunk),
            )
            served.broken = True
            return
        served.whole = served.machine.receive(chunk)
        served.opened += 1

    def _response_chunk(self, sent, chunk):
        opened = sent.machine.resendable is False and not sent.broken and not sent.machine.complete
        own = [sealed for sealed, _ in sent.source.out] if sent.source is not None and opened else []
        if not opened or [chunk] != own[sent.opened : sent.opened + 1]:
            expected = self._misplacement(own, sent.opened, chunk) if opened else SealError
            if opened and chunk in sent.machine.chunks:
                expected = ChunkReflectedError
            self._refused(expected, lambda: sent.machine.receive(chunk))
            sent.broken = not sent.machine.complete
            return
        event = sent.machine.receive(chunk)
        sent.opened += 1
        if isinstance(event, Complete):
            self.seen["complete"] += 1
        elif event is None:
            self.seen["filling"] += 1
        else:
            sent.got.append(event)


def run(examples, steps, *, part=0):
    """Play that many games of that many moves, others for each ``part``; return what happened in them."""
    first = World(seed=1, rooted=True)
    second = World(seed=2, tenant=first.tenant, padding=PaddingMode.STRICT, rooted=True)
    for name in ("root", "issuer", "partition", "keys", "authority", "revoked"):
        setattr(second, name, getattr(first, name))
    Adversary.keys = (first.keys, WorkerKeys.generate(authority=first.authority, now_s=NOW_S))
    for world in (first, second):
        world.grants = []
        for world.keys in Adversary.keys:
            world.grants.append(world.grant())
        world.keys = first.keys if world is second else Adversary.keys[0]
    Adversary.worlds = (first, second)
    Adversary.seen = Counter()
    run_state_machine_as_test(
        seed(part)(Adversary),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return Adversary.seen


MOVES = (
    "complete", "filling", "splice", "downgrade", "altered envelope", "ReplayError", "ChunkReorderedError",
    "ChunkRepeatedError", "ChunkReflectedError", "SealError", "SignatureError", "KeyMismatchError", "StaleKeyError",
    "CertificateKeyError",
    "ClockSkewError", "TicketExpiredError", "TicketRevokedError", "TruncatedError",
)  # fmt: skip
"""What a sample of games must have met: every attack, its error, and whole answers in between."""

_PARTS = 8


def met(seen, *, least, part):
    """Play on until every move was made ``least`` times.

    Hypothesis borrows constants from whatever modules are loaded, and so a seed gives other games in other company.
    """
    for further in range(part, part + 6):
        if all(seen[move] >= least for move in MOVES):
            break
        seen += run(examples=100, steps=100, part=further)
    return seen


@pytest.mark.timeout(300)
def test_every_run_ends_authentic_or_in_the_right_error():
    """No order of drops, copies, swaps, cuts, flips and splices yields an answer that was not given."""
    seen = met(run(examples=250, steps=50), least=1, part=1_000)
    assert seen["complete"] > 20, "the runs must reach whole answers, not only refusals"
    assert [move for move in MOVES if not seen[move]] == []


@pytest.mark.long
@pytest.mark.parametrize("part", range(1, _PARTS + 1))
def test_every_long_run_ends_authentic_or_in_the_right_error(part):
    """The same over a hundred thousand steps, in parts that cores share."""
    least = 50 // _PARTS
    seen = met(run(examples=2_000 // _PARTS, steps=100, part=part), least=least, part=1_000 * (part + 1))
    assert seen["steps"] >= 100_000 / _PARTS
    assert [move for move in MOVES if seen[move] < least] == []
