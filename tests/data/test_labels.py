from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.data.labels import identities, label_sets, split_people
from edgetl.data.manifest import Row, read_manifest
from edgetl.errors import DataError, LeakError


def rows(*labels: str | None) -> list[Row]:
    return [
        Row(Path(f"/data/{number}.png"), label, None, None, f"line {number + 2}") for number, label in enumerate(labels)
    ]


class TestLabelSets:
    def test_sets_become_zeros_and_ones_in_the_order_of_the_classes(self) -> None:
        classes, sets = label_sets({"train": rows("b;a", "c", None), "test": rows(" c ; b ", "a")})
        assert classes == ("a", "b", "c")
        assert sets == {"train": [(1, 1, 0), (0, 0, 1), (0, 0, 0)], "test": [(0, 1, 1), (1, 0, 0)]}

    def test_classes_are_sorted_as_text_or_as_given(self) -> None:
        given_rows = {"train": rows("2;10"), "test": rows("10", "2")}
        assert label_sets(given_rows)[0] == ("10", "2")
        assert label_sets(given_rows, ("2", "10")) == (("2", "10"), {"train": [(1, 1)], "test": [(0, 1), (1, 0)]})

    def test_val_may_lack_a_class(self) -> None:
        _, sets = label_sets({"train": rows("a;b"), "val": rows("a", None), "test": rows("a;b")})
        assert sets["val"] == [(1, 0), (0, 0)]

    @pytest.mark.parametrize(
        ("train", "test", "classes", "message"),
        [
            (("a;b", "a;b;a"), ("a;b",), (), r"line 3: the label 'a;b;a' names 'a' more than once"),
            (("a;b",), ("a;;b",), (), r"line 2: the label 'a;;b' has an empty name"),
            (("a;",), ("a",), (), r"the label 'a;' has an empty name"),
            ((None, None), ("a",), (), r"all 2 labels in train are empty"),
            ((), ("a",), (), r"all 0 labels in train are empty"),
            (("cat;dog",), ("cat;dgo",), (), r"test has the label 'dgo' \(line 2\), .*; did you mean 'dog'\?"),
            (("cat;dog",), ("cat",), ("cat",), r"train has the label 'dog' \(line 2\).*known: cat"),
            (("cat;dog",), ("cat",), (), r"test has no sample of 1 of 2 classes: 'dog'"),
            (("cat",), ("cat",), ("cat", "dog"), r"train has no sample of 1 of 2 classes: 'dog'"),
            (("cat",), ("cat",), ("cat", "cat"), r"data\.classes names 'cat' more than once"),
            (("cat",), ("cat",), ("cat", "a;b"), r"data\.classes has 'a;b': ';' stands between"),
        ],
    )
    def test_what_is_wrong_is_named(
        self, train: tuple[str, ...], test: tuple[str, ...], classes: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            label_sets({"train": rows(*train), "test": rows(*test)}, classes)

    @given(st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=1))
    def test_nothing_is_lost_on_the_way(self, sets: list[set[str]]) -> None:
        listed = rows(*(";".join(sorted(each, reverse=True)) for each in sets))
        classes, found = label_sets({"train": listed, "test": listed})
        assert [{name for name, on in zip(classes, each, strict=True) if on} for each in found["test"]] == sets

    def test_a_manifest_with_empty_labels(self, tmp_path: Path) -> None:
        for name in ("1", "2"):
            (tmp_path / f"{name}.png").touch()
        manifest = tmp_path / "m.csv"
        manifest.write_text("path,label,split\n1.png,a;b,train\n2.png, ,test\n")
        found = read_manifest(manifest, may_be_empty=("label",))
        assert [row.label for row in found] == ["a;b", None]
        with pytest.raises(DataError, match="line 3: label is empty"):
            read_manifest(manifest)
        manifest.write_text("path,label,split\n1.png,a,\n")
        with pytest.raises(DataError, match="line 2: split is empty"):
            read_manifest(manifest, may_be_empty=("label",))
        manifest.write_text("path,split\n1.png,train\n")
        with pytest.raises(DataError, match="column 'label' is missing"):
            read_manifest(manifest, may_be_empty=("label",))


def faces(**images: int) -> list[Row]:
    return rows(*(person for person, count in images.items() for _ in range(count)))


class TestIdentities:
    def test_people_are_numbered_by_split(self) -> None:
        splits = {"test": faces(zoe=2, ann=2), "train": faces(bob=2, al=1), "val": faces(cy=2, amy=3)}
        people, labels = identities(splits)
        assert people == ("al", "bob", "amy", "cy", "ann", "zoe")
        assert labels == {"train": [1, 1, 0], "val": [3, 3, 2, 2, 2], "test": [5, 5, 4, 4]}

    @pytest.mark.parametrize(
        ("train", "val", "test", "error", "message"),
        [
            (
                {"a": 2, "b": 2},
                {"c": 2, "a": 2},
                {"e": 2, "f": 2},
                LeakError,
                r"1 person stands .*\n  'a' in train and val",
            ),
            (
                {"a": 2, "b": 2},
                {"c": 2, "d": 2},
                {"b": 2, "a": 2},
                LeakError,
                r"2 people stand .*\n  'a' in train and test",
            ),
            ({"a": 2}, {"c": 2, "d": 2}, {"e": 2, "f": 2}, DataError, r"train has one person"),
            ({}, {"c": 2, "d": 2}, {"e": 2, "f": 2}, DataError, r"train has no person"),
            ({"a": 1, "b": 1}, {"c": 2}, {"e": 2, "f": 2}, DataError, r"val has one person"),
            ({"a": 1, "b": 1}, {"c": 2, "d": 2}, {"e": 9}, DataError, r"test has one person"),
            ({"a": 1, "b": 1}, {"c": 2, "d": 2}, {"e": 9, "f": 1, "g": 1}, DataError, r"only one person among 3"),
            ({"a": 1, "b": 1}, {"c": 1, "d": 1}, {"e": 2, "f": 2}, DataError, r"val has two .* only no person among 2"),
        ],
    )
    def test_what_is_wrong_is_named(
        self,
        train: dict[str, int],
        val: dict[str, int],
        test: dict[str, int],
        error: type[DataError],
        message: str,
    ) -> None:
        with pytest.raises(error, match=message) as raised:
            identities({"train": faces(**train), "val": faces(**val), "test": faces(**test)})
        assert raised.value.exit_code == 3 and raised.value.hint

    def test_only_ten_of_many_people_are_named(self) -> None:
        both = faces(**{f"p{number:02}": 2 for number in range(15)})
        with pytest.raises(LeakError, match=r"'p09' in train and test\n  … and 5 more") as raised:
            identities({"train": both, "test": both})
        assert "p10" not in raised.value.message


class TestSplitPeople:
    def test_whole_people_move_in_their_order(self) -> None:
        listed = faces(**{f"p{number}": 3 for number in range(20)})
        train, val = split_people(listed, 0.25, 0)
        assert len({row.label for row in val}) == 5 and not {row.label for row in val} & {row.label for row in train}
        assert sorted([*train, *val], key=listed.index) == listed
        assert train == sorted(train, key=listed.index) and val == sorted(val, key=listed.index)
        assert split_people(listed, 0.25, 1)[1] != val

    @given(st.permutations(range(24)), st.integers(0, 3), st.sampled_from([0.01, 0.2, 0.89]))
    def test_the_order_of_the_rows_does_not_matter(self, order: list[int], seed: int, fraction: float) -> None:
        listed = faces(**{f"p{number}": 4 for number in range(6)})
        _, val = split_people(listed, fraction, seed)
        _, again = split_people([listed[position] for position in order], fraction, seed)
        assert {row.path for row in val} == {row.path for row in again}
        assert 2 <= len({row.label for row in val}) <= 4

    def test_people_of_one_image_stay_in_train_where_they_can(self) -> None:
        for seed in range(20):
            _, val = split_people(faces(a=1, b=1, c=2, d=1, e=2, f=1), 0.3, seed)
            assert Counter(row.label for row in val) == {"c": 2, "e": 2}

    @pytest.mark.parametrize("people", [{}, {"a": 9}, {"a": 2, "b": 2, "c": 2}])
    def test_too_few_people(self, people: dict[str, int]) -> None:
        with pytest.raises(DataError, match="val cannot be taken out of it"):
            split_people(faces(**people), 0.1, 0)
