"""The `bulkhead-admin` command against administration services on real gRPC."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bulkhead.attestation.model_digest import model_digest
from bulkhead.client.views import CredentialView, IssuedKey
from bulkhead.v1 import fleet_pb2, policy_pb2, tenancy_pb2
from control_plane.admin_cli.program import program
from tests.simulator.fake_admin import ISSUED_KEY, FakeAdmin
from tests.simulator.fake_platform import running_platform


@dataclass
class _Admin:
    config: Path
    state: FakeAdmin

    async def __call__(self, *arguments: str) -> Result:
        """Run the command in a thread of its own: the services live in this thread's event loop."""
        return await asyncio.to_thread(
            CliRunner().invoke, program, ["--config", str(self.config), "--profile", "test", *arguments]
        )

    async def done(self, *arguments: str) -> str:
        result = await self(*arguments)
        assert result.exit_code == 0, result.output
        return str(result.stdout)


@asynccontextmanager
async def _administered(directory: Path) -> AsyncIterator[_Admin]:
    state = FakeAdmin()
    async with running_platform(also=[state.add]) as platform:
        yield _Admin(platform.write_config(directory, extra='role = "admin"'), state)


async def test_tenant_is_created_changed_and_suspended(tmp_path: Path) -> None:
    """A tenant is created with its settings; an update names exactly the given fields; suspend sets the status."""
    async with _administered(tmp_path) as admin:
        made = json.loads(
            await admin.done(
                "tenant", "create", "mercy", "--pack", "hipaa", "--model", "m", "--minimum-tier", "gpu", "--json"
            )
        )
        assert (made["packs"], made["minimum_tier"], made["status"]) == (["hipaa"], "gpu", "active")
        assert (made["session_limit"], made["max_output_tokens"]) == (20, 4096)
        await admin.done("tenant", "update", "mercy", "--session-limit", "7", "--region", "eu-central")
        await admin.done("tenant", "suspend", made["tenant_id"])
        updates = [said for said in admin.state.said if isinstance(said, tenancy_pb2.UpdateTenantRequest)]
        assert [sorted(update.fields) for update in updates] == [["regions", "session_limit"], ["status"]]
        shown = json.loads(await admin.done("tenant", "show", "mercy", "--json"))
        assert (shown["session_limit"], shown["status"], shown["minimum_tier"]) == (7, "suspended", "gpu")
        assert "mercy" in await admin.done("tenant", "list")


async def test_a_tenants_root_is_set_shown_and_taken_away(tmp_path: Path) -> None:
    """set-root sends 32 bytes and names that field alone, clear-root none; another length is a usage error."""
    root = "3f" * 32
    async with _administered(tmp_path) as admin:
        await admin.done("tenant", "create", "mercy")
        assert root in await admin.done("tenant", "set-root", "mercy", root)
        assert json.loads(await admin.done("tenant", "show", "mercy", "--json"))["tenant_root"] == root
        await admin.done("tenant", "clear-root", "mercy")
        assert json.loads(await admin.done("tenant", "show", "mercy", "--json"))["tenant_root"] == ""
        updates = [said for said in admin.state.said if isinstance(said, tenancy_pb2.UpdateTenantRequest)]
        assert [(list(said.fields), said.tenant.tenant_root.hex()) for said in updates] == [
            (["tenant_root"], root),
            (["tenant_root"], ""),
        ]
        for wrong in ("3f" * 31, "zz" * 32):
            assert (await admin("tenant", "set-root", "mercy", wrong)).exit_code == 2


async def test_taken_name_and_unknown_tenant_are_one_line(tmp_path: Path) -> None:
    """A refusal is one line with its code and exit 1; an update without a change is a usage error."""
    async with _administered(tmp_path) as admin:
        await admin.done("tenant", "create", "acme")
        taken = await admin("tenant", "create", "acme")
        unknown = await admin("tenant", "show", "nobody")
        nothing = await admin("tenant", "update", "acme")
    assert (taken.exit_code, taken.stderr) == (1, "error ALREADY_EXISTS: the name is taken.\n")
    assert (unknown.exit_code, unknown.stderr) == (1, "error NOT_FOUND: no such tenant.\n")
    assert nothing.exit_code == 2


async def test_every_change_has_a_request_id_of_its_own(tmp_path: Path) -> None:
    """Two equal commands are two changes: their request ids differ."""
    async with _administered(tmp_path) as admin:
        await admin.done("fleet", "cordon", "rack1-tray01")
        await admin.done("fleet", "cordon", "rack1-tray01")
        ids = {said.request_id for said in admin.state.said if isinstance(said, fleet_pb2.CordonAgentRequest)}
    assert len(ids) == 2


async def test_key_goes_to_a_private_file(tmp_path: Path) -> None:
    """With --out the secret is in a new 0600 file and nowhere in the output."""
    out = tmp_path / "new.key"
    async with _administered(tmp_path) as admin:
        result = await admin("key", "create", "prin_1", "--days", "30", "--out", str(out))
        request = admin.state.said[-1]
    assert result.exit_code == 0
    assert ISSUED_KEY not in result.output
    assert out.read_text().strip() == ISSUED_KEY
    assert out.stat().st_mode & 0o777 == 0o600
    assert isinstance(request, tenancy_pb2.CreateApiKeyRequest)
    assert request.lifetime_s == 30 * 86_400


async def test_key_is_shown_once_on_standard_output(tmp_path: Path) -> None:
    """Without --out standard output holds the key alone, so that it can be piped; JSON holds it too."""
    async with _administered(tmp_path) as admin:
        plain = await admin("key", "create", "prin_1")
        parsed = json.loads(await admin.done("key", "create", "prin_1", "--json"))
    assert plain.stdout == f"{ISSUED_KEY}\n"
    assert "shown once" in plain.stderr
    assert parsed["api_key"] == ISSUED_KEY


async def test_existing_key_file_is_kept(tmp_path: Path) -> None:
    """A file that exists is not overwritten, and no key is issued; a refused issue leaves no empty file."""
    out = tmp_path / "old.key"
    out.write_text("old")
    fresh = tmp_path / "fresh.key"
    async with _administered(tmp_path) as admin:
        kept = await admin("key", "create", "prin_1", "--out", str(out))
        assert admin.state.said == []
        refused = await admin("key", "create", "prin_none", "--out", str(fresh))
    assert (kept.exit_code, refused.exit_code) == (1, 1)
    assert "error ALREADY_EXISTS" in kept.stderr
    assert out.read_text() == "old"
    assert not fresh.exists()


async def test_principals_credentials_and_certificates(tmp_path: Path) -> None:
    """A tenant's name is resolved to its id; keys are listed without secrets and revoked; certificates registered."""
    certificate = tmp_path / "client.pem"
    certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    with_key = tmp_path / "both.pem"
    with_key.write_text("-----BEGIN PRIVATE KEY-----\n")
    async with _administered(tmp_path) as admin:
        await admin.done("tenant", "create", "acme")
        made = json.loads(
            await admin.done("principal", "create", "ci", "--tenant", "acme", "--role", "developer", "--json")
        )
        assert (made["tenant_id"], made["role"]) == (f"tenant_{0:026}", "developer")
        assert "ci" in await admin.done("principal", "list", "--tenant", "acme")
        assert "cred_1" in await admin.done("key", "list", "prin_1")
        assert "revoked cred_1" in await admin.done("key", "revoke", "cred_1")
        assert "cred_2" in await admin.done("certificate", "register", "prin_1", str(certificate))
        refused = await admin("certificate", "register", "prin_1", str(with_key))
    assert refused.exit_code == 1
    assert "private key" in refused.stderr


async def test_model_is_registered_with_digest_and_context(tmp_path: Path) -> None:
    """The digest covers every file, the context length comes from config.json, the path is the directory's name."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text('{"max_position_embeddings": 2048}')
    (directory / "model.safetensors").write_bytes(bytes(3 * 1024 * 1024))
    async with _administered(tmp_path) as admin:
        made = json.loads(await admin.done("model", "add", str(directory), "--json"))
        assert "m" in await admin.done("model", "list")
        assert "retired tiny" in await admin.done("model", "retire", "tiny")
    assert made["digest"] == model_digest(directory).hex()
    assert (made["name"], made["path"], made["context_length"]) == ("tiny", "tiny", 2048)
    assert made["memory_mib"] == 2 * 4 + 512


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"max_position_embeddings": true}', "\xff"])
async def test_model_without_context_length_is_refused(tmp_path: Path, config: str) -> None:
    """A config.json that does not say the context length is an error that names the option to give."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text(config, encoding="latin-1")
    async with _administered(tmp_path) as admin:
        result = await admin("model", "add", str(directory))
        assert admin.state.said == []
    assert result.exit_code == 1
    assert "--context-length" in result.stderr


async def test_policies_are_published_activated_and_rolled_back(tmp_path: Path) -> None:
    """Publishing sends the sources by relative path; activation and rollback report the new revision."""
    directory = tmp_path / "policies"
    (directory / "pack").mkdir(parents=True)
    for name in ("pack/a.rego", "data.json", "input.schema.json", ".hidden.rego"):
        (directory / name).write_text(name)
    async with _administered(tmp_path) as admin:
        text = await admin.done("policy", "publish", str(directory))
        sent = admin.state.said[-1]
        assert "revision 2" in await admin.done("policy", "activate", "bndl_1")
        assert "revision 3" in await admin.done("policy", "rollback")
        assert "bndl_1" in await admin.done("policy", "list")
        empty = await admin("policy", "publish", str(tmp_path / "policies" / "pack"))
    assert "bulkhead-admin policy activate bndl_1" in text
    assert isinstance(sent, policy_pb2.PublishBundleRequest)
    assert {file.path: file.content for file in sent.files} == {
        name: name.encode() for name in ("pack/a.rego", "data.json", "input.schema.json")
    }
    assert empty.exit_code == 1


async def test_fleet_is_listed_and_steered(tmp_path: Path) -> None:
    """Simulated trays and partitions are called simulated; release reports the partition's state."""
    async with _administered(tmp_path) as admin:
        heads, tray = (await admin.done("fleet", "agents")).splitlines()
        partitions = await admin.done("fleet", "partitions", "--all")
        asked = admin.state.said[-1]
        assert "draining" in await admin.done("fleet", "release", "part_1")
        assert "uncordoned" in await admin.done("fleet", "uncordon", "rack1-tray01")
    assert tray[heads.index("SIMULATED") :].startswith("yes")
    assert "mig (simulated)" in partitions
    assert "2-3" in partitions
    assert isinstance(asked, fleet_pb2.ListPartitionsRequest)
    assert not asked.live_only


def test_policies_are_checked_here(tmp_path: Path) -> None:
    """Policy check needs no platform: a policy that does not parse is exit 1, with what OPA said."""
    (tmp_path / "a.rego").write_text("package a\n\nallow if {\n")
    for name in ("data.json", "input.schema.json"):
        (tmp_path / name).write_text("{}")
    result = CliRunner().invoke(program, ["policy", "check", str(tmp_path)])
    assert result.exit_code == 1
    assert "a.rego" in result.stderr
    assert "error BUNDLE_INVALID" in result.stderr


def test_issued_key_hides_its_secret() -> None:
    """An issued key may be logged: its repr holds no secret."""
    credential = CredentialView(
        credential_id="c",
        principal_id="p",
        kind="api_key",
        scopes=(),
        created_unix_s=0,
        expires_unix_s=0,
        revoked_unix_s=0,
    )
    assert ISSUED_KEY not in repr(IssuedKey(credential=credential, api_key=ISSUED_KEY))
