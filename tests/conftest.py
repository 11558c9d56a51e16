"""What holds for all tests of one process."""

import os

# Another test's server may leave gRPC a poller, and then its handlers of a fork abort the child. No child here uses gRPC
# before it runs another program. To be said before gRPC is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
