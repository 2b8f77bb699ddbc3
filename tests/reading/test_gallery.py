"""The programs of docs/gallery run, at a size at which an acceptance value is still told apart."""

import re

import gallery
import pytest

PAGES = gallery.pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)
def test_it_reaches_its_figure(page):
    page.run(small=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)
def test_its_page_is_complete(page):
    name = page.path.stem
    assert page.lines <= 60
    assert page.said("accept") and any(" = " not in line for line in page.said("small"))
    for part in ("$$", "| to reach |", f"*{page.lines} lines*"):
        assert part in page.text, f"{name} lacks {part}"
    (alt,) = re.findall(rf"!\[(.*)\]\(\.\./_static/gallery/{name}\.png\)", page.text)
    assert len(alt) > 40
    assert (gallery.DOCS / f"_static/gallery/{name}.png").stat().st_size < 15_000
    index = (gallery.DOCS / "gallery/index.md").read_text()
    title = page.text.splitlines()[0].removeprefix("# ")
    assert f"[{title}]({name}.md)" in index and f"![{alt}]" in index
