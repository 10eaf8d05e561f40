"""Who writes chains: the policy itself, a model on this machine, an endpoint, a table of looks."""
