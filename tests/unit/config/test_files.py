from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedbus.config.files import Document, dotted, find_folder, fingerprint, load_folder, parse, resolve
from fedbus.errors import ConfigError


def problems(data: bytes | str) -> list[str]:
    return [str(one) for one in parse(data.encode() if isinstance(data, str) else data, "f.yaml").problems]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "fedbus.d"
    made.mkdir(mode=0o755)
    return made


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(0o644)
    return path


def load(folder: Path, environ: dict[str, str] | None = None) -> Document:
    return load_folder(folder, environ or {})


def texts(document: Document) -> list[str]:
    return [str(problem) for problem in document.problems]


TRAPS = (
    "no No NO yes on off y N True FALSE Null 22:30 1:30:00 190:20:30.15 017 0o17 00 0x1F 0b11 1_000 +5 1e3 .5 5. .inf "
    "-.inf .NaN 2024-01-01 << = 2024-01-01T10:00:00 2001-12-14t21:59:43.10-05:00 9999999999999999999"
)

# --- one file


def test_values_keep_their_types_and_their_lines():
    document = parse(b"a: 1\nb:\n  c: [x, 'no', 1.5]\n  d: true\ne: null\nf: -3\n", "f.yaml")
    assert document.problems == []
    assert document.values == {"a": 1, "b": {"c": ["x", "no", 1.5], "d": True}, "e": None, "f": -3}
    assert str(document.origins["b", "c"]) == "f.yaml:3"
    assert str(document.origins["b", "c", 1]) == "f.yaml:3"
    assert str(document.origin(("b", "d", "unknown"))) == "f.yaml:4"


@pytest.mark.parametrize("data", [b"", b"\n", b"# all of it is commented out\n"])
def test_a_file_of_comments_is_an_empty_mapping(data):
    document = parse(data, "f.yaml")
    assert (document.values, document.problems, document.whole) == ({}, [], True)


@pytest.mark.badinput("B46")
@pytest.mark.parametrize("trap", TRAPS.split())
def test_a_value_that_readers_of_yaml_understand_differently_is_refused_with_its_line(trap):
    (problem,) = problems(f"# first\nkey: {trap}\n")
    assert problem.startswith("f.yaml:2: key: ")
    assert f'write "{trap}"' in problem
    assert problems(f'key: "{trap}"\n') == []


@pytest.mark.parametrize("trap", ["no", "on", "22:30", "017", "1", "true", "1.5", "null", "~"])
@pytest.mark.badinput("B46")
def test_a_key_that_is_no_text_is_refused(trap):
    (problem,) = problems(f"{trap}: x\n")
    assert problem.startswith("f.yaml:1: the key ")


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "127.0.0.1:3000", "tcp://[::1]:3000", "org.example", "7d", "64MiB", "nobody", "a=b"]
)
def test_common_texts_need_no_quotes(text):
    assert resolve(text) == text


@pytest.mark.badinput("B46")
def test_an_alias_bomb_is_refused_before_it_is_walked():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    found = problems("\n".join(lines))
    assert "f.yaml:1: anchor &a0 is not allowed; write the value out where it is needed" in found
    assert any(one.startswith("f.yaml:2: alias *a0 is not allowed") for one in found)


@pytest.mark.badinput("B46")
@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: &x [*x]", 1, "alias *x"),
        ("a: 1\nb: !!python/object/apply:os.system [id]", 2, "tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !!str 5", 1, "tag"),
        ("a: ! 5", 1, "tag"),
        ("a: 1\nb: 2\na: 3", 3, "duplicate key 'a': line 1 has it already"),
        ("x:\n  a: 1\n  a: 1", 3, "duplicate key 'a'"),
        ("a: {<<: {b: 1}}", 1, "a merge"),
        ("a: 1\n---\nb: 2", 2, "second document"),
        ("%YAML 1.1\n---\na: 1", 1, "directives"),
        ("- 1\n- 2", 1, "does not hold a mapping"),
        ("text", 1, "does not hold a mapping"),
        ("? [1, 2]\n: x", 1, "a key must be plain text"),
        ('a: 1\nb: "x\\0y"', 2, "NUL character"),
        ("a: [1, 2", 2, "is not YAML"),
        ("a: 1\n\tb: 2", 2, "is not YAML"),
        ("a: \x07", 1, "control characters"),
        ("a: 1\nb: " + "[" * 40 + "]" * 40, 2, "nested more than 32 levels"),
        ("a: " + "[" * 400_000, 1, "nested more than 32 levels"),
    ],
)
def test_what_the_strict_reader_refuses_is_named_with_its_line(text, line, words):
    found = problems(text)
    assert any(one.startswith(f"f.yaml:{line}: ") and words in one for one in found), found


@pytest.mark.badinput("B46")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a: 1\nb: \0", "f.yaml:2: holds a NUL byte"),
        ("a: 1\n".encode("utf-16"), "byte order mark"),
        ("a: 1\n".encode("utf-16-le"), "is it UTF-16?"),
        ("a: 1\n".encode("utf-32"), "byte order mark"),
        (b"\xef\xbb\xbfa: 1\n", "byte order mark"),
        (b"a: 1\nb: \xe9\n", "f.yaml:2: is not UTF-8: byte 0xe9"),
        (b"a: " + b"x" * 10 * 2**20, "is larger than 1048576 bytes"),
    ],
)
def test_bytes_that_are_no_small_utf_8_text_are_refused(data, words):
    (problem,) = problems(data)
    assert words in problem


def test_all_faults_of_a_file_are_reported_together():
    found = problems("a: no\nb: 017\nc: !x 1\na: 2\n")
    assert [one.split(": ")[0] for one in found] == ["f.yaml:1", "f.yaml:2", "f.yaml:3", "f.yaml:4"]


def test_faults_without_end_are_cut_short():
    found = problems("".join(f"k{n}: no\n" for n in range(5000)))
    assert len(found) == 101
    assert "too many faults" in found[-1]


@pytest.mark.badinput("B46")
@given(st.binary(max_size=300))
def test_any_bytes_load_or_have_problems_and_nothing_else(data):
    document = parse(data, "f.yaml")
    assert isinstance(document.values, dict)
    assert document.whole or document.problems


@pytest.mark.badinput("B46")
@given(st.text(alphabet="ab01:-?[]{},&*!|>'\"%#@ \n\t~<=.$\\", max_size=80))
def test_any_text_made_of_the_marks_of_yaml_loads_or_has_problems(text):
    document = parse(text.encode(), "f.yaml")
    if document.whole and not document.problems:
        # what we accept, the usual reader understands in the same way
        assert document.values == (yaml.load(text, Loader=yaml.CSafeLoader) or {})


scalars = st.one_of(st.none(), st.booleans(), st.integers(-(10**17), 10**17), st.text(string.printable, max_size=10))
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text("abcd", min_size=1), trees, min_size=1, max_size=4))
def test_what_a_yaml_writer_writes_is_read_back_the_same_or_is_ambiguous(values):
    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    document = parse(yaml.dump(values, Dumper=Plain).encode(), "f.yaml")
    # the writer speaks YAML 1.1, where 08 is a text and needs no quotes
    assert all("is ambiguous" in problem.text for problem in document.problems)
    assert document.problems or document.values == values


# --- the folder


@pytest.mark.parametrize("where", ["explicit", "variable", "first default", "second default"])
def test_the_folder_named_most_directly_is_read(tmp_path, where):
    names = ["explicit", "variable", "first default", "second default"]
    for name in names[names.index(where) :]:
        (tmp_path / name).mkdir()
    environ = {"FEDBUS_CONFIG": str(tmp_path / "variable")} if where in ("explicit", "variable") else {}
    explicit = tmp_path / "explicit" if where == "explicit" else None
    defaults = (tmp_path / "first default", tmp_path / "second default")
    assert find_folder(explicit, environ, defaults=defaults) == tmp_path / where


def test_a_folder_that_is_named_and_missing_is_an_error_even_where_a_default_exists(tmp_path):
    with pytest.raises(ConfigError, match=r"named by FEDBUS_CONFIG does not exist; `fedbus init"):
        find_folder(None, {"FEDBUS_CONFIG": str(tmp_path / "gone")}, defaults=(tmp_path,))
    with pytest.raises(ConfigError, match="gone: the configuration folder does not exist"):
        find_folder(tmp_path / "gone", {}, defaults=(tmp_path,))


def test_without_any_folder_the_error_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="fedbus init DIR"):
        find_folder(None, {}, defaults=(tmp_path / "a", tmp_path / "b"))


def test_files_merge_in_the_order_of_names_and_each_value_remembers_its_line(folder):
    write(folder, "20-b.yaml", "log:\n  level: debug\nlist: [3]\n")
    write(folder, "10-a.yaml", "log:\n  level: info\n  format: json\nlist: [1, 2]\n")
    write(folder, ".30-hidden.yaml", "log: no")
    document = load(folder)
    assert document.problems == []
    assert document.values == {"log": {"level": "debug", "format": "json"}, "list": [3]}
    origins = {dotted(path): str(origin).removeprefix(f"{folder}/") for path, origin in document.origins.items()}
    assert origins == {
        "log": "10-a.yaml:1",
        "log.level": "20-b.yaml:2",
        "log.format": "10-a.yaml:3",
        "list": "20-b.yaml:3",
        "list[0]": "20-b.yaml:3",
    }


@pytest.mark.badinput("B47")
def test_an_endpoint_in_two_files_is_a_duplicate(folder):
    write(folder, "1.yaml", "endpoints:\n  koji.a: {publish: x}\n")
    write(folder, "2.yaml", "endpoints:\n  bodhi.a: {publish: b}\n  koji.a: {publish: c}\n")
    assert texts(load(folder)) == [
        f"{folder}/2.yaml:3: duplicate endpoint 'koji.a': {folder}/1.yaml:2 defines it already; remove one"
    ]


@pytest.mark.badinput("B45")
@pytest.mark.parametrize("mode", [0o666, 0o664, 0o622, 0o777])
def test_a_config_file_that_others_can_write_is_refused_naming_path_and_mode(folder, mode):
    path = write(folder, "10-bus.yaml", "a: 1\n")
    path.chmod(mode)
    assert texts(load(folder)) == [f"{path}: has mode {mode:04o}, so others can change it; use chmod go-w"]


@pytest.mark.badinput("B45")
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_config_folder_that_others_can_write_is_refused_naming_path_and_mode(folder, mode):
    write(folder, "10-bus.yaml", "a: 1\n")
    folder.chmod(mode)
    assert texts(load(folder)) == [f"{folder}: has mode {mode:04o}, so others can change it; use chmod go-w"]


@pytest.mark.badinput("B45")
def test_a_symlinked_config_file_is_refused(folder, tmp_path):
    write(tmp_path, "elsewhere.yaml", "a: 1\n")
    (folder / "10-bus.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    assert texts(load(folder)) == [f"{folder}/10-bus.yaml: is a symbolic link (mode 0777); put the file itself here"]


@pytest.mark.badinput("B45")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_somebody_else_is_refused(folder):
    path = write(folder, "10-bus.yaml", "a: 1\n")
    os.chown(path, 12345, -1)
    assert texts(load(folder)) == [
        f"{path}: belongs to user id 12345; it must belong to root or to user id 0: use chown"
    ]
    os.chown(path, 0, -1)
    os.chown(folder, 12345, -1)
    assert [one.split("; ")[0] for one in texts(load(folder))] == [f"{folder}: belongs to user id 12345"]


@pytest.mark.badinput("B45")
def test_a_fifo_in_the_folder_is_refused_and_does_not_keep_us_waiting(folder):
    os.mkfifo(folder / "10-bus.yaml", 0o600)
    assert texts(load(folder)) == [f"{folder}/10-bus.yaml: is no regular file (mode 0600); remove it from the folder"]


def test_a_file_that_ends_in_yml_is_reported_since_it_would_be_missed(folder):
    write(folder, "10-bus.yaml", "a: 1\n")
    write(folder, "20-more.yml", "b: 1\n")
    assert texts(load(folder)) == [f"{folder}/20-more.yml: is not read; rename it to end in .yaml"]


def test_an_empty_folder_is_reported(folder):
    assert "holds no *.yaml file" in texts(load(folder))[0]


# --- the environment


def test_variables_of_the_environment_are_replaced_in_texts(folder):
    write(folder, "1.yaml", 'a: ${HOST}:${PORT}\nb: ["x${HOST}"]\nc: $${HOST} and $HOST and $$\nd: 5\n')
    document = load(folder, {"HOST": "h1", "PORT": "3000"})
    assert document.problems == []
    assert document.values == {"a": "h1:3000", "b": ["xh1"], "c": "${HOST} and $HOST and $$", "d": 5}
    assert document.variables == {("a",): "${HOST}:${PORT}", ("b", 0): "x${HOST}"}


def test_what_a_variable_holds_is_text_and_never_read_as_yaml(folder):
    write(folder, "1.yaml", "a: ${V}\n")
    assert load(folder, {"V": "{b: [1, ${V}]}"}).values == {"a": "{b: [1, ${V}]}"}


@pytest.mark.badinput("B47")
@pytest.mark.parametrize("text", ["${UNSET}", "${}", "${1A}", "${UNSET", "${A B}", "${EVIL}"])
def test_a_variable_that_is_unset_or_no_name_is_an_error_with_its_line(folder, text):
    write(folder, "1.yaml", f"x: 1\na: '{text}'\nb: '${{UNSET}}'\n")
    found = texts(load(folder, {"EVIL": "a\nb"}))
    assert len(found) == 2
    assert found[0].startswith(f"{folder}/1.yaml:2: a: ")
    assert (
        found[1] == f"{folder}/1.yaml:3: b: the environment variable UNSET is not set; set it, or write the value here"
    )


def test_the_fingerprint_changes_with_any_edit_addition_or_removal(folder):
    path = write(folder, "1.yaml", "a: 1\n")
    seen = {fingerprint(folder)}
    path.write_text("a: 12\n")
    seen.add(fingerprint(folder))
    write(folder, "2.yaml", "b: 1\n")
    seen.add(fingerprint(folder))
    path.unlink()
    seen.add(fingerprint(folder))
    assert len(seen) == 4
    assert fingerprint(folder / "gone") == ()
