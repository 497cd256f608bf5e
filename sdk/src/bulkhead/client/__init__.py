"""The client library: open a verified session, talk to its worker, read the audit log, administer the platform."""
