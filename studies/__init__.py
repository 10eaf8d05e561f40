"""The evidence: what was measured with several seeds, and the scripts that did it. Nothing in the package needs it."""
