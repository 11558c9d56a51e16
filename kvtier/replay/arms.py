"""The arms that are compared: what of a request's matched blocks is fetched. In all of them engines have caches of their
own, and requests go to the engine that would answer first."""

ARMS = {
    "none": "nothing: only the engines' own caches",
    "always": "all that matches",
    "static": "all, from a number of tokens on",
    "kvtier": "as kvtierd decides",
    "oracle": "as it would if it knew all speeds",
}
DECIDING = ("kvtier", "oracle")  # by the store; the others by the rule below


def asks(arm: str, matched_tokens: int, static_tokens: int) -> bool:
    """Whether a request asks for its matched blocks. The two that decide always ask, and may think better of it while
    they wait. The oracle knows from the start how fast everything is, and no request is held out; what comes next it
    doesn't know either. So it is what kvtierd could reach, not what could be reached."""
    if arm == "static":
        return matched_tokens >= static_tokens
    return arm != "none" and matched_tokens > 0
