"""The synchronous client: the asynchronous one in a thread of its own, safe to use from several threads."""

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar, Unpack

from bulkhead.attestation import AppraisedWorker, Tier
from bulkhead.client.audit import AuditRecord, RecordFilter
from bulkhead.client.client import AsyncBulkhead
from bulkhead.client.config import Profile, load_profile
from bulkhead.client.generation import Completion, Embeddings, Generation, Messages
from bulkhead.client.opening import OPEN_DEADLINE_S, OnProgress
from bulkhead.client.roots import RootSigner
from bulkhead.client.session import AsyncSession
from bulkhead.client.views import SessionView
from bulkhead.errors import CancelledError, InvalidRequestError
from bulkhead.protocol.generate import GenerateOptions
from bulkhead.protocol.payloads import Delta, Usage
from bulkhead.protocol.receipts import Receipt, SignedReceipt
from bulkhead.transparency import VerifiedLeaf

__all__ = ["BlockingGeneration", "Bulkhead", "Session"]

JOIN_S: Final = 10.0
Result = TypeVar("Result")
Item = TypeVar("Item")


class _LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bulkhead-client", daemon=True)
        self._lock = threading.Lock()
        self._open = True
        self._thread.start()

    def call(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Run ``work`` in the loop and wait for it; an interrupt of the waiting thread cancels it.

        Raises:
            CancelledError: the client was closed before or meanwhile.
            InvalidRequestError: called by a callback inside the loop, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise InvalidRequestError("the synchronous client cannot be called from its own callbacks")

        async def run() -> Result:
            return await work()

        with self._lock:
            if not self._open:
                raise CancelledError("the client has been closed")
            future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise CancelledError("the client was closed while the call was running") from error
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Cancel what is left and end the thread."""
        with self._lock:
            if not self._open:
                return
            self._open = False
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(JOIN_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(JOIN_S)
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class Bulkhead:
    """A tenant's or officer's client for programs without an event loop. Use as ``with``; threads may share it.

    Args:
        profile: address, credential and pins.
        development_mode: whether simulated evidence is accepted; None takes the profile's. No server can set it.
        root_signer: as for :class:`AsyncBulkhead`.

    Raises:
        InvalidRequestError: the profile's address is not host:port.
        ConfigError: the root signer is not the root that the profile pins.
    """

    def __init__(
        self, *, profile: Profile, development_mode: bool | None = None, root_signer: RootSigner | None = None
    ) -> None:
        self._thread = _LoopThread()

        async def make() -> AsyncBulkhead:
            return AsyncBulkhead(profile=profile, development_mode=development_mode, root_signer=root_signer)

        try:
            self._client = self._thread.call(make)
        except BaseException:
            self._thread.stop()
            raise

    @classmethod
    def from_profile(
        cls, name: str | None = None, *, path: Path | None = None, development_mode: bool | None = None
    ) -> Self:
        """Return a client for a profile of the configuration file; raises as :func:`load_profile`."""
        return cls(profile=load_profile(name, path=path), development_mode=development_mode)

    def open_session(
        self,
        *,
        model: str | None = None,
        tier: str | Tier | None = None,
        region: str | None = None,
        purpose: str | None = None,
        data_classes: Iterable[str] | None = None,
        max_output_tokens: int = 0,
        on_progress: OnProgress | None = None,
        timeout_s: float = OPEN_DEADLINE_S,
    ) -> "Session":
        """Open a session; as :meth:`AsyncBulkhead.open_session`. ``on_progress`` is called in the client's thread."""

        async def work() -> AsyncSession:
            return await self._client.open_session(
                model=model,
                tier=tier,
                region=region,
                purpose=purpose,
                data_classes=data_classes,
                max_output_tokens=max_output_tokens,
                on_progress=on_progress,
                timeout_s=timeout_s,
            )

        return Session(self._thread, self._thread.call(work))

    def session(self, session_id: str) -> SessionView:
        """Return a session of the caller's tenant, as the control plane knows it."""
        return self._thread.call(lambda: self._client.session(session_id))

    def sessions(self, *, open_only: bool = False) -> list[SessionView]:
        """Return the sessions of the caller's tenant, as the control plane knows them."""
        return self._thread.call(lambda: _collect(self._client.sessions(open_only=open_only)))

    def audit_records(self, wanted: RecordFilter | None = None) -> list[AuditRecord]:
        """Return the matching records of the audit log, parsed and not proven."""
        return self._thread.call(lambda: _collect(self._client.audit.records(wanted)))

    def prove(self, record: str | int, *, vkey: str, tenant_id: str = "") -> VerifiedLeaf:
        """Return a proven record; as :meth:`bulkhead.client.audit.AuditLog.prove`."""
        return self._thread.call(lambda: self._client.audit.prove(record, vkey=vkey, tenant_id=tenant_id))

    def close(self) -> None:
        """Close every session, the connection and the thread. Repeating it does nothing."""
        try:
            self._thread.call(self._client.close)
        except CancelledError:
            return
        self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Session:
    """A verified session; as :class:`bulkhead.client.session.AsyncSession`. Threads may share it."""

    def __init__(self, thread: _LoopThread, session: AsyncSession) -> None:
        self._thread = thread
        self._session = session

    @property
    def session_id(self) -> str:
        """Session id."""
        return self._session.session_id

    @property
    def worker(self) -> AppraisedWorker:
        """The worker as last verified: a `VerifiedWorker`, or a `SimulatedWorker`, which proves nothing."""
        return self._session.worker

    @property
    def tier(self) -> Tier:
        """Isolation tier that the evidence shows (of a simulated worker: simulates)."""
        return self._session.tier

    @property
    def simulated(self) -> bool:
        """Whether any part of the worker is simulated."""
        return self._session.simulated

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._session.model

    @property
    def expires_unix_s(self) -> int:
        """When the present ticket ends; it is renewed before."""
        return self._session.expires_unix_s

    @property
    def decision(self) -> VerifiedLeaf:
        """The verified audit record of the decision that allowed the session."""
        return self._session.decision

    def generate(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        temperature: float | None = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: tuple[str, ...] = (),
        prompt: str = "",
        **options: Unpack[GenerateOptions],
    ) -> "BlockingGeneration":
        """Return an answer to iterate over; as :meth:`AsyncSession.generate`."""

        async def work() -> Generation:
            return self._session.generate(
                messages,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                stop=stop,
                prompt=prompt,
                **options,
            )

        return BlockingGeneration(self._thread, self._thread.call(work))

    def generate_text(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        temperature: float | None = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: tuple[str, ...] = (),
        prompt: str = "",
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Return the whole answer, or raise; as :meth:`AsyncSession.generate_text`."""
        return self._thread.call(
            lambda: self._session.generate_text(
                messages,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                stop=stop,
                prompt=prompt,
                **options,
            )
        )

    def embed(self, inputs: tuple[str, ...] | list[str]) -> Embeddings:
        """Return one vector for each text; as :meth:`AsyncSession.embed`."""
        return self._thread.call(lambda: self._session.embed(inputs))

    def fetch_receipt(self, request_id: str) -> tuple[Receipt, SignedReceipt]:
        """Return the worker's receipt of a request; as :meth:`AsyncSession.fetch_receipt`."""
        return self._thread.call(lambda: self._session.fetch_receipt(request_id))

    def renew(self) -> None:
        """Renew now; as :meth:`AsyncSession.renew`."""
        self._thread.call(self._session.renew)

    def close(self) -> None:
        """End the session; as :meth:`AsyncSession.close`."""
        self._thread.call(self._session.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.call(lambda: self._session.__aexit__(exc_type, exc, traceback))


class BlockingGeneration:
    """An answer as it comes; as :class:`bulkhead.client.generation.Generation`."""

    def __init__(self, thread: _LoopThread, generation: Generation) -> None:
        self._thread = thread
        self._generation = generation

    @property
    def request_id(self) -> str:
        """Names the request in receipts and logs."""
        return self._generation.request_id

    @property
    def receipt(self) -> Receipt:
        """The verified receipt; raises InvalidRequestError while the answer is not whole."""
        return self._generation.receipt

    @property
    def signed_receipt(self) -> SignedReceipt:
        """The receipt as the worker signed it; raises as :attr:`receipt`."""
        return self._generation.signed_receipt

    @property
    def usage(self) -> Usage:
        """Token counts that the receipt confirms; raises as :attr:`receipt`."""
        return self._generation.usage

    @property
    def finish_reason(self) -> str:
        """`stop` or `length`; raises as :attr:`receipt`."""
        return self._generation.finish_reason

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        try:
            return self._thread.call(self._generation.__anext__)
        except StopAsyncIteration as end:
            raise StopIteration from end

    def completion(self) -> Completion:
        """Read the rest and return the whole answer."""
        return self._thread.call(self._generation.completion)

    def close(self) -> None:
        """Cancel what is still running: the worker stops generating."""
        self._thread.call(self._generation.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


async def _collect(items: AsyncGenerator[Item, None]) -> list[Item]:
    return [item async for item in items]
