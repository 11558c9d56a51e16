"""kvtier doctor on who may come near, of machines that are made up."""

import os
import socket
import struct
from pathlib import Path

import pytest
from made_up_machine import PID, Machine, facts_of, only, running

from kvtier.doctor import access
from kvtier.doctor.findings import ok

VLLM = ("vllm", "serve", "model", "--kv-transfer-config", '{"kv_connector":"KVTierConnector"}')


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def listen(machine, monkeypatch):
    """Makes the daemon's socket, with these modes."""

    def made(mode: int, folder_mode: int) -> None:
        folder = machine.folder("/run/kvtier")
        monkeypatch.chdir(folder)  # a socket's path must not be long
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind("kvtierd.sock")
        Path("kvtierd.sock").chmod(mode)
        folder.chmod(folder_mode)

    return made


# --- sockets -------------------------------------------------------------------------------------------------


def test_no_socket_is_no_danger(machine):
    assert only(access.sockets, facts_of(machine)) == ok("/run/kvtier/kvtierd.sock is not there: no kvtierd listens")


@pytest.mark.parametrize(("mode", "folder"), [(0o600, 0o700), (0o660, 0o750)], ids=["ours", "group"])
def test_a_socket_for_us_or_a_group_is_good(machine, listen, mode, folder):
    listen(mode, folder)
    found = only(access.sockets, facts_of(machine))
    assert found.level == "ok" and found.said.startswith(f"/run/kvtier/kvtierd.sock: mode {mode:04o}")


def test_a_socket_for_everybody_is_bad(machine, listen):
    listen(0o666, 0o755)
    found = only(access.sockets, facts_of(machine))
    assert found.level == "bad" and found.said == "anybody may connect to /run/kvtier/kvtierd.sock (mode 0666)"


def test_a_folder_that_nobody_may_enter_protects_it(machine, listen):
    listen(0o666, 0o700)
    assert only(access.sockets, facts_of(machine)).level == "ok"


def test_a_folder_where_anybody_may_put_another_socket_is_bad(machine, listen):
    listen(0o600, 0o777)
    assert only(access.sockets, facts_of(machine)).cure == "`chmod 0700 /run/kvtier`"


# --- the group -----------------------------------------------------------------------------------------------


def engine(machine: Machine, uid: int, groups: str) -> None:
    machine.process(7, *VLLM, uid=uid)
    machine.put("/proc/7/status", f"Uid:\t{uid}\t{uid}\nGid:\t50\t50\nGroups:\t{groups}\n")


def test_an_engine_of_the_same_user_needs_no_group(machine):
    engine(machine, os.geteuid(), "")
    assert only(access.group, facts_of(machine)) == ok("root and the user of kvtierd may connect")


def test_an_engine_of_another_user_needs_one(machine):
    engine(machine, 1234, "")
    found = only(access.group, facts_of(machine))
    assert found.level == "warn" and found.said == "vLLM, process 7, is of user 1234, and may not connect"


def test_a_member_may_connect(machine):
    machine.put("/etc/group", "root:x:0:\nkvtier:x:990:\n")
    engine(machine, 1234, "20 990")
    assert only(access.group, facts_of(machine, server__group="kvtier")) == ok("vLLM, process 7, is a member of kvtier")


def test_its_first_group_counts_too(machine):
    machine.put("/etc/group", "kvtier:x:50:\n")
    engine(machine, 1234, "")
    assert only(access.group, facts_of(machine, server__group="kvtier")).level == "ok"


def test_who_is_no_member_is_told_how_to_become_one(machine):
    machine.put("/etc/group", "kvtier:x:990:\n")
    engine(machine, 1234, "20")
    found = only(access.group, facts_of(machine, server__group="kvtier"))
    assert found.level == "warn" and found.cure.startswith("`usermod -aG kvtier USER`")


def test_a_group_that_is_not_there_is_bad(machine):
    assert only(access.group, facts_of(machine, server__group="kvtier")).level == "bad"


# --- secrets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "level"), [(0o600, "ok"), (0o400, "ok"), (0o640, "bad"), (0o604, "bad")])
def test_a_secret_is_for_its_owner(machine, mode, level):
    machine.put("/etc/kvtier/secret", "00", mode)
    assert only(access.secrets, facts_of(machine, remote__secret_file="/etc/kvtier/secret")).level == level


def test_of_a_secret_of_somebody_else_the_group_may_be_ours(machine):
    machine.put("/etc/kvtier/secret", "00", 0o640)
    machine.owners["/etc/kvtier/secret"] = os.geteuid() + 1
    assert only(access.secrets, facts_of(machine, remote__secret_file="/etc/kvtier/secret")).level == "ok"


def test_a_secret_that_is_not_there_is_bad(machine):
    assert only(access.secrets, facts_of(machine, remote__secret_file="/etc/kvtier/secret")).level == "bad"


def test_a_folder_is_no_secret(machine):
    machine.folder("/etc/kvtier")
    assert only(access.secrets, facts_of(machine, remote__secret_file="/etc/kvtier")).said.endswith("is no file")


def test_a_credential_of_the_service_is_not_looked_for(machine, monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert only(access.secrets, facts_of(machine, remote__secret_file="root")).level == "ok"


def test_every_setting_that_names_a_secret_is_looked_at():
    assert {"remote.secret_file", "remote.password_file", "remote.key_file", "peer.key", "encryption.key_file"} <= set(
        access.SECRETS
    )
    assert not {"remote.ca_file", "remote.cert_file", "peer.certificate"} & set(access.SECRETS)


# --- at rest -------------------------------------------------------------------------------------------------


def test_without_a_tier_below_nothing_is_at_rest(machine):
    assert only(access.encryption, facts_of(machine)) == ok("nothing is written below RAM")


@pytest.mark.parametrize(
    ("settings", "where"),
    [({"nvme__paths": "/mnt"}, "drives"), ({"remote__url": "redis://host"}, "the remote")],
    ids=["drives", "remote"],
)
def test_blocks_that_are_not_encrypted_are_a_warning(machine, settings, where):
    found = only(access.encryption, facts_of(machine, **settings))
    assert found.level == "warn" and found.said.startswith(f"blocks on {where} are not encrypted")


def test_blocks_that_are_encrypted_are_good(machine):
    facts = facts_of(machine, nvme__paths="/mnt", encryption__key_file="key")
    assert only(access.encryption, facts) == ok("blocks on drives are encrypted")


# --- ports ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "wide"),
    [
        ("", False), ("none", False), ("127.0.0.1:1", False), ("[::1]:1", False), ("localhost:1", False),
        ("/run/kvtier/metrics.sock", False), ("0.0.0.0:1", True), ("[::]:1", True), (":1", True), ("10.0.0.1:1", True),
        ("node7:1", True),
    ],
)  # fmt: skip
def test_what_other_machines_reach(listen, wide):
    assert access.is_wide(listen) == wide


def test_peers_with_certificates_are_good_and_without_bad(machine):
    facts = facts_of(machine, peer__listen="0.0.0.0:7001", peer__certificate="/etc/kvtier/node.pem")
    assert only(access.ports, facts) == ok("peer.listen = 0.0.0.0:7001: TLS, and nodes show certificates")
    assert only(access.ports, facts_of(machine, peer__listen="0.0.0.0:7001")).level == "bad"


def test_metrics_that_everybody_reads_are_a_warning(machine):
    assert only(access.ports, facts_of(machine, metrics__listen="0.0.0.0:9469")).level == "warn"


def test_what_the_kernel_knows_counts_too(machine):
    facts = facts_of(machine, running())
    machine.folder(f"/proc/{PID}/fd")
    for fd, inode in ((3, 111), (4, 222), (5, 333)):
        machine.link(f"/proc/{PID}/fd/{fd}", f"socket:[{inode}]")
    local, wide = (struct.unpack("=I", socket.inet_aton(host))[0] for host in ("127.0.0.1", "10.0.0.5"))
    rows = [(local, 1000, "0A", 111), (wide, 7001, "0A", 222), (wide, 7002, "01", 333), (wide, 22, "0A", 999)]
    lines = [
        f"{n}: {host:08X}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1"
        for n, (host, port, state, inode) in enumerate(rows)
    ]
    machine.put(f"/proc/{PID}/net/tcp", "\n".join(["  sl  local_address", *lines]))
    assert only(access.ports, facts).said == f"process {PID} on 10.0.0.5:7001, without TLS"


def test_addresses_of_both_families():
    assert str(access.address_of(f"{struct.unpack('=I', socket.inet_aton('192.168.1.2'))[0]:08X}")) == "192.168.1.2"
    words = struct.unpack("=4I", socket.inet_pton(socket.AF_INET6, "2001:db8::5"))
    assert str(access.address_of("".join(f"{word:08X}" for word in words))) == "2001:db8::5"
