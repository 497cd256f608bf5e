import base64
import dataclasses
import hashlib
import hmac
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bulkhead.encoding import b64url_encode, canonical_json
from bulkhead.errors import BundleError, PolicyEngineError
from control_plane.authz import bundle as bundles
from control_plane.authz import process as process_module
from control_plane.authz.archive import pack, unpack
from control_plane.authz.bundle import verify_bundle
from control_plane.authz.opa_tool import find_opa
from control_plane.authz.process import OpaProcess
from control_plane.authz.rundir import RunDirectory, default_account
from tests.simulator import policies
from tests.simulator.policies import bundle, signing_key, supervised

PUBLIC = signing_key().public_key()


def files():
    return unpack(bundle().data)


def signed(changed, key=None):
    """Return the bundle of ``changed`` files, signed by ``key`` as the build does it."""
    changed = {path: content for path, content in changed.items() if path != ".signatures.json"}
    return pack({**changed, ".signatures.json": bundles._sign(changed, key or signing_key())})


def with_token(token):
    return pack({**files(), ".signatures.json": canonical_json({"signatures": [token]})})


def token():
    return json.loads(files()[".signatures.json"])["signatures"][0]


def forged(header, sign):
    """Return the bundle with a JWS of its own payload under another header."""
    head = b64url_encode(json.dumps(header).encode())
    payload = token().split(".")[1]
    return with_token(f"{head}.{payload}.{b64url_encode(sign(f'{head}.{payload}'.encode()))}")


def manifest(**changed):
    return canonical_json({**json.loads(files()[".manifest"]), **changed})


def hs256(message):
    """Sign with the public key as the secret: the classic confusion of algorithms."""
    pem = PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hmac.digest(pem, message, "sha256")


WIDE_OPEN = b'package bulkhead.session\n\ndecision := {"allow": true, "reasons": [], "obligations": []}\n'


def hostile():
    good = files()
    head, payload, signature = token().split(".")
    other = ec.generate_private_key(ec.SECP256R1())
    raw = base64.urlsafe_b64decode(signature + "==")
    return {
        "unsigned": pack({path: content for path, content in good.items() if path != ".signatures.json"}),
        "no signatures": pack({**good, ".signatures.json": b'{"signatures":[]}'}),
        "two signatures": pack({**good, ".signatures.json": canonical_json({"signatures": [token(), token()]})}),
        "another key": signed(good, other),
        "no algorithm": forged({"alg": "none", "typ": "JWT"}, lambda _: b""),
        "algorithm confusion": forged({"alg": "HS256", "typ": "JWT"}, hs256),
        "own key in the header": forged({"alg": "ES256", "typ": "JWT", "jwk": {}}, lambda _: raw),
        "empty signature": with_token(f"{head}.{payload}."),
        "zero signature": with_token(f"{head}.{payload}.{b64url_encode(bytes(64))}"),
        "signature with more": with_token(f"{head}.{payload}.{b64url_encode(raw + b'x')}"),
        "padded base64": with_token(f"{head}.{payload}.{signature}=="),
        "changed policy": pack({**good, "session/session.rego": WIDE_OPEN}),
        "changed data": pack({**good, "data.json": good["data.json"].replace(b'"gpu"', b'"mig"')}),
        "added policy": pack({**good, "extra.rego": WIDE_OPEN}),
        "removed policy": pack({path: content for path, content in good.items() if path != "packs/hipaa/hipaa.rego"}),
        "another bundle's signature": pack({**good, ".signatures.json": unpack(bundle(2).data)[".signatures.json"]}),
        "renumbered": pack({**good, ".manifest": manifest(metadata={"bulkhead": {"number": 9, "created_us": "1"}})}),
        # Correctly signed, and still not what a bundle may be:
        "forged revision": signed({**good, ".manifest": manifest(revision="ab" * 32)}),
        "wider roots": signed({**good, ".manifest": manifest(roots=["bulkhead", "system"])}),
        "root of everything": signed({**good, ".manifest": manifest(roots=[""])}),
        "unnumbered": signed({**good, ".manifest": manifest(metadata={})}),
        "number zero": signed({**good, ".manifest": manifest(metadata={"bulkhead": {"number": 0, "created_us": "1"}})}),
        "no manifest": signed({path: content for path, content in good.items() if path != ".manifest"}),
        "manifest with more": signed({**good, ".manifest": manifest(wasm=[])}),
    }


@pytest.mark.parametrize("name", list(hostile()))
def test_a_bundle_that_does_not_hold_is_refused(name):
    """Unsigned, signed by or for something else, changed in any file, or claiming more than its own document."""
    assert verify_bundle(bundle().data, PUBLIC).info == bundle().info
    with pytest.raises(BundleError):
        verify_bundle(hostile()[name], PUBLIC)


async def test_the_serving_bundle_survives_every_hostile_switch():
    """None of them is served, and none disturbs the one that is."""
    async with supervised() as supervisor:
        pid = supervisor.pid
        for data in hostile().values():
            with pytest.raises(BundleError):
                await supervisor.switch(data, rollback=True)
        assert supervisor.pid == pid
        assert supervisor.active == bundle().info


@pytest.mark.parametrize("name", ["unsigned", "another key", "changed policy"])
async def test_opa_refuses_it_too(name, monkeypatch):
    """The second fence: with our own check out of the way, OPA does not come up with such a bundle."""
    monkeypatch.setattr(process_module, "START_TIMEOUT_S", 1.5)
    unverified = dataclasses.replace(bundle(), data=hostile()[name])
    account = default_account()
    directory = RunDirectory.create(base=None, opa=find_opa(), account=account)
    try:
        with pytest.raises(PolicyEngineError) as caught:
            await OpaProcess.start(bundle=unverified, public_key=PUBLIC, directory=directory, account=account)
    finally:
        directory.remove()
    assert "Bundle load failed" in caught.value.message


def test_the_digest_binds_the_bytes_that_decide():
    """The revision is SHA-256 over path and content of every policy and data file."""
    hashed = {
        path: hashlib.sha256(content).hexdigest()
        for path, content in files().items()
        if path not in (".manifest", ".signatures.json")
    }
    assert bundle().info.digest == hashlib.sha256(canonical_json(hashed)).hexdigest()
    assert set(bundle().info.files) == set(hashed)
    assert bundle().info.digest != policies.REVISION
