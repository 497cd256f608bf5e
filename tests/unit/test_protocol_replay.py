import threading
from dataclasses import replace

import pytest

from bulkhead.errors import ReplayError, WindowFullError
from bulkhead.protocol import replay
from bulkhead.protocol.context import SessionScope
from bulkhead.protocol.replay import WINDOW, ReplayGuard

SCOPE = SessionScope(
    key_id=bytes(32),
    tenant="t",
    session="s",
    model_digest=bytes(32),
    evidence_digest=bytes(32),
    decision_leaf_hash=bytes(32),
)


def test_each_number_is_used_once():
    """In any order within the window each number is claimed once, before and after the base has moved."""
    guard = ReplayGuard()
    order = [3, 0, 1, 2, 7, 5, 4, 6, 900]
    for sequence in order:
        guard.claim(SCOPE, sequence)
    for sequence in order:
        with pytest.raises(ReplayError):
            guard.claim(SCOPE, sequence)


def test_long_sessions_never_fill_the_window():
    """Ten thousand numbers in order are claimed, and all of them stay used."""
    guard = ReplayGuard()
    for sequence in range(10_000):
        guard.claim(SCOPE, sequence)
    for sequence in (0, 1, 5_000, 9_999):
        with pytest.raises(ReplayError):
            guard.claim(SCOPE, sequence)


def test_full_window_refuses_and_evicts_nothing():
    """With number 0 missing, number 1,024 is refused; number 0 is still free, and frees the rest."""
    guard = ReplayGuard()
    for sequence in range(1, WINDOW):
        guard.claim(SCOPE, sequence)
    for sequence in (WINDOW, 2**64 - 1):
        with pytest.raises(WindowFullError):
            guard.claim(SCOPE, sequence)
    guard.claim(SCOPE, 0)
    guard.claim(SCOPE, WINDOW)
    with pytest.raises(ReplayError):
        guard.claim(SCOPE, 1)


def test_scopes_are_apart():
    """A number used in one session, or under one piece of evidence, is free in another."""
    guard = ReplayGuard()
    for scope in (SCOPE, replace(SCOPE, session="u"), replace(SCOPE, evidence_digest=bytes([1]) * 32)):
        guard.claim(scope, 0)
        with pytest.raises(ReplayError):
            guard.claim(scope, 0)


def test_scopes_are_bounded(monkeypatch):
    """A worker that knows too many scopes refuses new ones and keeps the old."""
    monkeypatch.setattr(replay, "MAX_SCOPES", 2)
    guard = ReplayGuard()
    guard.claim(SCOPE, 0)
    guard.claim(replace(SCOPE, session="u"), 0)
    with pytest.raises(WindowFullError):
        guard.claim(replace(SCOPE, session="v"), 0)
    with pytest.raises(ReplayError):
        guard.claim(SCOPE, 0)


def test_windows_go_with_their_key():
    """Forgetting a destroyed key drops its windows and no others."""
    guard = ReplayGuard()
    other = replace(SCOPE, key_id=bytes([1]) * 32)
    guard.claim(SCOPE, 0)
    guard.claim(other, 0)
    guard.forget(SCOPE.key_id)
    guard.claim(SCOPE, 0)
    with pytest.raises(ReplayError):
        guard.claim(other, 0)


def test_claims_are_atomic_across_threads():
    """Of eight threads that claim the same hundred numbers, exactly one gets each."""
    guard, won = ReplayGuard(), []

    def claim_all():
        for sequence in range(100):
            try:
                guard.claim(SCOPE, sequence)
            except ReplayError:
                continue
            won.append(sequence)

    threads = [threading.Thread(target=claim_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(100))
