"""What engines load. One folder an engine; today vLLM. Sees of kvtier only client, block, config, errors and _native."""
