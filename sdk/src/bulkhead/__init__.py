"""Bulkhead SDK: verified, sealed inference sessions and offline audit proofs."""
