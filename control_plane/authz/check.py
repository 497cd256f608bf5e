"""Checks that policies pass before they become a bundle: format, strict types, capabilities, tests, coverage.

python -m control_plane.authz.check policies            check, exit 0 or 1
python -m control_plane.authz.check policies --format   rewrite in canonical format
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bulkhead.errors import BulkheadError, BundleError
from control_plane.authz.bundle import CAPABILITIES
from control_plane.authz.opa_tool import DEFAULT_TIMEOUT_S, OpaRun, find_opa, run_opa
from control_plane.authz.sources import SCHEMA_PATH, check_sources, is_test, read_sources, write_sources

__all__ = ["COVERAGE_PERCENT", "PolicyCheck", "check_policies", "main"]

COVERAGE_PERCENT: Final = 95.0
"""Least share of policy lines that the tests evaluate."""
MAX_SHOWN_CHARS: Final = 4000


@dataclass(frozen=True, slots=True)
class PolicyCheck:
    """What a successful check found.

    Attributes:
        policies: number of policy files.
        tests: number of tests, all passed.
        coverage_percent: share of lines that the tests evaluate.
    """

    policies: int
    tests: int
    coverage_percent: float


def check_policies(
    sources: Mapping[str, bytes], *, opa: Path, coverage_percent: float = COVERAGE_PERCENT
) -> PolicyCheck:
    """Check ``sources`` (path -> content, untrusted). Blocks for about a second; call it off the event loop.

    1. Only policies, tests, one `data.json` and one `input.schema.json`.
    2. In `opa fmt`'s form.
    3. Strictly typed against the input's schema, with no function beyond our own capabilities file: sources that
       bring a file of capabilities do not widen them.
    4. Every test passes, and together they reach ``coverage_percent`` of the lines.

    Raises:
        BundleError: one of them fails; the message says which and shows what `opa` said.
        ConfigError: `opa` cannot be started.
        TimeoutError: `opa` takes too long.
    """
    check_sources(sources)  # 1
    with tempfile.TemporaryDirectory(prefix="bulkhead-policies-") as name:
        directory = Path(name)
        write_sources(sources, directory)
        formatted = run_opa(opa, "fmt", "--fail", "--list", ".", cwd=directory)  # 2
        _demand(formatted, "these files are not in canonical format (`make format` rewrites them)")
        limits = ("--bundle", "--capabilities", str(CAPABILITIES), "--schema", SCHEMA_PATH)
        _demand(run_opa(opa, "check", "--strict", *limits, ".", cwd=directory), "the policies do not type-check")  # 3
        # 4. OPA's own limit of 5 s for all tests is too short on a busy machine; what bounds them is run_opa's.
        test = ("test", *limits, f"--timeout={DEFAULT_TIMEOUT_S:.0f}s", "--format=json")
        tests = _passed(run_opa(opa, *test, ".", cwd=directory))
        covered = run_opa(opa, *test, "--coverage", ".", cwd=directory)
        percent = _covered(covered, coverage_percent)
    policies = sum(path.endswith(".rego") and not is_test(path) for path in sources)
    return PolicyCheck(policies=policies, tests=tests, coverage_percent=percent)


def _demand(run: OpaRun, what: str) -> None:
    if run.code != 0:
        raise BundleError(f"{what}:\n{run.said[:MAX_SHOWN_CHARS]}")


def _passed(run: OpaRun) -> int:
    try:
        results = json.loads(run.output)
        failed = [f"{each['package']}.{each['name']}" for each in results if each.get("fail") or each.get("error")]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"the tests do not run:\n{run.said[:MAX_SHOWN_CHARS]}") from error
    if failed or run.code != 0:
        raise BundleError(f"{len(failed)} of {len(results)} tests fail:\n" + "\n".join(failed)[:MAX_SHOWN_CHARS])
    if not results:
        raise BundleError("there are no tests")
    return len(results)


def _covered(run: OpaRun, threshold_percent: float) -> float:
    try:
        report = json.loads(run.output)
        percent = float(report["coverage"])
        missed = sorted(
            f"{path}:{part['start']['row']}"
            for path, file in report["files"].items()
            for part in file.get("not_covered", ())
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"the coverage cannot be read:\n{run.said[:MAX_SHOWN_CHARS]}") from error
    if percent < threshold_percent:
        shown = "\n".join(missed)[:MAX_SHOWN_CHARS]
        raise BundleError(
            f"the tests evaluate {percent:.1f}% of the policies, below {threshold_percent:.0f}%:\n{shown}"
        )
    return percent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 done, 1 a check failed."""
    parser = argparse.ArgumentParser(
        prog="python -m control_plane.authz.check",
        description="Check policies as publishing them does: format, types, capabilities, tests, coverage.",
        epilog="example: python -m control_plane.authz.check policies",
    )
    parser.add_argument("directory", type=Path, help="directory of the policies")
    parser.add_argument("--format", action="store_true", help="rewrite the policies in canonical format instead")
    parser.add_argument("--coverage", type=float, default=COVERAGE_PERCENT, metavar="PERCENT", help="least coverage")
    options = parser.parse_args(arguments)
    try:
        opa = find_opa()
        if options.format:
            _demand(run_opa(opa, "fmt", "--write", ".", cwd=options.directory), "the policies cannot be formatted")
            return 0
        found = check_policies(read_sources(options.directory), opa=opa, coverage_percent=options.coverage)
    except BulkheadError as error:
        sys.stderr.write(f"policies: {error.message}\n")
        return 1
    except TimeoutError as error:
        sys.stderr.write(f"policies: {error}\n")
        return 1
    sys.stdout.write(
        f"policies: {found.policies} files, {found.tests} tests passed, {found.coverage_percent:.1f}% covered\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
