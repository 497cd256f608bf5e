import gzip
import io
import json
import tarfile

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from bulkhead.errors import BundleError
from control_plane.authz import bundle as bundles
from control_plane.authz.archive import MAX_UNPACKED_BYTES, check_path, pack, unpack
from control_plane.authz.bundle import build_bundle, load_signing_key, verify_bundle
from control_plane.authz.opa_tool import find_opa
from control_plane.authz.sources import check_sources, read_sources
from tests.simulator import policies

REGO = b"package bulkhead.session\n\ndecision := {}\n"
SOURCES = {"data.json": b'{"bulkhead": {"n": 1}}', "input.schema.json": b"{}", "session.rego": REGO}


def build(sources, **options):
    given = {"number": 1, "created_us": 1, "signing_key": policies.signing_key(), "opa": find_opa(), **options}
    return build_bundle(sources, **given)


def test_a_bundle_is_reproducible_bit_for_bit():
    """Equal sources, number, time and key give equal bytes, signature included."""
    assert build(SOURCES).data == build(dict(reversed(SOURCES.items()))).data


def test_the_digest_names_what_decides():
    """Policies and data change the digest; number, time, tests and schema do not."""
    digest = build(SOURCES).info.digest
    test = {"session_test.rego": b"package bulkhead.session_test\n\ntest_x if true\n"}
    assert build({**SOURCES, **test, "input.schema.json": b'{"a": 1}'}, number=2, created_us=2).info.digest == digest
    assert build({**SOURCES, "data.json": b'{"bulkhead": {"n": 2}}'}).info.digest != digest
    assert build({**SOURCES, "session.rego": REGO.replace(b"{}", b"[]")}).info.digest != digest


def test_a_bundle_says_what_it_holds():
    """Number, time and files come back from the bytes; tests and schema are not among them."""
    built = policies.bundle(7)
    info = verify_bundle(built.data, policies.signing_key().public_key()).info
    assert info == built.info
    assert (info.number, info.created_us) == (7, 7)
    assert "packs/hipaa/hipaa.rego" in info.files
    assert not any(path.endswith(("_test.rego", "schema.json")) for path in info.files)


@pytest.mark.parametrize(
    "changed",
    [
        {"session.rego": b"package bulkhead.session\nthis is not rego"},
        {"session.rego": b"package system.authz\n\nallow := true\n"},
        {"session.rego": b"package other\n\nx := 1\n"},
        {"session.rego": b'package bulkhead.x\n\nx := http.send({"method": "get", "url": "http://localhost"})\n'},
        {"session.rego": b"package bulkhead.x\n\nx := opa.runtime()\n"},
        {"session.rego": b"package bulkhead.x\n\nx := time.now_ns()\n"},
        {"session.rego": b'package bulkhead.x\n\nx := rand.intn("a", 9)\n'},
        {"session.rego": b'package bulkhead.x\n\nx := net.lookup_ip_addr("localhost")\n'},
        {"data.json": b'{"bulkhead": {"x": 9007199254740993}}'},
        {"data.json": b'{"system": {}}'},
        {"data.json": b'{"bulkhead": {}, "system": {}}'},
        {"data.json": b'{"bulkhead": {"x": 1.5}}'},
        {"data.json": '{"bulkhead": {"x": "ü"}}'.encode()},
        {"data.json": b"{"},
        {"data.json": b"[" * 100_000},
        {"capabilities.json": b"{}"},
        {"lib/data.json": b"{}"},
        {"../x.rego": REGO},
        {"/x.rego": REGO},
        {"a b.rego": REGO},
        {"run.sh": b"#!/bin/sh"},
    ],
    ids=range(21),
)
def test_what_is_no_policy_is_not_built(changed):
    """Sources that do not compile, reach outside, or bring other files are refused."""
    with pytest.raises(BundleError):
        build({**SOURCES, **changed})


@pytest.mark.parametrize("number", [0, -1, 2**53])
def test_the_number_is_in_range(number):
    """Bundles are numbered from 1."""
    with pytest.raises(BundleError):
        build(SOURCES, number=number)


def test_sources_need_policies_data_and_schema():
    """Leaving one of them out is refused, and so are too many files."""
    for missing in SOURCES:
        with pytest.raises(BundleError):
            check_sources({path: content for path, content in SOURCES.items() if path != missing})
    with pytest.raises(BundleError):
        check_sources({**SOURCES, **{f"p{i}.rego": REGO for i in range(512)}})


def test_links_are_no_sources(tmp_path):
    """A link in the directory does not bring a file from elsewhere into a bundle."""
    for path, content in SOURCES.items():
        (tmp_path / path).write_bytes(content)
    assert set(read_sources(tmp_path)) == set(SOURCES)
    (tmp_path / "secret.rego").symlink_to("/etc/passwd")
    with pytest.raises(BundleError):
        read_sources(tmp_path)
    with pytest.raises(BundleError):
        read_sources(tmp_path / "nowhere")


def test_an_archive_comes_back_as_it_was_packed():
    """Packing and unpacking are inverse; ordinary tools read it; nothing of time or owner is in it."""
    files = {"a/b.rego": b"x" * 200_000, ".manifest": b"", "data.json": b"{}"}
    packed = pack(files)
    assert unpack(packed) == files
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as tar:
        assert [(each.mtime, each.uid, each.uname) for each in tar] == [(0, 0, "")] * 3


def tar_of(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def special(kind):
    info = tarfile.TarInfo("x")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        gzip.compress(b"garbage" * 1000),
        pack({"a": b"x" * 2000})[:-9],
        pack({"a": b"x"}) + b"trailing",
        tar_of((tarfile.TarInfo("x"), b"1"), (tarfile.TarInfo("x"), b"2")),
        tar_of((tarfile.TarInfo("../x"), b"1")),
        tar_of((tarfile.TarInfo("//x"), b"1")),
        tar_of((special(tarfile.SYMTYPE), b"")),
        tar_of((special(tarfile.LNKTYPE), b"")),
        tar_of((special(tarfile.DIRTYPE), b"")),
        tar_of((special(tarfile.FIFOTYPE), b"")),
        tar_of(*((tarfile.TarInfo(f"f{i}"), b"") for i in range(513))),
        gzip.compress(bytes(MAX_UNPACKED_BYTES + 1)),
        bytes(9 * 1024 * 1024),
    ],
    ids=range(15),
)
def test_hostile_archives_are_refused(data):
    """Truncated, repeated, escaping, linking, too many and exploding: one typed error."""
    with pytest.raises(BundleError):
        unpack(data)


def test_paths_are_plain():
    """Nothing hidden, absolute or climbing."""
    for path in ("a/../b", ".hidden", "a//b", "a/", "", "a\x00b", "ü", "a" * 101):
        with pytest.raises(BundleError):
            check_path(path)


def test_only_p256_keys_sign():
    """Another curve or kind of key, or no key, is refused."""

    def pem(key):
        form = serialization.PrivateFormat.PKCS8
        return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())

    assert isinstance(load_signing_key(pem(policies.signing_key())), ec.EllipticCurvePrivateKey)
    for wrong in (b"", pem(ec.generate_private_key(ec.SECP384R1())), pem(ed25519.Ed25519PrivateKey.generate())):
        with pytest.raises(BundleError):
            load_signing_key(wrong)


def test_the_capabilities_are_no_wider_than_opas_own():
    """Nothing that OPA calls nondeterministic, and nothing it does not have; in step with the OPA in use."""
    ours = {each["name"] for each in json.loads(bundles.CAPABILITIES.read_text())["builtins"]}
    opas = {each["name"]: each for each in json.loads(_opa("capabilities", "--current"))["builtins"]}
    assert ours <= set(opas)
    assert not [name for name in ours if opas[name].get("nondeterministic")]
    assert not [name for name in ours if name.startswith(("http.", "net.", "opa.", "rand.", "time.now", "io.jwt"))]


def _opa(*arguments):
    from control_plane.authz.opa_tool import run_opa

    return run_opa(find_opa(), *arguments, cwd=policies.POLICIES).output
