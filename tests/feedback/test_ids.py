import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from feedback.ids import SecretError, bare_id, load_secret, new_id, parse_secret, scope_of

SECRET = b"a throw-away secret of 32+ bytes for tests"
ALPHABET = "0123456789abcdef"

scopes = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}\.[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)
times_s = st.floats(0, 2**47 / 1000)
entropies = st.binary(min_size=8, max_size=8)


def check_id(decision_id: str, secrets: list[bytes], scope: str) -> float | None:
    """When the decision was made, if it was made for this scope."""
    found = scope_of(decision_id, secrets, (scope,))
    return None if found is None else found[1]


@given(scope=scopes, now_s=times_s, entropy=entropies)
def test_an_id_tells_its_scope_and_its_time_to_the_millisecond(
    scope: str, now_s: float, entropy: bytes
) -> None:
    decision_id = new_id(SECRET, scope, now_s=now_s, entropy=entropy)
    assert len(decision_id) == 43
    found = scope_of(decision_id, [SECRET], ["other.route", scope])
    assert found == (scope, int(now_s * 1000) / 1000)
    assert check_id(decision_id, [SECRET], scope) == found[1]


def test_the_spelling_is_pinned_since_ids_outlive_a_release() -> None:
    decision_id = new_id(SECRET, "acme.chat", now_s=1_790_000_000.123, entropy=bytes(range(8)))
    assert decision_id == "rt-01a0c4506c7b0001020304050607b956f98bbf2b"


@given(scope=scopes, entropy=entropies, bit=st.integers(0, 159))
def test_one_flipped_bit_is_refused(scope: str, entropy: bytes, bit: int) -> None:
    letters = list(new_id(SECRET, scope, now_s=1.79e9, entropy=entropy))
    at = 3 + bit // 4
    letters[at] = ALPHABET[ALPHABET.index(letters[at]) ^ (1 << bit % 4)]
    assert scope_of("".join(letters), [SECRET], [scope]) is None


@given(entropy=entropies, at=st.integers(0, 42), character=st.characters())
def test_one_changed_character_is_refused(entropy: bytes, at: int, character: str) -> None:
    decision_id = new_id(SECRET, "acme.chat", now_s=1.79e9, entropy=entropy)
    assume(decision_id[at] != character)
    changed = decision_id[:at] + character + decision_id[at + 1 :]
    assert scope_of(changed, [SECRET], ["acme.chat"]) is None


@given(entropy=entropies, at=st.integers(0, 42), character=st.characters())
def test_one_character_more_or_less_is_refused(entropy: bytes, at: int, character: str) -> None:
    decision_id = new_id(SECRET, "acme.chat", now_s=1.79e9, entropy=entropy)
    assert scope_of(decision_id[:at] + character + decision_id[at:], [SECRET], ["acme.chat"]) is None
    assert scope_of(decision_id[:at] + decision_id[at + 1 :], [SECRET], ["acme.chat"]) is None


@given(mine=scopes, theirs=scopes, entropy=entropies)
def test_an_id_of_another_scope_is_refused(mine: str, theirs: str, entropy: bytes) -> None:
    assume(mine != theirs)
    assert check_id(new_id(SECRET, theirs, now_s=1.79e9, entropy=entropy), [SECRET], mine) is None


@given(text=st.text())
def test_any_other_text_is_refused_quietly(text: str) -> None:
    assert scope_of(text, [SECRET], ["acme.chat"]) is None


@pytest.mark.parametrize(
    "spell",
    [
        str.upper,
        lambda i: i + "=",
        lambda i: i + "\n",
        lambda i: " " + i,
        lambda i: i[3:],
        lambda i: "RT-" + i[3:],
    ],
)
def test_only_the_canonical_spelling_is_accepted(spell: Callable[[str], str]) -> None:
    decision_id = new_id(SECRET, "acme.chat", now_s=1.79e9, entropy=bytes(8))
    assert check_id(spell(decision_id), [SECRET], "acme.chat") is None


def test_a_previous_secret_still_verifies_and_a_foreign_one_never_did() -> None:
    old, new = b"o" * 32, b"n" * 32
    decision_id = new_id(old, "acme.chat", now_s=5.0, entropy=bytes(8))
    assert check_id(decision_id, [new, old], "acme.chat") == 5.0
    assert check_id(decision_id, [new], "acme.chat") is None


def test_secrets_that_differ_only_beyond_64_bytes_are_different() -> None:
    decision_id = new_id(b"s" * 64 + b"1", "acme.chat", now_s=5.0, entropy=bytes(8))
    assert check_id(decision_id, [b"s" * 64 + b"2"], "acme.chat") is None
    assert check_id(decision_id, [b"s" * 64 + b"1"], "acme.chat") == 5.0


def test_entropy_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="exactly 8"):
        new_id(SECRET, "acme.chat", now_s=5.0, entropy=b"short")


def test_the_response_id_leads_to_the_decision_id() -> None:
    decision_id = new_id(SECRET, "acme.chat", now_s=5.0, entropy=bytes(8))
    assert bare_id("chatcmpl-" + decision_id) == decision_id
    assert bare_id(decision_id) == decision_id


def test_the_environment_comes_before_the_file(tmp_path: Path) -> None:
    assert load_secret("é" * 16, tmp_path) == ("é" * 16).encode()
    assert not list(tmp_path.iterdir())


def test_a_short_secret_is_refused_with_a_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(SecretError, match=r"has 31 bytes, at least 32 are needed; make one with: python3 -c"):
        load_secret("x" * 31, tmp_path)
    with pytest.raises(SecretError, match="the previous one has 0 bytes"):
        parse_secret("", origin="the previous one")


def test_the_command_in_the_message_makes_a_secret_that_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(SecretError) as refused:
        load_secret("", tmp_path)
    code = str(refused.value).partition("python3 -c ")[2].strip("'")
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert parse_secret(made, origin="the command") == made.encode()


def test_the_file_is_made_once_private_and_kept(tmp_path: Path) -> None:
    state_dir = tmp_path / "not" / "there"
    first = load_secret(None, state_dir)
    assert len(first) >= 32
    assert load_secret(None, state_dir) == first
    assert (state_dir / "secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in state_dir.iterdir()] == ["secret"]
    assert load_secret(None, tmp_path / "elsewhere") != first


def test_racing_workers_agree_on_one_secret(tmp_path: Path) -> None:
    """Every round all of them find no secret at the same moment."""
    workers = 8
    barrier = threading.Barrier(workers)

    def race(number: int) -> bytes:
        barrier.wait(30)
        return load_secret(None, tmp_path / str(number))

    with ThreadPoolExecutor(workers) as pool:
        for number in range(50):
            said = set(pool.map(race, [number] * workers))
            assert said == {(tmp_path / str(number) / "secret").read_bytes().strip()}
            assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["secret"]


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_secret(None, tmp_path)
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(SecretError, match="chmod 600"):
        load_secret(None, tmp_path)


def test_a_file_with_too_little_in_it_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("short\n")
    path.chmod(0o600)
    with pytest.raises(SecretError, match="has 5 bytes"):
        load_secret(None, tmp_path)
    assert path.read_text() == "short\n"


def test_a_folder_that_can_keep_no_secret_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SecretError, match="set one in the environment"):
        load_secret(None, tmp_path / "file" / "state")
