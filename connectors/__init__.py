"""What engines load. One folder an engine; today vLLM. Sees of kvtier only client, block, estimators,
config, errors, protocol and _native."""
