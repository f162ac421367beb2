from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.errors import DataError, MissingExtraError, ModelError, TokenizerError
from edgetl.runtime.preprocessing import from_json
from edgetl.runtime.preprocessing.text import TextPreprocessing, vocabulary_of

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "tea", "##s"]


def bert(*, pad_is_special: bool = True) -> str:
    """A tokenizer of the BERT kind with eight tokens."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(WORDS[0 if pad_is_special else 1 : 4])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(length=128)
    made.enable_truncation(128)
    return str(made.to_str())


def bare() -> str:
    """A tokenizer that adds nothing."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return str(made.to_str())


@pytest.fixture(scope="module")
def contract() -> TextPreprocessing:
    return TextPreprocessing.from_tokenizer(bert(), max_length=6, pad=0)


class TestTokens:
    def test_a_text_its_bytes_and_its_file_are_the_same(self, contract: TextPreprocessing, tmp_path: Path) -> None:
        text = "Good téas\nbad 写真"
        (tmp_path / "Prüfung.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
        expected = [2, 4, 6, 7, 5, 3]
        for raw in (text, text.encode(), "\ufeff" + text, tmp_path / "Prüfung.txt"):
            ids = contract(raw)
            assert ids.dtype == np.int64 and ids.tolist() == expected

    def test_a_long_text_keeps_its_special_tokens(self, contract: TextPreprocessing) -> None:
        assert contract("tea " * 1000).tolist() == [2, 6, 6, 6, 6, 3]
        assert contract("").tolist() == [2, 3]

    @pytest.mark.parametrize("text", ["[PAD]", "good [PAD] [PAD] tea", "[SEP]", "[CLS][MASK]"])
    def test_special_tokens_in_a_text_are_text(self, contract: TextPreprocessing, text: str) -> None:
        ids = contract(text).tolist()
        assert 0 not in ids and ids[0] == 2 and ids[-1] == 3 and set(ids[1:-1]) <= {1, 4, 6}

    def test_shorter_ones_are_filled_up_on_the_right(self, contract: TextPreprocessing) -> None:
        batch = contract.together([contract("good"), contract("good bad tea"), contract("")])
        assert batch.dtype == np.int64
        assert batch.tolist() == [[2, 4, 3, 0, 0], [2, 4, 5, 6, 3], [2, 3, 0, 0, 0]]
        assert contract.together([]).shape == (0, 0)

    @settings(deadline=None)
    @given(st.lists(st.text(), min_size=1, max_size=5))
    def test_any_texts_make_a_batch_that_tells_them_apart(self, texts: list[str]) -> None:
        contract = TextPreprocessing.from_tokenizer(bert(), max_length=6, pad=0)
        samples = [contract(text) for text in texts]
        batch = contract.together(samples)
        assert batch.shape == (len(texts), max(map(len, samples))) and batch.shape[1] <= 6
        for row, sample in zip(batch, samples, strict=True):
            assert row[row != 0].tolist() == sample.tolist() and (row[len(sample) :] == 0).all()

    def test_a_pickled_one_gives_the_same(self, contract: TextPreprocessing) -> None:
        again = pickle.loads(pickle.dumps(contract))
        assert again == contract and hash(again) == hash(contract)
        assert again("good").tolist() == contract("good").tolist()

    def test_its_repr_is_short(self, contract: TextPreprocessing) -> None:
        assert len(repr(contract)) < 100


class TestBadTexts:
    def test_not_utf8(self, contract: TextPreprocessing, tmp_path: Path) -> None:
        (tmp_path / "latin.txt").write_bytes("schön".encode("latin-1"))
        with pytest.raises(DataError, match=r"latin\.txt is not UTF-8: .* at byte 3"):
            contract(tmp_path / "latin.txt")
        with pytest.raises(DataError, match="the text is not UTF-8"):
            contract(b"\xff\xfe")

    def test_half_a_character(self, contract: TextPreprocessing) -> None:
        with pytest.raises(DataError, match="not Unicode: surrogates not allowed at character 1"):
            contract("a\ud800b")

    def test_no_file(self, contract: TextPreprocessing, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"gone\.txt: there is no such file"):
            contract(tmp_path / "gone.txt")
        with pytest.raises(DataError, match="cannot be read: Is a directory"):
            contract(tmp_path)

    def test_no_token_at_all(self) -> None:
        contract = TextPreprocessing.from_tokenizer(bare(), max_length=4, pad=3)
        assert contract("a b").tolist() == [0, 1]
        with pytest.raises(DataError, match="has no token"):
            contract("  \n")

    def test_a_pad_id_inside_a_text(self) -> None:
        contract = TextPreprocessing.from_tokenizer(bare(), max_length=4, pad=2)
        with pytest.raises(TokenizerError, match=r"gives a token of the text 'a x' the id 2, which is the padding's"):
            contract("a x")


class TestContract:
    def test_padding_and_truncation_are_switched_off(self, contract: TextPreprocessing) -> None:
        values = json.loads(contract.tokenizer)
        assert values["padding"] is None and values["truncation"] is None
        assert contract.input_shape == ("length",) and contract.dtype == "int64"
        with pytest.raises(ModelError, match="has truncation of its own"):
            TextPreprocessing(tokenizer=bert(), max_length=6, pad=0)

    def test_json_is_its_inverse(self, contract: TextPreprocessing) -> None:
        values = json.loads(json.dumps(contract.to_json()))
        assert from_json(values) == contract == TextPreprocessing.from_json(values)
        assert from_json(values).digest() == contract.digest()
        longer = TextPreprocessing.from_json({**values, "max_length": 7})
        assert longer.digest() != contract.digest() and longer != contract

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"max_length": None}, "max_length None"),
            ({"max_length": 0}, "max_length 0"),
            ({"max_length": "6"}, "max_length '6'"),
            ({"pad": -1}, "pad -1"),
            ({"pad": True}, "pad True"),
            ({"tokenizer": "{"}, "not the JSON that it should be"),
            ({"tokenizer": 3}, "not the JSON that it should be"),
            ({"tokenizer": "[]"}, "has no 'model'"),
            ({"stride": 1}, "stride is unknown"),
        ],
    )
    def test_damaged_values(self, contract: TextPreprocessing, change: dict[str, object], message: str) -> None:
        with pytest.raises(ModelError, match=message):
            from_json({**contract.to_json(), **change})

    def test_missing_values(self) -> None:
        with pytest.raises(ModelError, match="max_length is missing, pad is missing, tokenizer is missing"):
            from_json({"kind": "text"})

    def test_a_tokenizer_that_the_package_refuses(self) -> None:
        with pytest.raises(ModelError, match="the tokenizer cannot be read"):
            TextPreprocessing.from_tokenizer('{"model": {"type": "Nonsense"}}', max_length=8, pad=0)

    def test_no_room_for_words(self) -> None:
        with pytest.raises(ModelError, match="at most 2 tokens have no room for words: the tokenizer adds 2"):
            TextPreprocessing.from_tokenizer(bert(), max_length=2, pad=0)

    def test_a_pad_id_that_stands_around_every_text(self) -> None:
        with pytest.raises(TokenizerError, match=r"puts the token '\[SEP\]' around every text"):
            TextPreprocessing.from_tokenizer(bert(), max_length=8, pad=3)

    def test_vocabulary(self, contract: TextPreprocessing) -> None:
        assert contract.vocabulary == len(WORDS) == vocabulary_of(bert())
        assert vocabulary_of(bert(), pad=20) == 21


def test_without_the_package_the_extra_is_named(contract: TextPreprocessing) -> None:
    """The contract itself can be read: only texts cannot."""
    code = (
        "import sys, json; sys.modules['tokenizers'] = None\n"
        "from edgetl.runtime.preprocessing import from_json\n"
        "from edgetl.errors import MissingExtraError\n"
        "contract = from_json(json.load(sys.stdin))\n"
        "try:\n    contract('good')\n"
        "except MissingExtraError as error:\n    print(error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(contract.to_json()), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "pip install 'edgetl[text]'" and MissingExtraError.exit_code == 8
