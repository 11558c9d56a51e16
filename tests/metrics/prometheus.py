"""A real Prometheus for a test: it scrapes one kvtierd twice a second, and answers queries."""

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from kvtierd import PATIENCE_S, KVTierd, eventually

FOLDER = Path(__file__).parents[2] / "systemd" / "prometheus"
RULES, RULE_TESTS, DASHBOARD, SCRAPE = (
    FOLDER / name for name in ("kvtier.rules.yml", "kvtier.rules.test.yml", "dashboard.json", "scrape.yml")
)
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
MISSING = "is not installed: apt-get install prometheus"
LISTENS = re.compile(r'msg="(?:TLS is disabled\.|Listening on)".*address=(127\.0\.0\.1:[1-9]\d*)')


class Prometheus:
    def __init__(self, folder: Path, target: str) -> None:
        """`target`: HOST:PORT of a kvtierd."""
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "scrape_configs": [{"job_name": "kvtier", "static_configs": [{"targets": [target]}]}],
            "rule_files": [str(RULES)],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML, too
        self.log = folder / "prometheus.log"
        command = [str(PROMETHEUS), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
                   "--web.listen-address=127.0.0.1:0"]  # fmt: skip
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._address = eventually(self._listens)[1]
            eventually(self._is_ready)
            eventually(lambda: self.ask('up{job="kvtier"} == 1'))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        answer = self.get("/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def get(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://{self._address}{path}", timeout=PATIENCE_S) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=PATIENCE_S) as answer:
                return bool(answer.status == 200)
        except OSError:  # not yet
            return False

    def _listens(self) -> re.Match[str] | None:
        said = self.log.read_text()
        assert self._process.poll() is None, said
        return LISTENS.search(said)


def served_on(daemon: KVTierd) -> str:
    """HOST:PORT of the metrics of a kvtierd that chose its port."""
    return eventually(lambda: re.search(r"metrics are served on http://(\S+)/metrics", daemon.said()))[1]


def queries_of_dashboard() -> dict[str, str]:
    """Panel and legend -> query, as Grafana asks it for all nodes."""
    return {
        f"{panel['title']}: {target['legendFormat']}": target["expr"]
        .replace("$instance", ".*")
        .replace("$__rate_interval", "10s")
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", ())
    }
