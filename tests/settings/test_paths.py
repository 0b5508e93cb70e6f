"""Paths as users write them."""

from pathlib import Path

from nfsd3d.settings.paths import user_path


def test_the_home_directory_is_filled_in_where_there_is_one(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert user_path("~/runs/a") == Path("/home/someone/runs/a")
    assert user_path("~no-such-user/a") == Path("~no-such-user/a")
    assert user_path("a~b") == Path("a~b")
