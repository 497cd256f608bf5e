"""Profiles on the command line, and the connection that a command makes with one."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bulkhead.cli.console import compose, run
from bulkhead.errors import ConfigError

if TYPE_CHECKING:
    from bulkhead.client.config import Profile
    from bulkhead.client.transport import Channel

__all__ = ["Settings", "on_channel", "settings_of", "with_settings"]

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Settings:
    """Which profile the command line chose."""

    profile_name: str | None
    config_path: Path | None

    def profile(self) -> "Profile":
        """Return the profile.

        Raises:
            ConfigError: see :func:`bulkhead.client.config.load_profile`.
        """
        from bulkhead.client.config import load_profile

        return load_profile(self.profile_name, path=self.config_path)


def with_settings(function: Function) -> Function:
    """Add ``--profile`` and ``--config`` to a root command."""
    options = (
        click.option("--profile", "profile_name", metavar="NAME", help="Profile to use [env: BULKHEAD_PROFILE]."),
        click.option(
            "--config",
            "config_path",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Configuration file [env: BULKHEAD_CONFIG; default: ~/.config/bulkhead/config.toml].",
        ),
    )
    return compose(options, function)


def settings_of(ctx: click.Context) -> Settings:
    """Return the settings that the root command stored."""
    settings = ctx.find_object(Settings)
    if settings is None:
        raise ConfigError("the command was started without its root command")
    return settings


def on_channel(ctx: click.Context, work: Callable[["Channel"], Awaitable[Result]]) -> Result:
    """Run ``work`` with a :class:`bulkhead.client.transport.Channel` to the profile's control plane."""
    from bulkhead.client.connect import control_plane_channel

    profile = settings_of(ctx).profile()

    async def connected() -> Result:
        async with control_plane_channel(profile) as channel:
            return await work(channel)

    return run(connected())
