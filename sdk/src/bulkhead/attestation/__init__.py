"""What a tenant checks before a prompt leaves its process: evidence, claims, appraisal, and the digest of a model."""
