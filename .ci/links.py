"""Of a built site: what it links to is there, nothing is fetched: python links.py FOLDER."""

import pathlib
import re
import sys
import urllib.parse
from html.parser import HTMLParser

FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}
METADATA = {"canonical", "license", "author"}


class Page(HTMLParser):
    """The ids of a page, what it links to, what it fetches, and its pictures."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.without_text: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if a.get(FETCHED.get(tag)) and a.get("rel") not in METADATA:
            self.fetched.append(a[FETCHED[tag]])
        if tag == "img" and "/" in (a.get("alt") or "/"):  # Sphinx puts the file's name there
            self.without_text.append(a.get("src", "?"))


def problems(site: pathlib.Path) -> list[str]:
    pages = {p: Page(p) for p in sorted(site.rglob("*.html")) if "_static" not in p.parts}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site)
        for link in page.links + page.fetched:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                if link in page.fetched and url.scheme != "data":
                    found.append(f"{where} fetches {link}")
                continue
            target = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
            if not target.is_file():
                found.append(f"{where} links to {link}, which is not there")
            elif target in pages and url.fragment and url.fragment not in pages[target].ids:
                found.append(f"{where} links to {link}, where there is no such heading")
        found += [f"{where}: {src} has no alternative text" for src in page.without_text]
    for path in sorted(site.rglob("*.css")):
        for url in re.findall(r"(?:url\(|@import )['\"]?(https?:[^'\")]+)", path.read_text()):
            found.append(f"{path.relative_to(site)} fetches {url}")
    print(f"{len(pages)} pages, {sum(len(p.links) for p in pages.values())} links, ", end="")
    print(f"{len(found)} of them wrong")
    return found


if __name__ == "__main__":
    wrong = problems(pathlib.Path(sys.argv[1]).resolve())
    sys.exit("\n".join(wrong) or None)
