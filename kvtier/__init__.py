"""kvtier keeps the KV cache of idle conversations and gives it back to the inference engine.

One daemon, kvtierd, stands beside the engines of a node. Engines load `KVTierConnector` as their vLLM connector; it
saves blocks into shared memory that the daemon owns, and loads them again when a conversation comes back.

The nouns. No others exist without standing here:

    Block       the immutable KV bytes of N consecutive tokens: all layers, all ranks of one engine
    BlockKey    16 bytes naming content: keyed hash of the engine's own prefix hash and its cache group.
                Content-addressed: never updated, never invalidated
    Root        the secret that all keys are made with. Nodes that share a Remote share it
    Namespace   everything that must be equal for two keys to mean the same bytes: weights, dtypes, layout, ranks, ...
                A mismatch is a miss by construction. Its epoch grows when an engine resets its cache
    Tier        a rank of storage with a byte budget: `gpu` (copies), `cpu` (the arena), `nvme`; and `remote`, on others
    Arena       one preallocated region of shared memory: the daemon owns it, engines map it
    Slot        one place in the arena, named by its number: offset / 64 KiB. A Slot is a place, a Block is content
    Slab        a stretch of the arena that is cut into slots of one size
    Extent      a stretch of a drive's payload file that is filled and reclaimed as a whole
    Place       one place in another tier, named like a slot: offset / 64 KiB; on the drives extent after extent
    Mirror      which slots of the arena have a copy in a GPU's memory, and at which place there. What is there is in the
                arena too: a copy that is lost costs speed
    Catalogue   which block lies at which place, on disk: what survives a restart
    Remote      a store on other machines, that nodes share: blocks are found there by their keys, and others write there
    Question    which of these keys are in a Remote; a lookup may be put aside until the answer comes
    Source      a tier that blocks are read from for a lookup that waits
    Codec       how a block may be made smaller below RAM: none, two without loss, and three with it, which only an engine
                may wish; its namespace says so then. Coding chooses one, by what it spares and by how fast it is
    Frame       a block as a codec made it: its bodies, what proves them, and what it needs to be a block again
    Envelope    the header of a value in a Remote, which proves whose bytes they are
    Seal        what opens a block that lies encrypted on a drive, and proves it: its data key's number, nonce and tag
    Vault       the data keys of the drives, one a tenant, each wrapped by the Master key, which encryption.key_file has
    Breaker     leaves a Remote alone that fails or is silent, until a probe is answered
    Known       what is known of a Remote's blocks, without asking: there, or missing
    Parcel      one conversation in a file, on its way to another node
    Peer        another node, which reads this one's blocks as its Remote, and writes to it
    Visitor     in the store, whoever reads and writes blocks and is no engine: a peer, a parcel
    Placement   one Block's presence in one Tier, with its pins
    Index       BlockKey to placement, in RAM: a miss never touches a disk
    Client      a socket peer: an engine's scheduler, an engine's worker, or an observer such as tier-stats
    Engine      the scheduler and the workers of one running engine. What it holds goes back when the last of them is gone
    Lease       an engine's right to read placements; ends by release, or with the engine
    Session     a conversation: its keys in prefix order, its requests, its state, when it is expected back
    Lineage     which sessions have which keys. Where a session parted from another, what they share is its trunk
    Hint        what a client says of its session with a request. Nothing of it need be true
    Tenant      whose sessions they are: 16 bytes made from a request's salt and its engine's user. Its Origin tells who
                saved a block first. A tenant has a quota, and a fair share
    User        whose engine it is, by the kernel's word: whoever its process runs as. Users don't share blocks
    Residue     what a slot still holds of those who had it before
    Category    sessions that are learnt together. Returns: when those of a category come back
    Queue       blocks in the order in which they are to go; a Ranking says what the first of each is worth
    Policy      which block leaves RAM when room is needed: of the leaves of all queues the one worth least
    Pin         a user's wish that a session stays in RAM
    Transfer    one order to the tier below the arena, and its end. The Mover hands them over
    Link        one tier's way to where its blocks are needed: its queue exactly, its latency and bandwidth learnt
    Prefill     how long an engine computes prompt tokens, learnt from its steps. Its Pace is what it says of that
    Estimate    what taking a Candidate, the blocks up to one tier's boundary, would mean for a request; what it assumes
    Decision    how many of a request's matched blocks it is offered, why, and what came of it (its outcome)
    Guard       turns a tier off that makes requests wait longer than they would without it
    Ghost       the key of a block that is not here any more, and why
    Witness     a key that is the same in all namespaces, of a prompt's first block: names no block, explains a miss
    Calibration what was measured on a machine, and how fast its engines were
    Handover    what the next kvtierd needs to go on with the arena: read once, and never again
    Generation  names one stay of one engine at one daemon. After a disconnect there is a new one, so that slots of the
                former can't be written by mistake

The verbs: *save* and *load* (engine to arena, arena to engine); *demote* and *promote* (arena to drives and back);
*mirror*: copy from the arena to a GPU; *stage*: promote for a lookup that waits; *hold out*: serve a request without
loads, to see what others gain; *evict* drops a placement; *lend*, *commit* and *give back* slots; *close* a slab that
another size needs; *reclaim* an extent; *lookup* and *release* leases; *announce* a return, *fetch ahead* of it; *park* a
session: let it leave RAM; *forget* it: remove it from every tier, *wipe* its slots and *erase* its places; *export* it and
*import* it elsewhere: a parcel; *encode* a block into a frame and *decode* it; *seal* and *open* what lies encrypted,
*shred* a tenant's data keys; *drain* a node: write below what is worth keeping, before it goes away.

Layers; a file imports only from lower ones. What decides, layers 0 to 7, is pure: no clock, no randomness, no I/O.

    0  errors block usage tenants codec rows
    1  index arena policy stats protocol config transfer admission estimators guard ghosts hints returns known namespaces
    1  charging residue handover open_extents columns reclaim_order
    2  ram extents cost lineage ranking own_queues remote_room metrics coding
    3  demotion staging mirror decision session s3fifo arc
    4  lower deciding categories expecting pins moving away lookup rankings hearing
    5  seeking forgetting listing standing following draining
    6  leases lending retention
    7  store
    8  client observer listener members topology failpoint decision_log secret_file peer
    8  users hardening wiping service_manager access beat logs handing_over
    9  dispatch tiers replay calibration departing worker_client metrics_server adopting settings
    10  mover server measuring experience opening visitor parcel
    11  admin peer_service doctor ending
    12  upgrade
    13  daemon cli
"""

try:
    from kvtier._version import __version__  # a wheel has it, by git's tags; see pyproject.toml
except ModuleNotFoundError:  # a source tree that nobody built
    __version__ = "0+source"
