"""`bulkhead-admin policy`."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bulkhead.cli.console import emit, emit_rows, example, json_option, note, time_text
from bulkhead.cli.settings import on_channel
from bulkhead.errors import BundleError, InvalidRequestError

if TYPE_CHECKING:
    from bulkhead.client.transport import Channel
    from bulkhead.client.views import PolicyBundleView
    from bulkhead.transparency import LeafFields

__all__ = ["policy"]

_DIRECTORY: Final = click.Path(path_type=Path, exists=True, file_okay=False)


@click.group()
def policy() -> None:
    """Policy bundles: one person publishes, another activates."""


@policy.command("check", epilog=example("bulkhead-admin policy check policies"))
@click.argument("directory", type=_DIRECTORY)
@json_option
def check(*, directory: Path, as_json: bool) -> None:
    """Check the sources in DIRECTORY here, as publishing them does: format, types, capabilities, tests, coverage."""
    from control_plane.authz.check import check_policies
    from control_plane.authz.opa_tool import find_opa
    from control_plane.authz.sources import read_sources

    try:
        found = check_policies(read_sources(directory), opa=find_opa())
    except BundleError as error:
        note(error.message)  # OPA's own lines, file and row in each
        raise BundleError(f"the policies in {directory} do not pass") from error
    text = f"{found.policies} policies, {found.tests} tests passed, {found.coverage_percent:.1f}% covered"
    emit(found, as_json=as_json, text=text)


@policy.command(
    "replay",
    epilog=example("bulkhead-admin policy replay acme.jsonl --policies policies --log-key 'audit.example/t/…+…'"),
)
@click.argument("export", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--policies", type=_DIRECTORY, required=True, help="Sources to ask, e.g. a change before it is published."
)
@click.option("--log-key", "log_keys", multiple=True, required=True, help="Verifier key (vkey) of the log. Repeatable.")
@json_option
def replay_export(*, export: Path, policies: Path, log_keys: tuple[str, ...], as_json: bool) -> None:
    """Ask the policies about every decision in EXPORT again, offline, and show which come out otherwise.

    Inputs that earlier builds recorded are asked in today's form.
    """
    from bulkhead.transparency.export import verify_export
    from control_plane.authz.opa_tool import find_opa
    from control_plane.authz.replay import replay
    from control_plane.authz.sources import read_sources

    decisions: list[LeafFields] = []

    def take(record: "LeafFields") -> None:
        if record.action == "decision":
            decisions.append(record)

    try:
        with export.open("rb") as stream:
            verify_export(stream, vkeys=log_keys, on_record=take)
    except OSError as error:
        raise InvalidRequestError(f"cannot read {export}: {error.strerror}") from error
    asked = list(replay(decisions, read_sources(policies), opa=find_opa()))
    differing = [item for item in asked if item.differs]
    lines = [
        f"{item.record_id}: {item.recorded}, now {item.now} {', '.join(item.codes)}".rstrip() for item in differing
    ]
    summary = f"{len(asked)} decisions asked again, {len(differing)} come out otherwise"
    emit({"asked": len(asked), "differing": differing}, as_json=as_json, text="\n".join([*lines, summary]))


@policy.command("publish", epilog=example("bulkhead-admin policy publish policies"))
@click.argument("directory", type=_DIRECTORY)
@json_option
@click.pass_context
def publish(ctx: click.Context, directory: Path, *, as_json: bool) -> None:
    """Send the sources in DIRECTORY: the control plane checks, tests, signs and stores them as a candidate."""
    from bulkhead.client.policies import PolicyAdmin
    from control_plane.authz.sources import read_sources

    files = read_sources(directory)
    made = on_channel(ctx, lambda channel: PolicyAdmin(channel).publish(files))
    text = f"published {made.bundle_id} (digest {made.digest}); another admin activates it with:\n"
    emit(made, as_json=as_json, text=f"{text}  bulkhead-admin policy activate {made.bundle_id}")


@policy.command("activate", epilog=example("bulkhead-admin policy activate bndl_01h…"))
@click.argument("bundle_id")
@json_option
@click.pass_context
def activate(ctx: click.Context, bundle_id: str, *, as_json: bool) -> None:
    """Let the candidate BUNDLE_ID, which another person published, decide from now on."""
    from bulkhead.client.policies import PolicyAdmin

    changed = on_channel(ctx, lambda channel: PolicyAdmin(channel).activate(bundle_id))
    emit(changed, as_json=as_json, text=f"{changed.bundle_id} is {changed.status}: revision {changed.revision}")


@policy.command("rollback", epilog=example("bulkhead-admin policy rollback"))
@json_option
@click.pass_context
def rollback(ctx: click.Context, *, as_json: bool) -> None:
    """Let the bundle decide that was active before the present one."""
    from bulkhead.client.policies import PolicyAdmin

    changed = on_channel(ctx, lambda channel: PolicyAdmin(channel).rollback())
    emit(changed, as_json=as_json, text=f"{changed.bundle_id} is {changed.status}: revision {changed.revision}")


@policy.command("list", epilog=example("bulkhead-admin policy list"))
@json_option
@click.pass_context
def list_bundles(ctx: click.Context, *, as_json: bool) -> None:
    """List bundles and who published and activated them."""
    from bulkhead.client.policies import PolicyAdmin

    async def work(channel: "Channel") -> list["PolicyBundleView"]:
        return [item async for item in PolicyAdmin(channel).bundles()]

    emit_rows(
        on_channel(ctx, work),
        as_json=as_json,
        columns={
            "bundle": lambda item: item.bundle_id,
            "status": lambda item: item.status,
            "revision": lambda item: item.revision,
            "published": lambda item: time_text(item.created_unix_s),
            "by": lambda item: item.published_by,
            "activated": lambda item: time_text(item.activated_unix_s),
            "activated by": lambda item: item.activated_by,
            "digest": lambda item: item.digest[:16],
        },
        empty="no bundles",
    )
