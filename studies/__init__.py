"""The evidence: what was measured with several seeds, and the scripts that did it. The package does not need it."""
