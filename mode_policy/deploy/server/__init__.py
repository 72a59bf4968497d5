"""The policy server: openpi's wire protocol, batching across clients, limits, metrics."""
