"""The state of a new platform, with its model, tenants, accounts and keys: made once by the real commands, then copied.

Making it takes some twenty commands, each a process. All tests of a run, in all its processes, start from one state;
where platforms lie, their ports, their options and their processes are their own.
"""

import fcntl
import shutil
from pathlib import Path
from typing import Final

from scripts.local_platform import LocalPlatform, link_or_copy

__all__ = ["fill", "keep_in"]

MODEL_NAME: Final = "tiny"
_TRAYS: Final = 2
_OF_ITS_PROCESSES: Final = ("logs", "processes.json", "ports_wanted.json", "*.toml")  # the root's; not the clients'
_kept_in: list[Path] = []


def keep_in(directory: Path) -> None:
    """Say where the state is kept: a directory that every process of this test run names, and no other run."""
    _kept_in[:] = [directory]


def fill(platform: LocalPlatform) -> None:
    """Give a platform that was not configured yet the state of a new one."""
    origin = _origin(platform.model)
    shutil.copytree(
        origin.root,
        platform.root,
        ignore=lambda at, names: _own(names) if Path(at) == origin.root else (),
        copy_function=lambda source, target: _copy(origin.root, source, target),
        dirs_exist_ok=True,
    )
    platform.write_configuration()
    _move(platform.root / "init.json", origin, platform)
    _move(platform.client_config, origin, platform)


def _origin(model: Path) -> LocalPlatform:
    (directory,) = _kept_in
    origin = LocalPlatform(
        root=directory / "platform", model=model, trays=_TRAYS, say=lambda _: None, model_name=MODEL_NAME
    )
    with (directory / "platform.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        whole = directory / "platform.whole"
        if not whole.exists():
            shutil.rmtree(origin.root, ignore_errors=True)  # of a process that did not come to its end
            try:
                origin.prepare()
            finally:
                origin.down()
            whole.touch()
    return origin


def _own(names: list[str]) -> set[str]:
    return set(shutil.ignore_patterns(*_OF_ITS_PROCESSES)("", names))


def _copy(root: Path, source: str, target: str) -> None:
    """Models are linked, as at a platform's first start; state is copied."""
    if Path(source).is_relative_to(root / "models"):
        link_or_copy(source, target)
    else:
        shutil.copy2(source, target)


def _move(file: Path, origin: LocalPlatform, platform: LocalPlatform) -> None:
    """Name the new place and the new ports in a file of a copy."""
    text = file.read_text().replace(str(origin.root), str(platform.root))
    for name, port in origin.ports_wanted().items():
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{platform.ports_wanted()[name]}")
    file.write_text(text)
