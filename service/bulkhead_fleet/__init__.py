"""Internal fleet protocol (generated)."""
