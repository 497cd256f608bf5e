"""Confining a worker process before it reads anything of its tenant's."""

from data_plane.sandbox.confine import confine
from data_plane.sandbox.plan import SandboxConfig, SandboxPlan, Step, check_reachable, plan_for

__all__ = ["SandboxConfig", "SandboxPlan", "Step", "check_reachable", "confine", "plan_for"]
