"Provenance: what a dream records travels with its film, and cannot be changed unnoticed."
import os, stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("c2pa", reason="the sign extra is not installed")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from groot_cookbook import CookbookError, provenance
from groot_cookbook.dreaming import Dream
from groot_cookbook.provenance import SOURCE, algorithm, identity_folder, make_identity, read_credentials, sign
from groot_cookbook.video import read_frames


def dreamt(height: int = 64, **but) -> Dream:
    rng = np.random.default_rng(0)
    facts = dict(video=rng.integers(0, 255, (9, height, 64, 3), dtype=np.uint8), seed_image=rng.integers(0, 255, (48, 80, 3), dtype=np.uint8), instruction="pick up the »red« block, 你好", generator="Cosmos2_5_PredictBasePipeline",
                 checkpoint="tiny-cosmos", checkpoint_sha="ab" * 32, seed=2**53 + 1, fps=10., steps=6, guidance=1.5)
    return Dream(**facts | but)


def test_first_runs_side_by_side_share_one_certificate(tmp_path):
    folder = tmp_path / "shared" / "signer"
    with ThreadPoolExecutor(4) as pool: made = list(pool.map(make_identity, [folder] * 4))
    assert made == [folder] * 4 and {p.name for p in folder.iterdir()} == {"chain.pem", "key.pem"} and list(folder.parent.iterdir()) == [folder]


@pytest.fixture(autouse=True)
def identity(tmp_path, monkeypatch):
    folder = make_identity(tmp_path / "signer")
    monkeypatch.setenv("GROOT_COOKBOOK_SIGNER", str(folder))
    return folder


@pytest.mark.parametrize("height", [64, 63])
def test_what_is_read_is_what_was_signed(tmp_path, height):
    made = dreamt(height)
    read = read_credentials(sign(made, tmp_path / "films" / "dream.mp4"))
    assert read.facts == made.provenance and {"generator", "checkpoint", "checkpoint_sha", "prompt", "seed", "seed_image_sha"} <= set(read.facts)
    assert (read.source_type, read.known) == (SOURCE, True) and read.claimed_by.startswith("groot_cookbook ")
    assert read.manifest["assertions"][1]["data"]["actions"][0]["softwareAgent"] == {"name": made.generator, "version": made.checkpoint_sha}
    assert read_frames(tmp_path / "films" / "dream.mp4", range(9)).shape == made.video.shape
    assert [p.name for p in (tmp_path / "films").iterdir()] == ["dream.mp4"]          # nothing half-made is left


def test_the_seed_image_is_told_by_its_pixels():
    one, other = dreamt(), dreamt(seed_image=np.zeros((48, 80, 3), np.uint8))
    assert one.provenance["seed_image_sha"] == dreamt().provenance["seed_image_sha"] != other.provenance["seed_image_sha"]


def test_any_change_is_noticed(tmp_path):
    whole = sign(dreamt(), tmp_path / "dream.mp4").read_bytes()
    picture, words = whole.rindex(b"mdat"), whole.index(b"groot-cookbook.dream")
    for at in (picture + 40, (picture + len(whole)) // 2, len(whole) - 1, words + 30, whole.index(b"tiny-cosmos")):
        (tmp_path / "changed.mp4").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        with pytest.raises(CookbookError): read_credentials(tmp_path / "changed.mp4")


def test_a_film_without_a_manifest_says_so(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("empty.mp4", "absent.mp4"):
        with pytest.raises(CookbookError, match="no C2PA manifest"): read_credentials(tmp_path / name)


def test_a_stranger_is_not_known_but_believed_to_be_whole(tmp_path, monkeypatch):
    film = sign(dreamt(), tmp_path / "dream.mp4")
    for folder in (make_identity(tmp_path / "another"), tmp_path / "nobody"):
        monkeypatch.setenv("GROOT_COOKBOOK_SIGNER", str(folder))
        assert read_credentials(film).facts == dreamt().provenance and not read_credentials(film).known


def test_a_certificate_is_made_on_first_use_and_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("GROOT_COOKBOOK_SIGNER")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    film = sign(dreamt(), tmp_path / "dream.mp4")
    made = {p.name: p.read_bytes() for p in identity_folder().iterdir()}
    assert tmp_path in identity_folder().parents and set(made) == {"chain.pem", "key.pem"} and stat.S_IMODE(os.stat(identity_folder()).st_mode) == 0o700
    sign(dreamt(), film)
    assert made == {p.name: p.read_bytes() for p in identity_folder().iterdir()} and read_credentials(film).known


def test_a_named_certificate_must_be_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GROOT_COOKBOOK_SIGNER", str(tmp_path / "nowhere"))
    with pytest.raises(CookbookError, match="GROOT_COOKBOOK_SIGNER"): sign(dreamt(), tmp_path / "dream.mp4")
    assert not (tmp_path / "nowhere").exists() and not (tmp_path / "dream.mp4").exists()


def test_a_key_that_is_not_the_certificates_is_refused(tmp_path, identity):
    other = ec.generate_private_key(ec.SECP256R1())
    (identity / "key.pem").write_bytes(other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    with pytest.raises(CookbookError): read_credentials(sign(dreamt(), tmp_path / "dream.mp4"))


def test_a_root_cannot_sign_films(tmp_path, identity):
    "C2PA's profile: the certificate that signs must not be one that vouches."
    key = ec.generate_private_key(ec.SECP256R1())
    (identity / "chain.pem").write_bytes(provenance.certificate("root", key, "root", key).public_bytes(serialization.Encoding.PEM))
    (identity / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    with pytest.raises(CookbookError, match="certificate"): sign(dreamt(), tmp_path / "dream.mp4")


def test_the_key_settles_the_algorithm():
    made = {"es256": ec.generate_private_key(ec.SECP256R1()), "es384": ec.generate_private_key(ec.SECP384R1()), "es512": ec.generate_private_key(ec.SECP521R1()),
            "ed25519": ed25519.Ed25519PrivateKey.generate(), "ps256": rsa.generate_private_key(65537, 2048)}
    assert {algorithm(k) for k in made.values()} == set(made)
    with pytest.raises(CookbookError, match="DSA"): algorithm(dsa.generate_private_key(1024))


def test_only_films_of_one_kind(tmp_path):
    with pytest.raises(CookbookError, match="mp4"): sign(dreamt(), tmp_path / "dream.avi")
