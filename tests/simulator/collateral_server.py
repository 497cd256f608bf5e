"""The vendors' services in one local TLS server, which answers as they do with what a world publishes."""

import contextlib
import itertools
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from bulkhead.attestation.collateral import CollateralKind
from tests.simulator.hardware_world import NOW, HardwareWorld, device, rim_answer
from tests.simulator.nvidia_world import DAY, Signer, world
from tests.simulator.pki import Authority


@dataclass
class Reply:
    """What the server answers: ``drip_s`` waits between bytes, ``length`` is stated instead of the true one."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drip_s: float = 0.0
    wait_s: float = 0.0
    length: int | None = None


@dataclass
class Service:
    """A running server.

    Attributes:
        url: its address.
        context: for clients: trusts its authority alone.
        asked: method and path of each request.
        replies: path -> what is answered instead.
    """

    url: str
    context: ssl.SSLContext
    asked: list[tuple[str, str]]
    replies: dict[str, Reply]
    ocsp_nonce: Callable[[bytes], bytes | None]
    ocsp_status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD

    @property
    def mirrors(self) -> dict[CollateralKind, str]:
        """This server in place of each vendor's."""
        return dict.fromkeys(CollateralKind, self.url)


@contextlib.contextmanager
def serving(published: HardwareWorld, directory: Path, *, name: str = "localhost") -> Iterator[Service]:
    """Serve what ``published`` proves itself with, under a certificate for ``name``."""
    authority = Authority()
    identity = authority.issue(name)
    (directory / "chain.pem").write_bytes(identity.certificate_pem)
    (directory / "key.pem").write_bytes(identity.key_pem)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(directory / "chain.pem", directory / "key.pem")
    answers = _answers(published)
    service = Service(
        url="", context=ssl.create_default_context(cadata=authority.root_pem.decode()), asked=[], replies={},
        ocsp_nonce=lambda nonce: nonce,
    )  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            service.asked.append(("GET", self.path))
            self._reply(service.replies.get(self.path) or answers.get(self.path) or Reply(b"not found", 404))

        def do_POST(self) -> None:
            service.asked.append(("POST", self.path))
            request = self.rfile.read(int(self.headers["Content-Length"]))
            fits = self.headers["Content-Type"] == "application/ocsp-request"
            made = Reply(_ocsp(request, service)) if fits else Reply(b"", 415)
            self._reply(service.replies.get(self.path) or made)

        def _reply(self, reply: Reply) -> None:
            time.sleep(reply.wait_s)
            self.send_response(reply.status)
            for header, value in reply.headers.items():
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(reply.body) if reply.length is None else reply.length))
            self.end_headers()
            with contextlib.suppress(OSError):
                if not reply.drip_s:
                    self.wfile.write(reply.body)
                    return
                for byte in reply.body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(reply.drip_s)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that refuse the certificate or cut the answer

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = server_context.wrap_socket(server.socket, server_side=True)
    service.url = f"https://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _answers(published: HardwareWorld) -> dict[str, Reply]:
    answers = {}
    for item, data, chain in published.collateral():
        headers = {}
        if item.kind.chain_header is not None:
            headers[item.kind.chain_header] = quote(chain.decode())
        body = rim_answer(data) if item.kind is CollateralKind.NVIDIA_RIM else data
        answers[item.path] = Reply(body, headers=headers)
    return answers


def _signers() -> list[tuple[Signer, Signer]]:
    chains = [device(number)[1:] for number in (0, 1)] + [world().rim]
    return [pair for chain in chains for pair in itertools.pairwise(chain)]


def _ocsp(request: bytes, service: Service) -> bytes:
    asked = ocsp.load_der_ocsp_request(request)
    found = next((pair for pair in _signers() if pair[0].certificate.serial_number == asked.serial_number), None)
    if found is None:
        return ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED).public_bytes(
            Encoding.DER
        )
    nonce = service.ocsp_nonce(asked.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce)
    return _ocsp_about(*found, service.ocsp_status, nonce)


def ocsp_with_nonce(nonce: bytes) -> bytes:
    """The answer that a GPU's boot ROM is good, to a question with ``nonce``."""
    return _ocsp_about(*device(0)[1:3], ocsp.OCSPCertStatus.GOOD, nonce)


def _ocsp_about(signer: Signer, issuer: Signer, status: ocsp.OCSPCertStatus, nonce: bytes | None) -> bytes:
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=signer.certificate, issuer=issuer.certificate, algorithm=hashes.SHA384(),
            cert_status=status, this_update=NOW, next_update=NOW + DAY,
            revocation_time=NOW if revoked else None,
            revocation_reason=x509.ReasonFlags.certificate_hold if revoked else None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, issuer.certificate)
    )  # fmt: skip
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.sign(issuer.key, hashes.SHA384()).public_bytes(Encoding.DER)


def as_json(value: object) -> bytes:
    """JSON bytes."""
    return json.dumps(value).encode()
