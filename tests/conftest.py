"""What holds for all tests of one process."""

import os

# gRPC's handlers of a fork may abort a child that some other test's server left with a poller. No child here uses gRPC before
# it runs another program. To be said before gRPC is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
