"""Starts the Milvus server of the package `milvus`; run with the Python of its environment.

    python process.py FOLDER PORTS      PORTS: JSON, a number for each name in PORTS of conftest.py

This process becomes the server, which is killed when the process that started it ends, however it
ends. The server's files are unpacked once, into the environment.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from milvus import MilvusServerConfig, _initialize_data_files

PR_SET_PDEATHSIG = 1


def main(folder: Path, ports: dict[str, int]) -> None:
    configured = {f"{name}_port": port for name, port in ports.items()}
    config = MilvusServerConfig(data_dir=str(folder), **configured)
    config.set("common.session.ttl", 5)  # seconds until a server that was killed is given up
    if not (folder / "configs" / "milvus.yaml").exists():
        config.resolve()
    client, peer = (f"http://127.0.0.1:{ports[name]}" for name in ("etcd", "etcd_peer"))
    etcd = {
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
    }
    etcd_config = folder / "configs" / "etcd.yaml"
    etcd_config.write_text("".join(f"{key}: {value}\n" for key, value in etcd.items()))
    home = Path(sys.prefix) / "server"
    _initialize_data_files(str(home))
    os.environ |= {
        "DEPLOY_MODE": "STANDALONE",
        "ETCD_CONFIG_PATH": str(etcd_config),
        "LD_LIBRARY_PATH": str(home / "bin"),
        "METRICS_PORT": str(ports["metrics"]),
        "MILVUS_RUN_DIR": str(folder / "run"),
    }
    os.chdir(folder)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # the one that started it has ended already
        sys.exit(1)
    program = str(home / "bin" / "milvus")
    os.execv(program, [program, "run", "standalone"])


main(Path(sys.argv[1]), json.loads(sys.argv[2]))
