"""kvtier doctor: is this machine, and what runs on it, as kvtier needs it? It changes nothing and asks no network.

system.py     the machine, read-only: its files below one root, and what no file says
facts.py      what checks look at: the system, the settings, what the running kvtierd says
findings.py   what a check says: ok, warn or bad, and what to do
memory.py  drives.py  gpus.py  engines.py  node.py  access.py     the checks, by subject
checks.py     all of them, declared once
"""
