"""What a node would have done with a request trace: `kvtier simulate` and `kvtier size`.

trace      requests, as Mooncake's JSONL has them
presets    models and GPUs: bytes a token, seconds a prompt
sessions   what clients that know their conversations would have said
caches     hit rates of reference policies
codecs     what a codec makes of a tier, and where fetching begins to pay
clock      events, links, an engine's pace
remote     what several nodes share, and their ways to it
node       a node's tiers: the BlockStore that kvtierd runs, on drives and a remote that only take time
hits       hit rates of the store with each of its policies
arms       what is fetched
cluster    engines, a node and a trace: who waits how long
fleet      many nodes that share one remote
study      a question, and everything that was found
report     tables and JSON
picture    a picture
"""
