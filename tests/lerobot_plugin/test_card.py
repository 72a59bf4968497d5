"""The model card, and all that is uploaded, up to a hub on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies import make_pre_post_processors

from lerobot_policy_mode.modeling_mode import ModePolicy

from .conftest import batch_of, fresh, metadata


@pytest.fixture(autouse=True)
def _unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot has each card looked at by the hub, whose address is fixed."""
    monkeypatch.setattr(ModelCard, "validate", lambda self: None)


@dataclass
class Hub:
    """What was uploaded: path → content."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that takes commits, and nothing else."""
    taken = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("/repos/create"):
                answer: dict[str, Any] = {"url": f"{taken.url}/someone/policy", "id": "someone/policy"}
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                answer = {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                }
            elif self.path.endswith("/validate-yaml"):
                answer = {"errors": [], "warnings": []}
            else:
                assert "/commit/" in self.path, self.path
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        taken.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                answer = {"commitUrl": f"{taken.url}/someone/policy/commit/{'0' * 40}", "commitOid": "0" * 40}
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    taken.url = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", taken.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield taken
    served.shutdown()
    thread.join()
    served.server_close()


def test_what_is_pushed_is_a_policy(
    dataset: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, toy_encoder: None
) -> None:
    policy = fresh(dataset, "language=toy").eval()
    policy.config.repo_id = "someone/policy"
    meta = metadata(dataset)
    run = TrainPipelineConfig(DatasetConfig("local/tiny"), policy=policy.config)
    policy.push_model_to_hub(run, dataset_meta=meta)
    for processor in make_pre_post_processors(policy.config, dataset_stats=meta.stats):
        processor.push_to_hub(policy.config.repo_id)
    names = {"README.md", "config.json", "train_config.json", "model.safetensors"}
    assert names | {"policy_preprocessor.json", "policy_postprocessor.json"} <= set(hub.files)

    folder = tmp_path / "downloaded"
    for name, content in hub.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    again = ModePolicy.from_pretrained(folder)
    batch, noise = batch_of(dataset, policy), torch.randn(18, 4, 2)
    expected = policy.predict_action_chunk(batch, noise=noise)
    assert torch.equal(again.predict_action_chunk(batch, noise=noise), expected)


def test_the_card_tells_what_a_reader_asks_for(dataset: Path, toy_encoder: None) -> None:
    policy = fresh(dataset, "language=toy")
    run = TrainPipelineConfig(DatasetConfig("someone/data"), policy=policy.config)
    card = policy.generate_model_card(
        "someone/data", "mode", "mit", ["push"], cfg=run, dataset_meta=metadata(dataset)
    )
    assert card.data.license == "mit"
    assert {"robotics", "lerobot", "mode", "push"} <= set(card.data.tags)
    text = str(card)
    for part in (
        "lerobot-train \\",
        "--policy.type=mode",
        "pip install lerobot_policy_mode",
        "| Experts | 2 of 4 active |",
        "| Control rate | 10 Hz |",
        "- Pull the T.",
        "arxiv.org/abs/2412.12953",
        "| `observation.state` | STATE | `(2,)` |",
    ):
        assert part in text, part
