"""``python -m data_plane agent --config FILE``: a node agent; ``metrics`` asks it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bulkhead.errors import BulkheadError, ConfigError
from service.lifecycle import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, run_process
from service.logging import configure

STOP_MARGIN_S: Final = 60.0  # beyond the drain: workers' ends, scrubs, the last events


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` name and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_plane",
        description="The data plane of one compute tray.",
        epilog="example: python -m data_plane agent --config agent.toml --check-config",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    agent = commands.add_parser(
        "agent",
        help="run the node agent of a compute tray",
        epilog="The configuration's keys are described in the docstrings of data_plane/config.py.",
    )
    agent.add_argument("--config", type=Path, required=True, help="TOML file")
    agent.add_argument("--check-config", action="store_true", help="check the configuration and exit")
    metrics = commands.add_parser(
        "metrics",
        help="print the Prometheus metrics of the running agent",
        epilog="example: python -m data_plane metrics --config agent.toml --json",
    )
    metrics.add_argument("--config", type=Path, required=True, help="the agent's TOML file")
    metrics.add_argument("--json", action="store_true", help="as one JSON array of samples")
    worker = commands.add_parser("worker", help="started by an agent, with an inherited socket pair")
    worker.add_argument("--sandbox", required=True, help=argparse.SUPPRESS)
    worker.add_argument("--log-format", choices=("json", "console"), default="json", help=argparse.SUPPRESS)
    worker.add_argument("--log-level", default="info", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except ConfigError as error:
        sys.stderr.write(f"{parser.prog} {options.command}: {error.message}\n")
        return EXIT_USAGE
    except BulkheadError as error:
        sys.stderr.write(f"{parser.prog} {options.command}: {error.code}: {error.message}\n")
        return EXIT_FAILED


def _agent(options: argparse.Namespace) -> int:
    from data_plane.agent_process import AgentProcess, check_config
    from data_plane.config import AgentConfig
    from service.config import load_config

    config = load_config(AgentConfig, options.config)
    if options.check_config:
        check_config(config)
        sys.stdout.write(f"{options.config}: the configuration holds\n")
        return EXIT_DONE
    configure(output=config.log.format, level=config.log.level)
    return run_process(AgentProcess(config), stop_timeout_s=config.drain_s + STOP_MARGIN_S)


def _metrics(options: argparse.Namespace) -> int:
    from prometheus_client.parser import text_string_to_metric_families

    from data_plane.config import AgentConfig
    from data_plane.rpc.metrics_server import fetch_metrics
    from service.config import load_config

    text = fetch_metrics(load_config(AgentConfig, options.config).state_directory)
    if options.json:
        samples = [
            {"name": sample.name, "labels": sample.labels, "value": sample.value}
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
        text = json.dumps(samples) + "\n"
    sys.stdout.write(text)
    return EXIT_DONE


def _worker(options: argparse.Namespace) -> int:
    from data_plane.sandbox import SandboxPlan
    from data_plane.worker_process import run_worker

    configure(output=options.log_format, level=options.log_level)
    return run_worker(SandboxPlan.from_argument(options.sandbox))


_COMMANDS: Final = {"agent": _agent, "metrics": _metrics, "worker": _worker}


if __name__ == "__main__":
    sys.exit(main())
