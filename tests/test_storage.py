"""Folders go to and come from a local folder or a URI alike."""

from __future__ import annotations

from pathlib import Path

from beamplatform.io.storage import join, local_folder, put_folder


def test_a_local_copy_replaces_what_was_there(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "a").write_text("new")
    target.mkdir(parents=True)
    (target / "stale").write_text("old")
    put_folder(source, str(target))
    assert sorted(p.name for p in target.rglob("*")) == ["a", "sub"]
    with local_folder(str(target)) as folder:
        assert folder == target
    assert target.is_dir(), "a local folder is not a temporary copy"
    assert not list(target.parent.glob("*.partial"))


def test_a_uri_is_copied_there_and_back(tmp_path: Path) -> None:
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "a").write_text("content")
    uri = join("memory://bucket/", "runs", "x")
    put_folder(tmp_path / "source", uri)
    (tmp_path / "source" / "sub" / "a").rename(tmp_path / "source" / "sub" / "b")
    put_folder(tmp_path / "source", uri)
    with local_folder(uri) as back:
        assert [path.name for path in (back / "sub").iterdir()] == ["b"], "what was there is replaced"
        assert (back / "sub" / "b").read_text() == "content"
    assert not back.exists()
