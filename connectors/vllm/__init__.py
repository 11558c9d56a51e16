"""kvtier's connector for vLLM.

    connector.py   KVTierConnector: what vLLM loads; hands each hook to vLLM's own OffloadingConnector and to us
    spec.py        what OffloadingConnector asks for: a manager for the scheduler process, a worker for each rank
    manager.py     scheduler process: which blocks are here, which are to be saved
    questions.py   its questions to kvtierd, and their leases
    announcing.py  what a request's client says of it
    names.py       what vLLM and kvtierd call a block
    own_cache.py   what the engine's own cache has of a new request
    pace.py        what the engine does and how fast
    journey.py     one request's way to its first token
    tracked.py     what the manager remembers of requests and jobs
    tally.py       what of all this vLLM's own metrics show
    worker.py      worker process: copies between engine and arena
    copies.py      by what: threads of the CPU, or the GPU beside the forward pass
    memory.py      kvtierd's memory in a worker: mapped, registered with the GPU's driver, let go of
    layout.py      addresses of a block's bytes, in the engine and in a slot
    identity.py    the facts that make a namespace
    edge.py        where our errors end: nothing of ours is raised into the engine

Importing this package has no side effects and does not import vLLM.
"""


def register() -> None:
    """The `vllm.general_plugins` entry point. vLLM calls it in every process, more than once."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if "KVTierConnector" not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector("KVTierConnector", "kvtier.connectors.vllm.connector", "KVTierConnector")
