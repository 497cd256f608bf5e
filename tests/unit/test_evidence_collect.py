"""Collecting evidence on a host: configfs-tsm as the kernel keeps it, NVML at its ABI."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bulkhead.errors import BulkheadError, ConfigError, InternalError, UnavailableError, UnsupportedError
from data_plane.evidence.__main__ import main
from data_plane.evidence.tsm import ConfigFs, TsmQuotes
from tests.simulator import nvidia_world
from tests.simulator.fake_kernel import FakeKernel
from tests.simulator.hardware_world import certificate_table, device
from tests.simulator.snp_machine import Machine
from tests.simulator.tdx_world import TdxWorld

ROOT = Path(__file__).resolve().parents[2]
REPORT_DATA = bytes(range(64))
NONCE = nvidia_world.NONCE.hex()
TABLE = certificate_table(Machine())


def snp_firmware(report_data, level):
    """What SEV-SNP's firmware makes of a request."""
    return Machine().report(changes=[(0x50, report_data), (0x30, bytes([level]))]), TABLE


def tdx_firmware(report_data, level):
    """What a TDX host makes of a request."""
    return TdxWorld(report_data=report_data).quote(), b""


@pytest.fixture
def kernel(tmp_path):
    """A kernel with SEV-SNP behind configfs-tsm."""
    return FakeKernel(root=tmp_path, provider="sev_guest", firmware=snp_firmware)


def test_quote_of_snp_with_the_hosts_table(kernel):
    """An SEV-SNP quote is the report over the data asked for, with the host's table; nothing stays behind."""
    quote = TsmQuotes(kernel).quote(REPORT_DATA)

    assert (quote.technology, quote.provider) == ("snp", "sev_guest")
    assert quote.quote[0x50:0x90] == REPORT_DATA
    assert quote.auxiliary == TABLE
    assert (kernel.entries, len(kernel.made), kernel.quotes) == ([], 1, 1)


def test_quote_of_tdx_has_nothing_beside_it(tmp_path):
    """A TDX provider shows no auxblob and no privilege level; neither is an error."""
    kernel = FakeKernel(root=tmp_path, provider="tdx_guest", firmware=tdx_firmware)
    quote = TsmQuotes(kernel, privilege_level=0).quote(REPORT_DATA)

    assert (quote.technology, quote.auxiliary) == ("tdx", b"")
    assert REPORT_DATA in quote.quote


def test_privilege_level_is_asked_for(kernel):
    """A quote is made for the privilege level that was asked for."""
    assert TsmQuotes(kernel, privilege_level=2).quote(REPORT_DATA).quote[0x30] == 2


def test_each_quote_has_an_entry_of_its_own(kernel):
    """Two quotes share no entry, so that none can answer the other."""
    quotes = TsmQuotes(kernel)
    quotes.quote(REPORT_DATA)
    quotes.quote(bytes(64))

    assert len(set(kernel.made)) == 2


def _meddle(times):
    left = [times]

    def meddle(kernel, entry, attribute):
        if attribute == "outblob" and left[0]:
            left[0] -= 1
            kernel.write(entry, "inblob", b"\x66" * 64)

    return meddle


def test_interference_is_noticed_and_asked_again(kernel):
    """Another process that writes to the entry in between changes the generation: the quote is thrown away."""
    kernel.meddler = _meddle(1)

    assert TsmQuotes(kernel).quote(REPORT_DATA).quote[0x50:0x90] == REPORT_DATA
    assert (len(kernel.made), kernel.entries) == (2, [])


def test_interference_without_end_is_a_typed_error(kernel):
    """Who is interfered with each time gets no quote, never another's."""
    kernel.meddler = _meddle(99)

    with pytest.raises(UnavailableError, match="another process"):
        TsmQuotes(kernel).quote(REPORT_DATA)
    assert kernel.entries == []


def test_firmware_that_answers_something_else_is_refused(tmp_path):
    """A report over other data than was asked for is not handed on."""
    kernel = FakeKernel(root=tmp_path, provider="sev_guest", firmware=lambda _, level: snp_firmware(bytes(64), level))

    with pytest.raises(InternalError):
        TsmQuotes(kernel).quote(REPORT_DATA)


@pytest.mark.parametrize(
    ("fault", "number", "error"),
    [
        (("make", ""), errno.EACCES, ConfigError),
        (("make", ""), errno.EPERM, ConfigError),
        (("make", ""), errno.ENOENT, UnsupportedError),
        (("make", ""), errno.ENOMEM, UnavailableError),
        (("write", "inblob"), errno.EBUSY, UnavailableError),
        (("read", "outblob"), errno.EIO, UnavailableError),
        (("read", "outblob"), errno.ETIMEDOUT, UnavailableError),
        (("read", "outblob"), errno.EINTR, UnavailableError),
        (("read", "outblob"), errno.ENOTTY, UnsupportedError),
        (("read", "auxblob"), errno.EIO, UnavailableError),
        (("read", "provider"), errno.ENXIO, UnsupportedError),
    ],
)
def test_every_errno_is_a_typed_error(kernel, fault, number, error):
    """Whatever the kernel answers becomes one of our errors, and the entry goes."""
    kernel.faults[fault] = number

    with pytest.raises(error):
        TsmQuotes(kernel).quote(REPORT_DATA)
    assert kernel.entries == []


def test_a_stale_read_is_asked_again(kernel):
    """EWOULDBLOCK, which says that something was written since, is a reason to ask again."""
    kernel.faults["read", "outblob"] = errno.EWOULDBLOCK

    assert TsmQuotes(kernel).quote(REPORT_DATA).quote[0x50:0x90] == REPORT_DATA
    assert len(kernel.made) == 2


@pytest.mark.parametrize("provider", [None, "arm_cca_guest"])
def test_provider_that_is_missing_or_unknown(tmp_path, provider):
    """A guest without a driver, or with another technology, is told so."""
    kernel = FakeKernel(root=tmp_path, provider=provider, firmware=snp_firmware)

    with pytest.raises(UnsupportedError):
        TsmQuotes(kernel).quote(REPORT_DATA)
    assert kernel.entries == []


def test_blob_without_end_is_cut(tmp_path):
    """A quote longer than any is refused, not read to its end."""
    kernel = FakeKernel(root=tmp_path, provider="tdx_guest", firmware=lambda *_: (bytes(100_000), b""))

    with pytest.raises(InternalError, match="longer"):
        TsmQuotes(kernel).quote(REPORT_DATA)


def test_host_without_the_interface(tmp_path):
    """Without configfs the error says what it takes."""
    with pytest.raises(UnsupportedError, match=r"Linux 6\.7"):
        TsmQuotes(ConfigFs(tmp_path / "none")).quote(REPORT_DATA)


@pytest.fixture(scope="module")
def nvml(tmp_path_factory):
    """The fake driver's library, compiled."""
    compiler = shutil.which("cc")
    assert compiler is not None, "a C compiler (Debian: gcc) builds the fake driver"
    folder = tmp_path_factory.mktemp("nvml")
    source = ROOT / "tests" / "simulator" / "fake_nvml.c"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", folder / "libnvidia-ml.so.1", source], check=True
    )
    return folder


@pytest.fixture
def driver(tmp_path):
    """What the driver says: two GPUs that answer the nonce of the tests."""
    (tmp_path / "state").write_text("1 0")
    for number in (0, 1):
        folder = tmp_path / f"gpu{number}"
        folder.mkdir()
        (folder / "uuid").write_text(f"GPU-{number}")
        (folder / "report").write_bytes(nvidia_world.report(device(number)[0]))
        (folder / "certificates").write_bytes(nvidia_world.pem(device(number)))
    return tmp_path


def collect(library, state, *arguments, **environment):
    """Run the collector as a person does, in a process that finds the fake driver."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "sdk" / "src")))
    result = subprocess.run(
        [sys.executable, "-m", "data_plane.evidence", "--gpu", "--json", "--nonce", NONCE, *arguments],
        env={"LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(state), "PYTHONPATH": paths, **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.stderr == ""
    return result.returncode, json.loads(result.stdout)["gpu"]


def test_reports_through_nvml(nvml, driver, tmp_path):
    """Reports and certificates come through nvidia-ml-py from the driver's library, one per GPU, into files."""
    code, facts = collect(nvml, driver, "--out", str(tmp_path / "out"))

    assert (code, [gpu["uuid"] for gpu in facts["gpus"]]) == (0, ["GPU-0", "GPU-1"])
    assert (facts["confidential_computing"], facts["driver_version"]) == ("on", "580.10.01")
    for number in (0, 1):
        report = (tmp_path / "out" / f"gpu{number}-report.bin").read_bytes()
        assert report == (driver / f"gpu{number}" / "report").read_bytes()
        chain = (tmp_path / "out" / f"gpu{number}-certificates.pem").read_bytes()
        assert chain == nvidia_world.pem(device(number)).rstrip(b"\0")


@pytest.mark.parametrize(
    ("state", "error", "environment", "code"),
    [
        ("0 0", None, {}, "CONFIG"),
        ("none", None, {}, "UNSUPPORTED"),
        ("1 1", None, {}, "CONFIG"),
        ("1 0", "3", {}, "UNSUPPORTED"),
        ("1 0", "4", {}, "CONFIG"),
        ("1 0", "999", {}, "UNAVAILABLE"),
        ("1 0", None, {"FAKE_NVML_INIT": "9"}, "UNSUPPORTED"),
        ("nonsense", None, {}, "UNAVAILABLE"),
    ],
    ids=["cc-off", "no-cc", "devtools-on", "not-supported", "no-permission", "unknown", "driver-not-loaded", "garbled"],
)
def test_driver_that_gives_no_report(nvml, driver, state, error, environment, code):
    """Confidential computing off, developer tools on, or any error of the driver's is a typed error."""
    (driver / "state").write_text(state)
    if error is not None:
        (driver / "gpu1" / "error").write_text(error)

    assert collect(nvml, driver, **environment)[1]["error"]["code"] == code


def test_another_nonce_gives_no_report(nvml, driver):
    """The nonce reaches the driver as given: one that it was not made for is refused there."""
    status, facts = collect(nvml, driver, "--nonce", "11" * 32)

    assert (status, facts["error"]["code"]) == (1, "UNAVAILABLE")


def test_host_without_a_driver(tmp_path):
    """Where there is no NVIDIA driver the error says so."""
    status, facts = collect(tmp_path, tmp_path)

    assert (status, facts["error"]["code"]) == (1, "UNSUPPORTED")
    assert "libnvidia-ml" in facts["error"]["message"]


def test_state_asks_nothing_of_the_hardware(nvml, driver):
    """--state tells what is there, with confidential computing off, too."""
    for state, told in (("0 0", "off"), ("none", "not supported")):
        (driver / "state").write_text(state)
        code, facts = collect(nvml, driver, "--state")
        assert (code, facts["confidential_computing"], facts["gpus"]) == (0, told, ["GPU-0", "GPU-1"])


def test_collector_writes_what_the_kernel_gave(tmp_path, capsys, monkeypatch):
    """The command's processor part writes quote and table beside each other."""
    kernel = FakeKernel(root=tmp_path / "tsm", provider="sev_guest", firmware=snp_firmware)
    kernel.root.mkdir()
    monkeypatch.setattr("data_plane.evidence.__main__.ConfigFs", lambda _: kernel)

    assert main(["--cpu", "--nonce", REPORT_DATA.hex(), "--out", str(tmp_path / "out"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["cpu"]
    assert facts["technology"] == "snp"
    assert (tmp_path / "out" / "quote.bin").read_bytes()[0x50:0x90] == REPORT_DATA
    assert (tmp_path / "out" / "auxiliary.bin").read_bytes() == TABLE


@pytest.mark.parametrize("nonce", ["zz", "00" * 65])
def test_wrong_usage_ends_with_two(nonce, capsys):
    """A nonce that is none is refused before anything is asked."""
    assert main(["--cpu", "--nonce", nonce]) == 2


def test_collector_needs_nothing_else(tmp_path):
    """The collector runs with the standard library alone, beside nvidia-ml-py: no third-party module is imported."""
    script = (
        "import sys, data_plane.evidence.__main__, data_plane.evidence.tsm;"
        "known = set(sys.stdlib_module_names) | {'bulkhead', 'data_plane', '__main__'};"
        "print(sorted({name.split('.')[0] for name in sys.modules} - known - {'sitecustomize', 'usercustomize'}))"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path,
        env={"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "sdk" / "src")))},
    )  # fmt: skip
    assert result.stdout.strip() == "[]"


def test_errors_are_ours(kernel):
    """A quote over other than 64 bytes is a defect, told as one."""
    with pytest.raises(BulkheadError):
        TsmQuotes(kernel).quote(b"short")
