import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.configs.redact import HIDDEN, looks_secret, redact

HF = "hf_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dF3h"
OPENAI = "sk-proj-" + "Zx81" * 12
WANDB = "0123456789abcdef" * 2 + "deadbeef"
WANDB_V1 = "wandb_v1_" + "Ab9_" * 20
GITHUB = "ghp_" + "a1B2" * 9
AWS = "AKIA" + "Q7" * 8
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlX3g"
SECRETS = [HF, OPENAI, WANDB, WANDB_V1, GITHUB, AWS, JWT]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", "key {} end", '"{}"', "x={}", "({})", "a\n{}\nb", "/path/{}/file"])
def test_every_known_secret_is_hidden_wherever_it_stands(secret: str, around: str) -> None:
    text = around.format(secret)
    hidden = redact(text)
    assert secret not in hidden
    assert hidden == around.format(HIDDEN)
    assert looks_secret(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:hunter2@example.org/x", f"https://{HIDDEN}@example.org/x"),
        ("git clone https://abcdef@host/a.git", f"git clone https://{HIDDEN}@host/a.git"),
        ("https://u:p@ss@host/", f"https://{HIDDEN}@host/"),
        ("GET https://h/x?a=1&token=abc123&b=2", f"GET https://h/x?a=1&token={HIDDEN}&b=2"),
        ("Authorization: Bearer abcdefghijkl", f"Authorization: Bearer {HIDDEN}"),
        ("WANDB_API_KEY=short1", f"WANDB_API_KEY={HIDDEN}"),
        ('{"password": "hunter2", "user": "me"}', f'{{"password": "{HIDDEN}", "user": "me"}}'),
        ("HF_TOKEN: abcd", f"HF_TOKEN: {HIDDEN}"),
        ("password: swordfish is it", f"password: {HIDDEN} is it"),
        ("password: keep", f"password: {HIDDEN}"),
        ("the secret: keepsakes of mine", f"the secret: {HIDDEN} of mine"),
        ("password=this is", f"password={HIDDEN} is"),
        ("passphrase: correct horse", f"passphrase: {HIDDEN} horse"),
        ("Authorization: Basic bWU6aHVudGVyMg==", f"Authorization: Basic {HIDDEN}"),
        ("authorization='bearer abcdefghijkl'", f"authorization='bearer {HIDDEN}'"),
        ("curl -H basic bWU6aHVudGVyMg== x", f"curl -H basic {HIDDEN} x"),
        ("basic bWU6aHVudGVyMg", f"basic {HIDDEN}"),
        ("a bearer 8f3kd02mxk2p", f"a bearer {HIDDEN}"),
        ("bearer abcdefghijklmnopqrstuvwxyz", f"bearer {HIDDEN}"),
        ("bearer aBcDeFgHiJ", f"bearer {HIDDEN}"),
    ],
)
def test_secrets_known_by_what_stands_around_them(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        f"git commit {WANDB}",
        f"commit: {WANDB}",
        f"openai/gpt-oss-20b@{WANDB}",
        f'"revision": "{WANDB}"',
        "hf_messages and sk-learn are words",
        "`tracking.tags.1` looks like a secret: keep it out of run files",
        "no password: whoever reads this must ask",
        "use it as HTTP bearer authorization for remote files; basic arithmetic, Basic configuration",
        "Basic Implementation. Not a bearer instrument.",
        f"https://host/a/resolve/{WANDB}/config.json and commit_hash='{WANDB}'",
        "pad_token: <|endoftext|>, eos_token=<|return|>, 512 tokens: fine",
        "a" * 64,
        "https://example.org/a@b",
        "lora.rank=8 train.steps=100",
        "",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text
    assert not looks_secret(text)


@pytest.mark.slow
def test_the_prose_of_this_package_and_of_a_large_library_stays() -> None:
    """Every message and docstring: what is hidden holds a made-up key, a commit, or is the redactor's own."""
    import transformers

    import counterpoint.configs

    rooms = Path(counterpoint.configs.__file__).resolve().parents[1]
    files = [path for room in ("configs", "data", "train", "recipes") for path in (rooms / room).rglob("*.py")]
    files += Path(transformers.__file__).parent.glob("*.py")
    texts = [
        node.value
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(texts) > 20_000
    eaten = [text for text in texts if looks_secret(text)]
    assert [text for text in eaten if not text.startswith("hf_")] == []


def test_mappings_are_walked_and_their_keys_say_what_is_secret() -> None:
    settings = {
        "model": {"revision": WANDB, "name": "tiny"},
        "git_commit": WANDB,
        "env": {"WANDB_API_KEY": "x", "HOME": "/home/me", "HF_TOKEN": HF, "pad_token": "<|endoftext|>"},
        "password": 1234,
        "list": ["a", OPENAI, {"deep": (WANDB, 1, None, True)}],
        OPENAI: 1,
        "raw": HF.encode(),
        "api_key": "",
        "number": 0.5,
    }
    assert redact(settings) == {
        "model": {"revision": WANDB, "name": "tiny"},
        "git_commit": WANDB,
        "env": {"WANDB_API_KEY": HIDDEN, "HOME": "/home/me", "HF_TOKEN": HIDDEN, "pad_token": "<|endoftext|>"},
        "password": HIDDEN,
        "list": ["a", HIDDEN, {"deep": (HIDDEN, 1, None, True)}],
        HIDDEN: 1,
        "raw": HIDDEN,
        "api_key": "",
        "number": 0.5,
    }
    assert settings["git_commit"] == WANDB


@given(st.text(), st.text(), st.sampled_from([s for s in SECRETS if s != WANDB]))
def test_no_text_around_a_secret_saves_it(before: str, after: str, secret: str) -> None:
    assert secret not in redact(f"{before} {secret} {after}")


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text("abc xyz."), st.lists))
def test_redacting_twice_changes_nothing(value: object) -> None:
    once = redact(value)
    assert redact(once) == once


@given(st.lists(st.sampled_from([*SECRETS, "Bearer ", "password=", "https://", "@", " ", "commit ", "x"])))
def test_redacting_twice_changes_nothing_with_secrets(parts: list[str]) -> None:
    once = redact(" ".join(parts))
    assert redact(once) == once


def test_long_texts_are_read_in_linear_time() -> None:
    for text in [
        "a" * 300_000,
        "sk-" * 100_000,
        "://" * 100_000,
        "password" * 40_000,
        "eyJ" * 100_000,
        f"{WANDB} " * 5_000,
    ]:
        assert json.dumps(redact(text))
