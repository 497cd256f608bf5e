"""Authorisation: the frozen policy input, the decision, the signed bundle and the supervised OPA that decides.

A decision is a pure function of :class:`~control_plane.authz.input.PolicyInput` and the bundle whose digest the
:class:`~control_plane.authz.decision.Decision` names, so that the audit log can replay it (docs/policy.md).
"""
